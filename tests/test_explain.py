"""psvit predict --explain: every token's attention stands on exactly its pixels, and is what the network computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import use_fused_attn
from tiny import CPU, MACHINE, Cli, image_folder
from torch import Tensor
from torch.testing import assert_close

from psvit import Arch, PSViT
from psvit.analysis.explain import Explainer, name_figures
from psvit.analysis.explain_figure import GREY, LESS, MORE, STRENGTH, Panel, _figure, overlay
from psvit.analysis.find_layers import find_layers
from psvit.analysis.layers import Layer
from psvit.analysis.maps import look
from psvit.analysis.rollout import attended, rollout, token_of_pixels
from psvit.engine.checkpoints import save_checkpoint
from psvit.errors import UserError
from psvit.models.build import build_arch
from psvit.models.macs import explicit_attention
from psvit.models.pooling import TokenPool
from psvit.tasks.classification.evaluate import Prediction


def layers_of(arch: Arch, size: tuple[int, int]) -> tuple[Layer, ...]:
    with explicit_attention():
        model = PSViT(arch, size, num_classes=2).eval()
    return find_layers(model, "it", torch.randn(2, 3, *size))[0]


def saved(folder: Path, model: Any, size: tuple[int, int], crop_pct: float = 1.0) -> str:
    """A checkpoint of classes ant and bee whose images are shifted and scaled by channel."""
    preprocessing = {"input_size": [3, *size], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25],
                     "interpolation": "bilinear", "crop_pct": crop_pct, "crop_mode": "center"}  # fmt: skip
    save_checkpoint(folder, model, model.state_dict(), preprocessing, ["ant", "bee"], {})
    return str(folder)


def peaked(model: Any) -> Any:
    """The same network with maps that are far from uniform."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "qkv.weight" in name:
                parameter *= 12
    return model


def photo(path: Path, height: int = 20, width: int = 24) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# tokens on pixels


@torch.no_grad()
def test_tokens_cover_what_the_networks_own_pooling_takes_in() -> None:
    for pooling in ("1d", "2d"):
        layers = layers_of(Arch("A-A-A", (8, 8, 8), 8, pooling=pooling, patch_size=1, class_token=True), (7, 5))
        pool = TokenPool(35, 35, Arch("A", (8,), 8, pooling=pooling, pool_kernel=1, pool_op="avg", class_token=True))
        pool.conv.weight.copy_(torch.eye(35)[..., None, None])  # type: ignore[union-attr,operator]
        pool.conv.bias.zero_()  # type: ignore[union-attr,operator]
        grid = (7, 5)
        tokens = torch.cat([torch.zeros(1, 1, 35), torch.eye(35)[None]], dim=1)  # token i holds its number
        for layer in layers[1:]:
            tokens, grid = pool(tokens, grid)
            assert grid == layer.grid, pooling
            takes_in = tokens[0, 1:] > 0  # (tokens, patches)
            found = token_of_pixels(layer, layers[0], (7, 5), stride=1)
            assert found.flatten().tolist() == takes_in.int().argmax(dim=0).tolist(), pooling


def test_patches_that_overlap_are_drawn_at_their_stride() -> None:
    layers = layers_of(Arch("A-A", (8, 8), 8, patch_size=6, stride=2), (8, 8))
    assert token_of_pixels(layers[0], layers[0], (8, 8), stride=2)[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert token_of_pixels(layers[1], layers[0], (8, 8), stride=2)[:, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]


def test_overlay_by_hand() -> None:
    image = torch.rand(2, 3, 3)
    times = torch.tensor([[1, 4, 8], [0, 0.25, 2]])
    grey = (GREY[0] + (GREY[1] - GREY[0]) * image.mean(dim=-1))[..., None]
    found = overlay(image, times, 4)
    assert_close(found[0, 0], grey[0, 0].expand(3))  # an equal share
    assert_close(found[0, 1], STRENGTH * torch.tensor(MORE) + (1 - STRENGTH) * grey[0, 1])
    assert_close(found[0, 2], STRENGTH * torch.tensor(MORE) + (1 - STRENGTH) * grey[0, 2])  # beyond the end
    assert_close(found[1, :2], STRENGTH * torch.tensor(LESS) + (1 - STRENGTH) * grey[1, :2])
    assert_close(found[1, 2], STRENGTH / 2 * torch.tensor(MORE) + (1 - STRENGTH / 2) * grey[1, 2])  # half of the scale


# attention


def test_attended_by_hand() -> None:
    attn = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.3, 0.4, 0.3]])
    assert_close(attended(attn, 1, by_class_token=True), torch.tensor([0.6, 0.9]))
    assert_close(attended(attn, 1, by_class_token=False), torch.tensor([1.5, 0.9]))  # the class token's row is left out
    assert_close(attended(attn, 0, by_class_token=False), torch.tensor([0.9, 1.2, 0.9]))


