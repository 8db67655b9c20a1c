"""psvit export: its report, its validation split, refusals, files left alone; torch's own formats."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from small_exports import checkpoint, remembered
from tiny import Cli

from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.engine.trained_on import trained_on
from psvit.export.export import METADATA
from psvit.export.graph import example_images
from psvit.export.operators import count_operators, onnx_calls
from psvit.export.runtime import open_classifier
from psvit.tasks.classification.evaluate import open_checkpoint


@pytest.fixture(scope="module", autouse=True)
def _graphs_are_written_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psvit.export.onnx_files.to_onnx", remembered)
        yield


# ---- the validation split of the training


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> set[tuple[float, int, int | None]]:
    """Which validation splits were opened: validation, seed, split_seed."""
    opened: set[tuple[float, int, int | None]] = set()

    def recorded(config: DataConfig, *more: Any) -> Any:
        opened.add((config.validation, config.seed, config.split_seed))
        return open_data(config, *more)

    monkeypatch.setattr("psvit.export.onnx_files.open_data", recorded)
    monkeypatch.setattr("psvit.tasks.classification.evaluate.open_data", recorded)
    return opened


def test_the_validation_split_is_that_of_the_training(cli: Cli, tmp_path: Path, cuts: set[Any]) -> None:
    trained = DataConfig("digits", validation=0.02, seed=1)
    best = checkpoint(tmp_path / "best", trained=trained)
    for flags, cut in (
        ([], (0.02, 1, None)),
        (["--seed", "7", "--split-seed", "1"], (0.02, 7, 1)),
        (["--seed", "7", "--split", "test"], (0.02, 7, None)),  # the validation split is not used
    ):
        cuts.clear()
        text = cli.ok("export", best, "--data", "digits", "--rounds", 0, "--overwrite", *flags)
        assert cuts == {cut}
        assert "does not tell its validation split" not in text
        for file in (best, tmp_path / "best.onnx"):
            assert trained_on(open_classifier(str(file)).metadata) == trained


def test_a_validation_split_that_was_trained_on_is_refused(cli: Cli, tmp_path: Path) -> None:
    best = checkpoint(tmp_path / "best", trained=DataConfig("digits", validation=0.02, seed=1))
    told = f"{best} was trained on digits with --validation 0.02 --split-seed 1, so it knows images of the validation"
    for flags in (["--split-seed", "0"], ["--validation", "0.1"], ["--seed", "0", "--split", "test", "--int8"]):
        assert told in cli.refused("export", best, "--data", "digits", *flags)
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_training_without_a_validation_split_leaves_none_to_measure_on(cli: Cli, tmp_path: Path) -> None:
    best = checkpoint(tmp_path / "best", trained=DataConfig("digits", validation=0))
    said = cli.refused("export", best, "--data", "digits")
    assert "there is no validation split of digits, with --validation 0: give --split test" in said


def test_a_checkpoint_that_tells_no_validation_split_is_noted(cli: Cli, best: Path, cuts: set[Any]) -> None:
    text = cli.ok("export", best, "--data", "digits", "--rounds", 0, "--seed", 3)
    assert f"note      {best} does not tell its validation split: unless --validation and --seed are those" in text
    assert cuts == {(0.1, 3, None)}
    assert trained_on(open_classifier(f"{best}.onnx").metadata) is None


# ---- the other formats


@pytest.mark.parametrize(
    ("format", "suffix", "batch_size"),
    [("torch-export", ".pt2", None), ("torch-export", ".pt2", 2), ("torchscript", ".torchscript.pt", None)],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchs_own_files(cli: Cli, best: Path, format: str, suffix: str, batch_size: int | None) -> None:
    fixed = [] if batch_size is None else ["--batch-size", batch_size]
    text = cli.ok("export", best, "--format", format, *fixed)
    output = best.with_name("best" + suffix)
    assert f"written   {output} (" in text
    assert "aten.linear 17, " in text
    extra = {METADATA: ""}
    if format == "torch-export":
        loaded: Any = torch.export.load(output, extra_files=extra).module()
    else:
        loaded = torch.jit.load(output, _extra_files=extra)
    assert json.loads(extra[METADATA])["label_names"][9] == "9"
    network = open_checkpoint(str(best)).model
    for count in (1, 5) if batch_size is None else (2,):
        inputs = example_images((1, 12, 12), count)
        torch.testing.assert_close(loaded(inputs), network(inputs), rtol=1e-5, atol=1e-5)


# ---- the command


def test_the_command_tells_what_it_found(cli: Cli, best: Path) -> None:
    text = cli.ok("export", best, "--rounds", 1, "--timed-batches", 2, "--threads", 1)
    assert "network   AS-AA 2d 16-24 /4, images 1 x 12 x 12, 10 classes" in text
    assert "LayerNormalization 9" in text
    assert "opset     20 of ONNX\n" in text
    assert "float32 differs from the network by at most" in text
    assert "speed over torch" in text
    assert f"next      psvit predict {best}.onnx IMAGE" in text
    told = json.loads(cli.ok("export", best, "--rounds", 0, "--overwrite", "--json"))
    assert told["files"] == {f"{best}.onnx": Path(f"{best}.onnx").stat().st_size}
    assert (told["operators"]["float32"]["Softmax"], told["opset"], told["timings"]) == (3, 20, [])


def test_export_refuses(cli: Cli, best: Path) -> None:
    before = sorted(best.parent.rglob("*"))
    for flags, message in (
        (["--tolerance", "1e-12"], "above --tolerance 1e-12: nothing is written"),
        (["--format", "tensorrt"], "--format 'tensorrt' is not one of onnx"),
        (["--format", "timm", "--int8"], "--int8 is ONNX Runtime's"),
        (["--format", "torchscript", "--data", "digits"], "--data measures ONNX files"),
        (["--format", "timm", "--batch-size", "2"], "--batch-size fixes a graph"),
        (["--license", "mit"], "--license belongs to the folder that the Hub reads"),
        (["--format", "timm", "--push-to-hub", "nobody"], "names no account: give user/name"),
        (["--reduce-range"], "--reduce-range narrows int8 weights"),
        (["--opset", "17"], "--opset 17 is not a number from 18 to 25"),
        (["--opset", "18", "--format", "torchscript"], "--opset is of ONNX files, --format is torchscript: leave it"),
        (["--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1"),
        (["--split", "test"], "--split test needs images: give --data"),
        (["--output", "model"], "does not end with .onnx"),
        (["--output", f"{__file__}/x.onnx"], f"{__file__}/x.onnx cannot be written ({__file__} is a file)"),
    ):
        assert message in cli.refused("export", best, "--rounds", "0", *flags)
        assert sorted(best.parent.rglob("*")) == before


def test_the_opset_that_is_asked_for_is_written(cli: Cli, best: Path, tmp_path: Path) -> None:
    text = cli.ok("export", best, "--opset", 18, "--int8", "--output", tmp_path / "m.onnx", "--rounds", 0)
    assert "opset     18 of ONNX\n" in text
    for file in ("m.onnx", "m.int8.onnx"):
        assert [(used.domain, used.version) for used in onnx.load(tmp_path / file).opset_import] == [("", 18)], file


def test_the_operators_of_both_files_are_told(cli: Cli, best: Path) -> None:
    told = json.loads(cli.ok("export", best, "--int8", "--data", "digits", "--rounds", 0, "--json"))["operators"]
    for name, file in (("float32", "best.onnx"), ("int8", "best.int8.onnx")):
        assert told[name] == count_operators(onnx_calls(onnx.load(best.with_name(file))))
    assert "MatMulInteger" in told["int8"]


def test_data_of_other_classes_are_refused(cli: Cli, best: Path, tmp_path: Path) -> None:
    config = json.loads((best / "config.json").read_text())
    config["label_names"][3] = "drei"
    (best / "config.json").write_text(json.dumps(config))
    said = cli.refused("export", best, "--data", "digits", "--int8", "--rounds", 0)
    assert "knows the class 'drei' where digits has '3'" in said
    assert not best.with_name("best.onnx").exists()


def test_nothing_of_the_users_is_overwritten(cli: Cli, best: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.onnx"
    mine.write_text("mine")
    assert f"--output {mine} exists" in cli.refused("export", best, "--output", mine)
    assert mine.read_text() == "mine"
    small = tmp_path / "other.int8.onnx"
    small.write_text("mine")
    assert f"--output {small} exists" in cli.refused("export", best, "--int8", "--output", tmp_path / "other.onnx")
    (folder := tmp_path / "folder.onnx").mkdir()
    assert "is a folder: name a file" in cli.refused("export", best, "--output", folder, "--overwrite")
    said = cli.refused("export", best, "--format", "timm", "--output", folder, "--overwrite")
    assert "holds no checkpoint, and is not replaced" in said
    said = cli.refused("export", best, "--format", "timm", "--output", best, "--overwrite")
    assert "is the checkpoint itself" in said
    assert "is a file: name a folder" in cli.refused("export", best, "--format", "timm", "--output", mine)
