"""What psvit show, evaluate and predict say of a checkpoint: exact metrics, odd images."""

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny import MACHINE, NETWORK, Cli, config, image_folder, read

from psvit.cli import main
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data
from psvit.tasks.classification.classify import train

pytestmark = pytest.mark.usefixtures("threads_kept")

CLASSES = ("grüner Käfer", "a b,c")


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a folder of RGB images whose class names are not plain."""
    root = tmp_path_factory.mktemp("colour")
    data = DataConfig(str(image_folder(root / "data", CLASSES)), img_size=8, workers=0)
    train(config(root / "run", data=data, epochs=1))
    return root / "run" / "best"


@pytest.fixture(scope="module")
def logits(trained: Path, digits: Data) -> torch.Tensor:
    """The checkpoint's for the test split of digits, by hand; nothing of psvit but the images."""
    images = np.stack([np.asarray(digits.test.image(i)) for i in range(len(digits.test))])  # type: ignore[union-attr]
    model = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
    with torch.no_grad():
        return model((torch.from_numpy(images)[:, None] / 255 - 0.3055) / 0.3759).double()


def test_show_counts_exactly(cli: Cli, trained: Path) -> None:
    words = ["AS-A", *NETWORK[2:], "--img-size", 8, "--in-chans", 1, "--num-classes", 10]
    shown = json.loads(cli.ok("show", *words, "--json"))
    embedding = 16 * (2 * 2 * 1) * 16
    attends = 16 * 16 * 48 + 2 * 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 64  # qkv, QK^T and AV, projection, MLP
    shares = 16 * 16 * 16 + 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 64  # v, AV, projection, MLP
    pool = 16 * 9 * 16 * 32
    last = 4 * 32 * 96 + 2 * 4 * 4 * 32 + 4 * 32 * 32 + 2 * 4 * 32 * 128
    macs = [embedding, attends, shares, pool, last, 32 * 10]
    assert [layer["macs"] for layer in shown["layers"] if layer["macs"]] == macs
    assert [layer["tokens"] for layer in shown["layers"] if layer["kind"] in "AS"] == [16, 16, 4]
    assert (shown["macs"], shown["params"]) == (sum(macs), 24090)
    text = " ".join(cli.ok("show", *words).split())
    assert "AS-A 2d 16-32 /2 for 8x8 pixels, head_dim 8" in text
    assert "227.6 k MACs, 24.09 k parameters; AAA, 16 wide throughout, would take 173.2 k MACs" in text
    assert "pool > 2x2" in text
    assert json.loads(cli.ok("show", trained, "--json")) == shown
    metrics = read(trained / "metrics.json")
    assert (metrics["macs"], metrics["params"]) == (sum(macs), 24090)
    assert json.loads(cli.ok("show", trained, "--img-size", 16, "--json"))["macs"] > 4 * 200_000


def test_evaluate_by_hand(cli: Cli, trained: Path, digits: Data, logits: torch.Tensor) -> None:
    labels = torch.tensor(digits.test.labels())  # type: ignore[union-attr]
    shown = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json"))
    own = logits.gather(1, labels[:, None])
    rank = (logits > own).sum(dim=1)
    right = rank == 0
    assert shown["images"] == len(labels) == 359
    assert shown["top1"] == pytest.approx(100 * right.double().mean().item(), abs=1e-4)
    assert shown["top5"] == pytest.approx(100 * (rank < 5).double().mean().item(), abs=1e-4)
    assert shown["loss"] == pytest.approx((logits.logsumexp(dim=1) - own[:, 0]).mean().item(), rel=1e-5)
    for digit in range(10):
        assert shown["per_class"][str(digit)] == pytest.approx(100 * right[labels == digit].double().mean().item())
    text = cli.ok("evaluate", trained, *MACHINE, "--batch-size", 7)
    assert "digits, test split, 359 images" in text
    assert f"top-1 {shown['top1']:.2f} %   top-5 {shown['top5']:.2f} %   loss {shown['loss']:.4f}" in text
    assert text.count(" % of 3") == 10
    for split, images in (("validation", 29), ("train", 1409)):  # the training's
        other = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json", "--split", split))
        assert other["images"] == pytest.approx(images, abs=5)