def by_hand(block: Any, x: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(D)), the mean of the heads (N, N), from the weights of a block that attends."""
    x = block.norm1(x)
    heads, dim = block.attn.num_heads, x.shape[-1]
    q, k, _ = (x @ block.attn.qkv.weight.T + block.attn.qkv.bias)[0].split(dim, dim=-1)
    q, k = (y.reshape(len(y), heads, -1).transpose(0, 1) for y in (q, k))
    scores = q @ k.transpose(1, 2) / (dim // heads) ** 0.5
    return (scores.exp() / scores.exp().sum(dim=-1, keepdim=True)).mean(dim=0)


@pytest.mark.parametrize("class_token", [True, False])
@torch.no_grad()
def test_panels_are_the_networks_maps(class_token: bool, tmp_path: Path) -> None:
    model = peaked(build_arch(Arch("AS-A", (16, 24), 8, patch_size=2, class_token=class_token), (6, 10), num_classes=2))
    explainer = Explainer(saved(tmp_path / "net", model, (6, 10)), [], tmp_path, CPU)
    image = torch.randn(3, 6, 10)
    panels = explainer.panels(image)
    model.eval()
    x, grid = model.embed(image[None])
    first = by_hand(model.stages[0].blocks[0], x)
    x, grid = model.stages[1].pool(*model.stages[0](x, grid))
    last = by_hand(model.stages[1].blocks[0], x)
    rolled = rollout([first, first, last], explainer.layers)
    prefix = int(class_token)
    wide, small = ((3, 5), 2), ((2, 3), 4)  # tokens, and pixels of one
    for panel, attn, (side, step) in ((0, first, wide), (1, first, wide), (2, last, small), (3, rolled, wide)):
        row = attn[0, 1:] if class_token else attn.mean(dim=0)
        times = panels[panel].times
        expected = (row * (len(row) + prefix)).reshape(side)
        assert_close(times[::step, ::step], expected, atol=1e-5, rtol=1e-4)
        assert expected.max() > 1.1  # far from uniform
    titles = [panel.title.split("\n")[0] for panel in panels]
    assert titles == ["layer 1 attends", "layer 2 shares map of 1", "layer 3 attends", "rollout"]
    words = "what the class token attends to" if class_token else "what each token receives from the average token"
    assert words in explainer.legend()
    assert use_fused_attn() > 0  # as it was


def test_rollout_over_a_pooling_by_hand() -> None:
    layers = layers_of(Arch("A-A", (8, 8), 8, pooling="1d", patch_size=2, class_token=True), (2, 6))
    assert [layer.tokens for layer in layers] == [4, 3]  # a class token and 3 -> 2 places
    maps = [(2 * torch.randn(n, n)).softmax(dim=-1) for n in (4, 3)]
    pool = torch.tensor([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
    found = rollout(maps, layers)
    assert_close(found, (maps[1] + torch.eye(3)) / 2 @ pool @ (maps[0] + torch.eye(4)) / 2)
    assert_close(found.sum(dim=1), torch.ones(3))


# models of timm


@torch.no_grad()
def test_a_vit_that_averages_is_drawn_by_its_patches(tmp_path: Path) -> None:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 2,
             "global_pool": "avg", "reg_tokens": 2, "fc_norm": False}  # fmt: skip
    model = timm.create_model("vit_tiny_patch16_224", **shape)
    model.model_args = shape
    explainer = Explainer(saved(tmp_path / "net", model, (32, 32)), [], tmp_path, CPU)
    assert not explainer.by_class_token
    assert explainer.layers[0].prefix == 3
    image = torch.randn(3, 32, 32)
    attn = look(explainer.model, explainer.layers, image[None]).maps[0][0].mean(dim=0)
    received, rolled = (19 * rows[3:, 3:].mean(dim=0).reshape(4, 4) for rows in (attn, (attn + torch.eye(19)) / 2))
    panels = explainer.panels(image)
    assert_close(panels[0].times[::8, ::8], received)
    assert_close(panels[1].times[::8, ::8], rolled)


# figures


def test_the_image_is_the_crop_that_the_network_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("psvit.analysis.explain.write_figure", lambda *arguments: drawn.append(arguments))
    model = build_arch(Arch("A", (16,), 8, patch_size=2), 8, num_classes=2)
    folder = saved(tmp_path / "net", model, (8, 8), crop_pct=0.8)  # 8 of the middle of 10
    path = photo(tmp_path / "x.png", 10, 10)
    Explainer(folder, [path], tmp_path / "out", CPU).draw(Prediction(str(path), ("bee", "ant"), (0.75, 0.25)))
    ((file, title, _, image, panels),) = drawn
    assert (file, title) == (tmp_path / "out" / "x.png", "x.png: bee 75.0 %")
    assert_close(image, torch.tensor(np.asarray(Image.open(path))[1:9, 1:9] / 255, dtype=torch.float32))
    assert panels[0].times.shape == (8, 8)


def test_the_figure_shows_the_overlays(tmp_path: Path) -> None:
    image, times = torch.rand(4, 6, 3), torch.tensor([[0.5, 3.0]]).repeat_interleave(4, 0).repeat_interleave(3, 1)
    figure = _figure("x.png", "words", image, [Panel("layer 1", times), Panel("layer 2", 1 / times)])
    above, below, _ = figure.subfigs
    shown = [np.asarray(axes.images[0].get_array()) for axes in above.axes]
    assert_close(shown[0], image.numpy())
    assert_close(shown[1], overlay(image, times, 4).numpy())  # the first end that holds 3
    assert_close(shown[2], overlay(image, 1 / times, 4).numpy())
    marks = [label.get_text() for label in below.axes[0].get_xticklabels()]
    assert marks == ["1/4", "1/2", "1", "2×", "4×"]


def test_row_of_images_of_one_name_are_apart() -> None:
    paths = [Path(name) for name in ("a/x.png", "b/X.jpg", "c/x-2.png", "a/x.png", "y.png", "z" * 200 + ".png")]
    found = name_figures(paths, Path("out"))
    assert [file.name for file in found.values()] == ["x.png", "X-2.png", "x-2-2.png", "y.png", "z" * 60 + ".png"]


# the command


def test_predict_explain(cli: Cli, trained: Path, tmp_path: Path) -> None:
    images, out = image_folder(tmp_path / "images", each=1), tmp_path / "new" / "out"
    plain = cli("predict", trained, images, *MACHINE, "--json")
    result = cli("predict", trained, images, *MACHINE, "--json", "--explain", out)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [line.pop("figure") for line in found] == [str(out / "0.png"), str(out / "0-2.png")]
    assert found == [json.loads(line) for line in plain.out.splitlines()]
    assert sorted(path.name for path in out.iterdir()) == ["0-2.png", "0.png"]
    before = (out / "0.png").read_bytes()
    line = cli.refused("predict", trained, images, *MACHINE, "--explain", out)
    assert f"{out / '0.png'} is there already: give --overwrite" in line
    said = cli.ok("predict", trained, images / "ant" / "0.png", *MACHINE, "--explain", out, "--overwrite")
    assert said.endswith(f"figures   {out}\n")
    assert (out / "0.png").read_bytes() == before  # the same image, the same bytes


def test_predict_explain_refuses(cli: Cli, trained: Path, tmp_path: Path) -> None:
    image, out = photo(tmp_path / "x.png"), tmp_path / "out"
    before = image.read_bytes()
    line = cli.refused("predict", trained, image, *MACHINE, "--explain", tmp_path, "--overwrite")
    assert "would replace an image: give --explain another folder" in line
    assert image.read_bytes() == before
    with pytest.raises(UserError, match=r"net\.onnx is an ONNX file, whose attention maps cannot be read"):
        Explainer(str(tmp_path / "net.onnx"), [image], out, CPU)
    resnet = saved(tmp_path / "resnet", timm.create_model("resnet10t", num_classes=2), (32, 32))
    assert "has no attention maps: give a vision" in cli.refused("predict", resnet, image, *MACHINE, "--explain", out)
    assert "is a file: give a folder" in cli.refused("predict", trained, image, *MACHINE, "--explain", image)
    assert not out.exists()


def test_a_network_with_other_poolings_says_that_its_cells_are_not_exact(tmp_path: Path) -> None:
    model = timm.create_model("pit_ti_224", num_classes=2)
    explainer = Explainer(saved(tmp_path / "net", model, (224, 224)), [], tmp_path, CPU)
    assert "they are drawn as equal parts of it" in explainer.legend()
    assert "Rollout" not in explainer.legend()
    panels = explainer.panels(torch.randn(3, 224, 224))
    assert len(panels) == 12
    assert (panels[-1].times.reshape(7, 32, 7, 32).amax(dim=(1, 3)) == panels[-1].times[::32, ::32]).all()
