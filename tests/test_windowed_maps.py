"""Maps of layers that attend within windows, on the whole grid: they are what the network computes."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CPU, Cli, read
from torch import Tensor
from torch.testing import assert_close

from psvit import Arch
from psvit.analysis.explain import Explainer
from psvit.analysis.find_layers import find_layers
from psvit.analysis.layers import Layer
from psvit.analysis.maps import Change, look, run_changed
from psvit.analysis.passes import first_pass, matched, partners, second_pass
from psvit.analysis.redundancy import pooled
from psvit.analysis.rollout import attended, rollout
from psvit.arch.arch import even_parts
from psvit.data.samples import Batch
from psvit.engine.checkpoints import save_checkpoint
from psvit.models.attention import merge_heads, split_heads
from psvit.models.build import build_arch
from psvit.models.macs import explicit_attention
from psvit.models.windows import join_maps, join_windows, split_windows, window_keys

ODD = (37, 53)  # 10 x 14 patches of 4 pixels: 3 x 4 windows of 4 x 4, which overlap
SQUARE = (32, 32)  # 8 x 8 patches: windows of 4 x 4 tile
NEAR = {"atol": 1e-5, "rtol": 1e-4}


def network(windows: tuple[int, ...] = (4, 3, 0), genotype: str = "AAS-AA-A", size: tuple[int, int] = ODD,
            explicit: bool = True, **fields: Any) -> Any:  # fmt: skip
    """The same weights each time, and maps that are far from uniform."""
    torch.manual_seed(1)
    arch = Arch(genotype, (16, 24, 32)[: genotype.count("-") + 1], head_dim=8, patch_size=4, windows=windows, **fields)
    with explicit_attention() if explicit else nullcontext():
        model: Any = build_arch(arch, size, num_classes=5).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "qkv.weight" in name:
                weights.mul_(20)
    return model


def opened(model: Any, size: tuple[int, int] = ODD) -> tuple[tuple[Layer, ...], Tensor]:
    images = torch.randn(2, 3, *size)
    layers, left_out = find_layers(model, "it", images)
    assert left_out == ()
    return layers, images


def window_of(grid: tuple[int, int], most: int) -> Tensor:
    """(N,) the number of the window whose result is kept for each token, in loops."""
    (_, height), (columns, width) = (even_parts(side, most) for side in grid)
    return torch.tensor([(r // height) * columns + c // width for r in range(grid[0]) for c in range(grid[1])])


def tokens_of(grid: tuple[int, int], most: int) -> list[list[int]]:
    """The tokens of each window, in loops."""
    (rows, height), (columns, width) = (even_parts(side, most) for side in grid)
    return [
        [r * grid[1] + c for r in range(top, top + height) for c in range(left, left + width)]
        for top in (min(i * height, grid[0] - height) for i in range(rows))
        for left in (min(i * width, grid[1] - width) for i in range(columns))
    ]


# windows on a grid


def test_maps_are_put_where_their_tokens_are() -> None:
    for grid, most in (((5, 7), 3), ((8, 8), 4), ((10, 14), 4), ((3, 2), 1), ((4, 9), 5)):
        windows, own = tokens_of(grid, most), window_of(grid, most)
        n = len(windows[0])
        attn = torch.rand(2 * len(windows), 3, n, n)  # two images, three heads
        expected = torch.zeros(2, 3, len(own), len(own))
        for image in range(2):
            for token, window in enumerate(own.tolist()):
                row = attn[image * len(windows) + window, :, windows[window].index(token)]
                for place, key in enumerate(windows[window]):
                    expected[image, :, token, key] = row[:, place]
        assert torch.equal(join_maps(attn, grid, most), expected), f"{grid} in windows of {most}"
        assert window_keys(grid, most).tolist() == [windows[window] for window in own]


@pytest.mark.parametrize("size", [SQUARE, ODD])
@pytest.mark.parametrize("sharing", ["map", "projections"])
@torch.no_grad()
def test_the_maps_are_what_the_layers_compute(size: tuple[int, int], sharing: str) -> None:
    """Each map times the values gives what the layer puts out under fused attention."""
    model, fused = (network(size=size, explicit=explicit, sharing=sharing) for explicit in (True, False))
    layers, images = opened(model, size)
    grids = model.arch.grids(size)
    assert [layer.window for layer in layers] == [4, 4, 4, 3, 3, 0]
    assert [layer.grid for layer in layers] == [grids[0]] * 3 + [grids[1]] * 2 + [grids[2]]
    assert [layer.kind for layer in layers] == list("AASAAA" if sharing == "map" else "AAAAAA")
    maps = look(model, layers, images).maps
    calls: list[tuple[Tensor, Tensor]] = []
    attentions = [block.attn for stage in fused.stages for block in stage.blocks]
    assert all(getattr(attn, "fused_attn", True) for attn in attentions)
    for attn in attentions:
        attn.register_forward_hook(lambda module, args, output: calls.append((args[0], output[0])))
    fused(images)
    for number, (layer, attn, module) in enumerate(zip(layers, maps, attentions, strict=True)):
        x, output = calls[number]
        grid = layer.grid
        assert grid is not None
        assert attn.shape == (2, layer.heads, layer.tokens, layer.tokens)
        assert_close(attn.sum(dim=-1), torch.ones(attn.shape[:3]))
        values = module.v(x) if hasattr(module, "v") else module.qkv(x)[..., 2 * layer.width :]
        if not layer.window:
            assert_close(module.proj(merge_heads(attn @ split_heads(values, layer.heads))), output, **NEAR)
            continue
        output = join_windows(output, grid, layer.window)
        own, windows = window_of(grid, layer.window), tokens_of(grid, layer.window)
        inside = torch.zeros(layer.tokens, layer.tokens, dtype=torch.bool)
        for token, window in enumerate(own.tolist()):
            inside[token, windows[window]] = True
        assert (attn[..., ~inside] == 0).all()
        assert attn[..., inside].min() > 0
        # where windows overlap, each has values of its own for the tokens in both
        apart = split_heads(values, layer.heads).unflatten(0, (2, -1))[:, own].transpose(1, 2)  # (B, H, N, n, D)
        mixed = (layer.within(attn)[..., None, :] @ apart).squeeze(3)
        assert_close(module.proj(merge_heads(mixed)), output, **NEAR)
        if number in (0, 3) or size == SQUARE:  # but not in the first layer of a stage, nor where they tile
            joined = split_heads(join_windows(values, grid, layer.window), layer.heads)
            assert_close(module.proj(merge_heads(attn @ joined)), output, **NEAR)


# measures


def passes(model: Any, size: tuple[int, int] = ODD, count: int = 8) -> tuple[tuple[Layer, ...], Any]:
    layers, _ = opened(model, size)
    images, labels = torch.randn(count, 3, *size), torch.arange(count) % 5
    return layers, lambda: [Batch(images[i : i + 3], labels[i : i + 3], ()) for i in range(0, count, 3)]


@torch.no_grad()
def test_maps_are_compared_within_their_windows() -> None:
    """The zeros between windows, which all maps have in common, are no likeness."""
    model = network()
    layers, batches = passes(model)
    first = first_pass(model, layers, batches, torch.device("cpu"))
    expected = torch.zeros(2, 2, 2, dtype=torch.float64)  # kind, heads of layer 1, heads of layer 2
    everywhere = 0.0
    own, windows = window_of((10, 14), 4), tokens_of((10, 14), 4)
    for batch in batches():
        seen = look(model, layers, batch.images)
        for one, other in zip(seen.maps[0], seen.maps[1], strict=True):
            for a in range(2):
                for b in range(2):
                    p, q = (np.array([[float(attn[t, key]) for key in windows[own[t]]] for t in range(140)]).ravel()
                            for attn in (one[a], other[b]))  # fmt: skip
                    expected[0, a, b] += p @ q / np.sqrt(p @ p * (q @ q)) / 8
                    expected[1, a, b] += np.corrcoef(p, q)[0, 1] / 8
                    everywhere += np.corrcoef(one[a].flatten(), other[b].flatten())[0, 1] / 32
    assert_close(torch.stack(first.heads[0, 1]), expected, atol=1e-5, rtol=1e-4)
    assert everywhere > float(expected[1].mean()) + 0.1
    heads = partners(layers, first)
    assert matched(layers, first, heads)[1][1][2] == pytest.approx(1)  # a shared map
    divergence = second_pass(model, layers, heads, [], batches, torch.device("cpu"), True).divergence[0]
    assert divergence[1][2] == 0
    assert divergence[0][1] > 0  # type: ignore[operator]
    assert divergence[0][3] is None


@torch.no_grad()
def test_a_layer_that_attends_alike_within_its_windows_is_uniform() -> None:
    model = network()
    for name, weights in model.named_parameters():
        if "qkv" in name:
            weights.zero_()
    layers, batches = passes(model)
    first = first_pass(model, layers, batches, torch.device("cpu"))
    assert first.entropies == pytest.approx([1.0] * 6, abs=1e-5)
    assert [layer.seen for layer in layers] == [16, 16, 16, 9, 9, 12]
    for layer, distances in zip(layers, first.distances, strict=True):
        assert distances is not None
        assert layer.positions is not None
        alike = layer.within(torch.cdist(layer.positions, layer.positions)).mean()
        assert distances == pytest.approx([float(alike)] * layer.heads, rel=1e-4)
    sides = torch.arange(4.0) * 4  # of a window of 4 x 4 patches of 4 pixels
    places = torch.cartesian_prod(sides, sides)
    assert first.distances[0] == pytest.approx([float(torch.cdist(places, places).mean())] * 2, rel=1e-4)
    assert first.heads[0, 1][1].abs().max() < 1e-6  # maps without a shape correlate with nothing
    seen = look(model, layers, torch.randn(1, 3, *ODD))
    for layer, attn in zip(layers, seen.maps, strict=True):
        assert_close(attended(attn[0].mean(dim=0), 0, False, layer.keys), torch.ones(layer.tokens))
    assert attended(seen.maps[0][0, 0], 0, False).max() > 1.2  # a token in two windows is seen by both


@torch.no_grad()
def test_tokens_are_averaged_over_the_grid_and_go_back_into_their_windows() -> None:
    model = network()
    layers, images = opened(model)
    places = layers[0].windows()
    assert places is not None
    grid, x = (10, 14), model.embed(images)[0]
    blocks = model.stages[0].blocks
    x = join_windows(blocks[0](split_windows(x, grid, 4), None, (4, 4))[0], grid, 4)
    x, attn = blocks[1](split_windows(pooled(x, places), grid, 4), None, (4, 4))
    x = join_windows(blocks[2](x, attn, (4, 4))[0], grid, 4)
    for stage in model.stages[1:]:
        x, grid = stage(x, grid)
    changed = run_changed(model, layers, images, Change(windows={0: places}))
    assert_close(changed, model.forward_head(model.norm(x)))
    assert not torch.allclose(changed, model(images), atol=1e-4)


@torch.no_grad()
def test_rollout_passes_through_windows() -> None:
    """Without a pooling nothing leaves its window; where windows tile, the product is that of each window alone."""
    model = network((4,), "AA", SQUARE)
    layers, images = opened(model, SQUARE)
    maps = [attn[0].mean(dim=0) for attn in look(model, layers, images).maps]
    found = rollout(maps, layers)
    assert_close(found.sum(dim=1), torch.ones(64))
    for tokens in tokens_of((8, 8), 4):
        one, two = ((attn[tokens][:, tokens] + torch.eye(16)) / 2 for attn in maps)
        assert_close(found[tokens][:, tokens], two @ one)


# commands


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose first stage attends within windows of 2 x 2 of its 4 x 4 tokens."""
    torch.manual_seed(1)
    arch = Arch("AAS-AA", (16, 32), head_dim=8, patch_size=2, windows=(3, 0))
    model: Any = build_arch(arch, 8, in_chans=1, num_classes=10)
    preprocessing = {"input_size": [1, 8, 8], "mean": [0.3], "std": [0.4], "interpolation": "bicubic", "crop_pct": 1.0}
    folder = tmp_path_factory.mktemp("windowed") / "best"
    save_checkpoint(folder, model, model.state_dict(), preprocessing, list("0123456789"), {})
    return folder


