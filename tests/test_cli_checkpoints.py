"""What psvit show, evaluate and predict say of a checkpoint: exact figures, odd images."""

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tiny import MACHINE, NETWORK, Cli, config, image_folder, read

from psvit import VARIANTS
from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.tasks.classification.classify import train

TINY = ["AS-A", *NETWORK[2:]]

pytestmark = pytest.mark.usefixtures("threads_kept")


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a folder of RGB images whose class names are not plain."""
    root = tmp_path_factory.mktemp("colour")
    image_folder(root / "data", ("grüner Käfer", "a b,c"))
    data = DataConfig(str(root / "data"), img_size=8, workers=0)
    train(config(root / "run", data=data, epochs=1))
    return root / "run" / "best"


# ---- show


def test_show_counts_exactly(cli: Cli) -> None:
    shown = json.loads(cli.ok("show", *TINY, "--img-size", 8, "--in-chans", 1, "--num-classes", 10, "--json"))
    assert shown["arch"]["genotype"] == "AS-A"
    parts = {
        layer["name"]: (layer["kind"], layer["tokens"], layer["width"], layer["macs"]) for layer in shown["layers"]
    }
    embedding = 16 * (2 * 2 * 1) * 16
    attends = 16 * 16 * 48 + 2 * 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 64  # qkv, QK^T and AV, projection, MLP
    shares = 16 * 16 * 16 + 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 64  # v, AV, projection, MLP
    pool = 16 * 9 * 16 * 32
    last = 4 * 32 * 96 + 2 * 4 * 4 * 32 + 4 * 32 * 32 + 2 * 4 * 32 * 128
    macs = [embedding, attends, shares, pool, last, 32 * 10]
    assert [figures[3] for figures in parts.values() if figures[3]] == macs
    assert [figures[1] for figures in parts.values() if figures[0] in "AS"] == [16, 16, 4]
    assert shown["macs"] == sum(macs) == 227648
    assert shown["params"] == sum(layer["params"] for layer in shown["layers"]) == 24090


def test_show_prints_a_table_and_a_diagram(cli: Cli) -> None:
    text = cli.ok("show", *TINY, "--img-size", 8, "--in-chans", 1, "--num-classes", 10)
    assert "AS-A 2d 16-32 /2 for 8x8 pixels, head_dim 8" in text
    assert "227.6 k MACs, 24.09 k parameters" in text
    assert "pool > 2x2" in text


def test_show_knows_the_variants(cli: Cli) -> None:
    for name, arch in VARIANTS.items():
        shown = json.loads(cli.ok("show", name, "--json"))
        deit = {"tiny": 1_253_683_200, "small": 4_598_882_304, "base": 17_563_828_224}[name.rpartition("_")[2]]
        assert shown["macs"] == pytest.approx(deit, rel=0.02), name
        assert shown["arch"] == arch.to_dict(), name


def test_show_of_a_family_is_its_tiny_variant(cli: Cli) -> None:
    assert cli.ok("show", "psvit_2d", "--json") == cli.ok("show", "psvit_2d_tiny", "--json")
    shown = json.loads(cli.ok("show", "psvit_1d", "--widths", 64, 128, 128, "--json"))["arch"]
    assert (shown["pooling"], shown["widths"]) == ("1d", [64, 128, 128])


def test_show_of_a_checkpoint_is_the_network_it_holds(cli: Cli, trained: Path) -> None:
    shown = json.loads(cli.ok("show", trained, "--json"))
    assert (shown["macs"], shown["params"]) == (227648, 24090)
    metrics = read(trained / "metrics.json")
    assert (metrics["macs"], metrics["params"]) == (227648, 24090)
    assert json.loads(cli.ok("show", trained, "--img-size", 16, "--json"))["macs"] > 4 * 200_000


# ---- evaluate


def pixels_of_the_test_split() -> tuple[torch.Tensor, torch.Tensor]:
    from psvit.data.datasets import open_data

    test = open_data(DataConfig("digits")).test
    images = np.stack([np.asarray(test.image(i)) for i in range(len(test))])  # type: ignore[union-attr]
    return torch.from_numpy(images).float(), torch.tensor(test.labels())


def test_evaluate_by_hand(cli: Cli, trained: Path) -> None:
    pixels, labels = pixels_of_the_test_split()
    model = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
    logits = model((pixels[:, None] / 255 - 0.3055) / 0.3759).detach().double()
    shown = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json"))
    own = logits.gather(1, labels[:, None])
    rank = (logits > own).sum(dim=1)
    right = rank == 0
    assert shown["images"] == len(labels) == 359
    assert shown["top1"] == pytest.approx(100 * right.double().mean().item(), abs=1e-4)
    assert shown["top5"] == pytest.approx(100 * (rank < 5).double().mean().item(), abs=1e-4)
    assert shown["loss"] == pytest.approx((logits.logsumexp(dim=1) - own[:, 0]).mean().item(), rel=1e-5)
    for digit in range(10):
        of_it = right[labels == digit].double().mean().item()
        assert shown["per_class"][str(digit)] == pytest.approx(100 * of_it)
    text = cli.ok("evaluate", trained, *MACHINE, "--batch-size", 7)
    assert "digits, test split, 359 images" in text
    assert f"top-1 {shown['top1']:.2f} %   top-5 {shown['top5']:.2f} %   loss {shown['loss']:.4f}" in text
    assert text.count(" % of 3") == 10
    assert load_digits().images.shape == (1797, 8, 8)


def test_evaluate_takes_other_splits_and_sizes(cli: Cli, trained: Path) -> None:
    for split, images in (("validation", 29), ("train", 1409)):  # the training's
        shown = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json", "--split", split))
        assert shown["images"] == pytest.approx(images, abs=5)
    other = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json", "--img-size", 16))
    assert other["images"] == 359


def test_evaluate_names_unreadable_images(cli: Cli, colour: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("grüner Käfer", "a b,c"))
    (data / "a b,c" / "kaputt.png").write_bytes(b"none")
    arguments = [
        "evaluate",
        colour,
        "--data",
        data,
        "--workers",
        "0",
        "--split",
        "train",
        "--validation",
        "0",
        *MACHINE,
    ]
    result = cli(*arguments)
    assert result.code == 0
    assert "skipped 1 unreadable images: " in result.err
    assert "kaputt.png" in result.err
    assert "grüner Käfer" in result.out
    assert "kaputt.png" in cli.refused(*arguments, "--strict")


# ---- predict


def test_predict_by_hand(cli: Cli, trained: Path, tmp_path: Path) -> None:
    pixels, _ = pixels_of_the_test_split()
    for i in range(3):
        Image.fromarray(pixels[i].numpy().astype(np.uint8)).save(tmp_path / f"{i}.png")
    model = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
    expected = model((pixels[:3, None] / 255 - 0.3055) / 0.3759).softmax(dim=1).detach()
    lines = cli.ok("predict", trained, tmp_path, *MACHINE, "--json", "--top", 3, "--batch-size", 2).splitlines()
    for i, line in enumerate(lines):
        found = json.loads(line)
        assert found["image"] == str(tmp_path / f"{i}.png")
        values, indices = expected[i].topk(3)
        assert [entry["label"] for entry in found["classes"]] == [str(int(index)) for index in indices]
        assert [entry["probability"] for entry in found["classes"]] == pytest.approx(values.tolist(), abs=2e-6)
    text = cli.ok("predict", trained, tmp_path / "0.png", *MACHINE, "--top", 1)
    assert text == f"{tmp_path / '0.png'}  {int(expected[0].argmax())} {100 * expected[0].max():.1f} %\n"
    full = json.loads(cli.ok("predict", trained, tmp_path / "0.png", *MACHINE, "--top", 99, "--json"))
    assert sum(entry["probability"] for entry in full["classes"]) == pytest.approx(1, abs=1e-4)


def test_predict_takes_odd_images(cli: Cli, colour: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(*shape: int, top: int = 256, dtype: Any = np.uint8) -> Image.Image:
        return Image.fromarray(rng.integers(0, top, shape, dtype=dtype))

    folder = tmp_path / "sehr schöne Bilder"
    (folder / "deeper").mkdir(parents=True)
    noise(12, 10).save(folder / "grey.png")
    noise(12, 10, 4).save(folder / "rgba.png")
    noise(12, 10, 3).convert("P").save(folder / "palette.png")
    noise(12, 10, 3).convert("P").save(folder / "transparent.gif", transparency=3)
    noise(12, 10, top=65536, dtype=np.uint16).save(folder / "16 bit.png")
    noise(12, 10, 2).save(folder / "grey and alpha.png")
    noise(12, 10).convert("1").save(folder / "two.bmp")
    noise(12, 10, 3).convert("CMYK").save(folder / "cmyk.jpg")
    noise(1, 1, 3).save(folder / "one pixel.png")
    noise(20, 5000, 3).save(folder / "wide.png")
    noise(5000, 20, 3).save(folder / "deeper" / "tall.JPEG")
    (folder / "notes.txt").write_text("no image")
    lines = cli.ok("predict", colour, folder, *MACHINE, "--json").splitlines()
    found = [json.loads(line) for line in lines]
    assert [Path(line["image"]).name for line in found] == sorted(
        [path.name for path in folder.iterdir() if path.suffix not in ("", ".txt")] + ["tall.JPEG"],
        key=lambda name: str(folder / ("deeper/" if name == "tall.JPEG" else "") / name),
    )
    for line in found:
        assert {entry["label"] for entry in line["classes"]} == {"grüner Käfer", "a b,c"}
        assert sum(entry["probability"] for entry in line["classes"]) == pytest.approx(1, abs=1e-5)
    assert "grüner Käfer" in cli.ok("predict", colour, folder / "one pixel.png", *MACHINE)


def test_predict_goes_on_after_an_unreadable_image(cli: Cli, colour: Path, tmp_path: Path) -> None:
    image_folder(tmp_path, ("x",), each=2)
    bad = tmp_path / "x" / "0b.png"
    bad.write_bytes((tmp_path / "x" / "0.png").read_bytes()[:60])
    result = cli("predict", colour, tmp_path, *MACHINE, "--json")
    assert result.code == 0
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == ["0.png", "1.png"]
    assert result.err.startswith(f"psvit: image {bad} cannot be read: ")
    assert result.err.count(str(bad)) == 1
    assert result.err.count("\n") == 1
    text = tmp_path / "text.txt"
    text.write_text("no image")
    result = cli("predict", colour, text, *MACHINE)
    assert result.code == 2
    assert result.err == (
        f"psvit: image {text} cannot be read: it is of no format that Pillow knows\n"
        "psvit: none of 1 images can be read\n"
    )


def test_predict_refuses(cli: Cli, colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Image.new("RGB", (8, 8)).save("x.png")
    for arguments, message in (
        (["nowhere.png"], "there is no file or folder nowhere.png: check the path"),
        (["EMPTY"], "holds no images"),
        (["x.png", "--top", "0"], "--top 0 is not a whole number of at least 1"),
        (["x.png", "--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1"),
    ):
        assert message in cli.refused("predict", colour, *arguments)


def test_labels_that_a_terminal_cannot_show(colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "ö.png")
    terminal = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["predict", str(colour), str(tmp_path / "ö.png"), *MACHINE]) == 0
    terminal.flush()
    assert b"gr\\xfcner K\\xe4fer" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


# ---- benchmark


def test_benchmark_takes_a_checkpoint(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit.latency.benchmark.matmul_peak", lambda *_: 1.0)  # it takes seconds
    report = json.loads(cli.ok("benchmark", trained, "--rounds", 1, "--batch-size", 2, "--json", "--threads", 1))
    assert report["rows"][0]["macs"] == 227648
    assert report["rows"][0]["input_size"] == [1, 8, 8]
    result = cli("benchmark", "nothere")
    assert result.code == 2
    assert result.err.endswith(
        "psvit: no model is called 'nothere': give a psvit variant, a genotype or a timm model\n"
    )