def test_evaluate_names_unreadable_images(cli: Cli, colour: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", CLASSES)
    (data / "a b,c" / "kaputt.png").write_bytes(b"none")
    words = ["evaluate", colour, "--data", data, "--workers", 0, "--split", "train", "--validation", 0, *MACHINE]
    result = cli(*words)
    assert result.code == 0
    assert "skipped 1 unreadable images: " in result.err
    assert "kaputt.png" in result.err
    assert "grüner Käfer" in result.out
    assert "kaputt.png" in cli.refused(*words, "--strict")


def test_predict_by_hand(cli: Cli, trained: Path, digits: Data, logits: torch.Tensor, tmp_path: Path) -> None:
    for i in range(3):
        digits.test.image(i).save(tmp_path / f"{i}.png")  # type: ignore[union-attr]
    expected = logits[:3].softmax(dim=1)
    lines = cli.ok("predict", trained, tmp_path, *MACHINE, "--json", "--top", 3, "--batch-size", 2).splitlines()
    for i, line in enumerate(lines):
        found = json.loads(line)
        assert found["image"] == str(tmp_path / f"{i}.png")
        values, indices = expected[i].topk(3)
        assert [entry["label"] for entry in found["classes"]] == [str(int(index)) for index in indices]
        assert [entry["probability"] for entry in found["classes"]] == pytest.approx(values.tolist(), abs=2e-6)
    text = cli.ok("predict", trained, tmp_path / "0.png", *MACHINE, "--top", 1)
    assert text == f"{tmp_path / '0.png'}  {int(expected[0].argmax())} {100 * expected[0].max():.1f} %\n"


def test_predict_takes_odd_images(cli: Cli, colour: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(*shape: int, top: int = 256, dtype: Any = np.uint8) -> Image.Image:
        return Image.fromarray(rng.integers(0, top, shape, dtype=dtype))

    folder = tmp_path / "sehr schöne Bilder"
    (folder / "deeper").mkdir(parents=True)
    noise(12, 10).save(folder / "grey.png")
    noise(12, 10, 4).save(folder / "rgba.png")
    noise(12, 10, 3).convert("P").save(folder / "transparent.gif", transparency=3)
    noise(12, 10, top=65536, dtype=np.uint16).save(folder / "16 bit.png")
    noise(12, 10, 2).save(folder / "grey and alpha.png")
    noise(12, 10).convert("1").save(folder / "two.bmp")
    noise(12, 10, 3).convert("CMYK").save(folder / "cmyk.jpg")
    noise(1, 1, 3).save(folder / "one pixel.png")
    noise(5000, 20, 3).save(folder / "deeper" / "tall.JPEG")
    (folder / "notes.txt").write_text("no image")
    found = [json.loads(line) for line in cli.ok("predict", colour, folder, *MACHINE, "--json").splitlines()]
    images = sorted(str(path) for path in folder.rglob("*.*") if path.suffix != ".txt")
    assert [line["image"] for line in found] == images
    for line in found:
        assert {entry["label"] for entry in line["classes"]} == set(CLASSES)
        assert sum(entry["probability"] for entry in line["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_goes_on_after_an_unreadable_image(cli: Cli, colour: Path, tmp_path: Path) -> None:
    image_folder(tmp_path, ("x",), each=2)
    bad = tmp_path / "x" / "0b.png"
    bad.write_bytes((tmp_path / "x" / "0.png").read_bytes()[:60])
    result = cli("predict", colour, tmp_path, *MACHINE, "--json")
    assert result.code == 0
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == ["0.png", "1.png"]
    assert result.err.startswith(f"psvit: image {bad} cannot be read: ")
    assert result.err.count("\n") == 1
    text = tmp_path / "text.txt"
    text.write_text("no image")
    result = cli("predict", colour, text, *MACHINE)
    assert result.code == 2
    assert result.err == (
        f"psvit: image {text} cannot be read: it is of no format that Pillow knows\n"
        "psvit: none of 1 images can be read\n"
    )


def test_labels_that_a_terminal_cannot_show(colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "ö.png")
    terminal = TextIOWrapper(BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["predict", str(colour), str(tmp_path / "ö.png"), *MACHINE]) == 0
    terminal.flush()
    assert b"gr\\xfcner K\\xe4fer" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_benchmark_takes_a_checkpoint(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit.latency.benchmark.matmul_peak", lambda *_: 1.0)  # it takes seconds
    report = json.loads(cli.ok("benchmark", trained, "--rounds", 1, "--batch-size", 2, "--json", "--threads", 1))
    assert report["rows"][0]["macs"] == 227648
    assert report["rows"][0]["input_size"] == [1, 8, 8]


def test_benchmark_of_training_takes_a_set(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psvit.latency.benchmark.matmul_peak", lambda *_: 1.0)
    words = ["--train", "--data", "digits", "--rounds", 1, "--warmup", 1, "--batch-size", 8, "--threads", 1]
    said = cli.ok("benchmark", "resnet18", trained, *words, "--device", "cpu", "--json")
    rows = json.loads(said)["rows"]
    assert [row["step"] for row in rows] == ["bare", "psvit", "timm"] * 2
    assert {(*row["input_size"],) for row in rows} == {(1, 8, 8)}
    assert [row["error"] for row in rows] == [None] * 6