def test_analyze_a_windowed_network(kept: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit.analysis.measuring.guesses", lambda *_: False)  # its weights are random
    out = tmp_path / "out"
    said = cli.ok("analyze", kept, "--data", "digits", "--validation", "0.02", "--device", "cpu", "--threads", "1",
                  "--images", "20", "--output", out, "--share-above", "-1", "--pool-above", "-1",
                  "--loss-below", "9", "--drop-below", "100")  # fmt: skip
    report = read(out / "redundancy.json")
    assert [row["window"] for row in report["layers"]] == [[2, 2]] * 3 + [None] * 2
    assert [row["sharing"] is not None for row in report["layers"]] == [False, True, False, False, True]
    assert report["maps"]["matched"]["correlation"][2][3] is None
    assert report["layers"][0]["distance"]["uniform"] < report["layers"][3]["distance"]["uniform"]
    assert report["suggestion"]["share"] == [2, 5]
    assert report["suggestion"]["genotype"] == "A-AS-AS"
    assert report["suggestion"]["network"].endswith("w3-3-0")
    assert report["suggestion"]["cost"]["loss"] != 0
    assert "--windows 3 3 0" in said
    assert "2×2" in said
    assert "Maps of layers that attend within windows are compared within them" in (out / "report.html").read_text()


@torch.no_grad()
def test_panels_of_overlapping_windows(tmp_path: Path) -> None:
    model = network()
    preprocessing = {"input_size": [3, *ODD], "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bilinear",
                     "crop_pct": 1.0, "crop_mode": "center"}  # fmt: skip
    save_checkpoint(tmp_path / "net", model, model.state_dict(), preprocessing, list("abcde"), {})
    explainer = Explainer(str(tmp_path / "net"), [], tmp_path, CPU)
    image = torch.randn(3, *ODD)
    panels = explainer.panels(image)
    assert [panel.title.split("\n")[0] for panel in panels] == [
        "layer 1 attends in windows", "layer 2 attends in windows", "layer 3 shares map of 2",
        "layer 4 attends in windows", "layer 5 attends in windows", "layer 6 attends", "rollout",
    ]  # fmt: skip
    assert "layers 1, 2, 3 (4×4 tokens); layers 4, 5 (3×3 tokens). There an equal share" in explainer.legend()
    attn = look(model, explainer.layers, image[None]).maps[0][0].mean(dim=0)
    gets, alike = torch.zeros(140), torch.zeros(140)
    windows = tokens_of((10, 14), 4)
    for token, window in enumerate(window_of((10, 14), 4).tolist()):
        gets += attn[token]
        alike[windows[window]] += 1 / 16
    assert_close(panels[0].times[::4, ::4], (gets / alike).reshape(10, 14), atol=1e-5, rtol=1e-4)
