"""Checkpoints: what a folder holds, that timm loads it, that writing is whole or nothing, that nothing is unpickled."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tiny import ARCH, DATA, TRAIN, Cli, config, read, weights
from torch import Tensor, nn

from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.data.data_config import DataConfig
from psvit.engine import checkpoints
from psvit.engine.checkpoints import read_metrics, save_checkpoint
from psvit.engine.open_model import load_checkpoint, open_model
from psvit.engine.trained_on import check_cut, trained_on
from psvit.errors import UserError
from psvit.files import write_json
from psvit.tasks.classification.classify import train

PREPROCESSING = {"input_size": (1, 8, 8), "mean": (0.3,), "std": (0.4,), "interpolation": "bicubic", "crop_pct": 1.0}
SHAPE: dict[str, Any] = {"img_size": 8, "in_chans": 1, "num_classes": 10}
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    train(config(folder, lr=0.01, ema_decay=0.5))
    return folder


@pytest.fixture
def best(trained: Path, tmp_path: Path) -> Path:
    """A copy of its best checkpoint, to be damaged."""
    return Path(shutil.copytree(trained / "best", tmp_path / "best"))


def images(size: int = 8, number: int = 4) -> Tensor:
    return torch.randn(number, 1, size, size, generator=torch.Generator().manual_seed(2))


def save(folder: Path, model: nn.Module, side: int = 8) -> None:
    save_checkpoint(
        folder, model, model.state_dict(), {**PREPROCESSING, "input_size": (1, side, side)}, DIGITS, {"top1": 50.0}
    )


# ---- what a folder holds


def test_the_config_is_timms_with_the_genotype(trained: Path) -> None:
    config = read(trained / "best" / "config.json")
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("psvit_2d", 10, 32)
    assert config["label_names"] == list(DIGITS)
    assert config["model_args"]["genotype"] == "AS-A"
    assert config["model_args"]["in_chans"] == 1
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == ([0.3055], [0.3759])
    assert Arch.from_dict(config["psvit"]["arch"]) == Arch("AS-A", widths=(16, 32), head_dim=8, patch_size=2)


@pytest.mark.parametrize(
    ("name", "args", "side"),
    [
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", {"depth": 1, "patch_size": 8}, 32),  # one size, a tag
        ("deit_tiny_distilled_patch16_224", {"depth": 1}, 32),
        ("resnet10t", {"channels": [8, 8, 16, 16]}, 32),
        ("swin_tiny_patch4_window7_224", {"depths": [1, 1], "embed_dim": 16, "num_heads": [1, 2]}, 56),
        ("psvit_1d_tiny", {}, 32),  # a variant, as it is
    ],
)
def test_a_checkpoint_of_any_model_loads_again(name: str, args: dict[str, Any], side: int, tmp_path: Path) -> None:
    model = open_model(ModelConfig.of(name, model_args=args), **{**SHAPE, "img_size": side}).eval()
    save(tmp_path / "it", model, side)
    for loaded in (
        load_checkpoint(tmp_path / "it"),
        timm.create_model(f"local-dir:{tmp_path / 'it'}", pretrained=True),
    ):
        torch.testing.assert_close(loaded.eval()(images(side)), model(images(side)), rtol=1e-5, atol=1e-5)


def test_a_training_starts_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    start_from = ModelConfig.of(str(trained / "best"))
    train(config(tmp_path / "run", model=start_from, lr=1e-12, min_lr=0, epochs=1))
    before, after = weights(trained / "best"), weights(tmp_path / "run" / "last")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    other = open_model(start_from, in_chans=1, num_classes=3, img_size=16)
    assert (other.head.weight.shape, other.img_size) == ((3, 32), (16, 16))
    with pytest.raises(UserError, match="takes 1 image channels, the data have 3"):
        open_model(start_from, in_chans=3)
    with pytest.raises(UserError, match="whose network is fixed: leave out --macs, --widths"):
        open_model(ModelConfig.of(str(trained / "best"), macs="2M", widths=(8, 8)))
    with pytest.raises(UserError, match="2 x 2 pixels with patch size 2 leave a 1 x 1 grid"):
        open_model(start_from, img_size=2)


# ---- whole or not at all


def test_a_failure_while_writing_leaves_the_old_checkpoint(
    trained: Path, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(tensors: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints, "save_file", fails)
    with pytest.raises(OSError, match="no space left"):
        save(best, open_model(ARCH, **SHAPE))
    for name in ("config.json", "model.safetensors", "metrics.json"):
        assert (best / name).read_bytes() == (trained / "best" / name).read_bytes()
    assert [path.name for path in best.parent.iterdir()] == ["best"]


# ---- what is refused


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.path), "w"))


def test_a_pickle_is_never_opened(cli: Cli, tmp_path: Path) -> None:
    for name in ("model.pt", "model.bin", "model.pkl", "model.ckpt", "model.pth.tar"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
        for words in (["evaluate", path], ["predict", path, __file__], ["train", "--model", path, *DATA]):
            assert "is a pickle, which could run anything: it is not opened" in cli.refused(*words)
        assert "is a file" in cli.refused("show", path)
    assert not (tmp_path / "boom").exists()


def test_a_pickle_in_place_of_the_weights_is_not_opened(cli: Cli, best: Path, tmp_path: Path) -> None:
    whole = (best / "model.safetensors").read_bytes()
    torch.save({"x": Bomb(tmp_path / "boom")}, tmp_path / "bomb")
    pickles = pickle.dumps(Bomb(tmp_path / "boom")), (tmp_path / "bomb").read_bytes()
    for content in (*pickles, b"", whole[:-100]):
        (best / "model.safetensors").write_bytes(content)
        assert "is not a whole safetensors file" in cli.refused("evaluate", best)
        assert "is not a whole safetensors file" in cli.refused("predict", best, best / "config.json")
    assert not (tmp_path / "boom").exists()


def test_a_pickle_in_place_of_the_state_is_not_opened(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cli.ok(*TRAIN, "--output", run, "--keep-state")
    (run / "log.jsonl").unlink()  # by which a run is known to be finished
    state = (run / "state.pt").read_bytes()
    torch.save({"model": Bomb(tmp_path / "boom")}, run / "bomb")
    for content in (pickle.dumps(Bomb(tmp_path / "boom")), (run / "bomb").read_bytes(), state[: len(state) // 2]):
        (run / "state.pt").write_bytes(content)
        assert "is broken" in cli.refused(*TRAIN, "--output", run, "--resume")
    assert not (tmp_path / "boom").exists()
    torch.save({"model": {}}, run / "state.pt")
    assert "is not a training's state" in cli.refused(*TRAIN, "--output", run, "--resume")
    torch.save({part: {} for part in ("model", "optimizer", "ema", "scaler", "train")}, run / "state.pt")
    assert "does not fit" in cli.refused(*TRAIN, "--output", run, "--resume")
    (run / "state.pt").write_bytes(state)
    assert "resumed at step 6" in cli.ok(*TRAIN, "--output", run, "--resume", "--keep-state")


def test_a_folder_that_is_missing_or_incomplete(cli: Cli, best: Path, trained: Path) -> None:
    assert "there is no checkpoint folder" in cli.refused("evaluate", best / "nowhere")
    assert f"holds no config.json; did you mean {trained / 'best'}?" in cli.refused("evaluate", trained)
    (best / "model.safetensors").rename(best / "elsewhere")
    assert "holds no model.safetensors: the checkpoint is incomplete" in cli.refused("evaluate", best)
    (best / "elsewhere").rename(best / "model.safetensors")
    (best / "config.json").unlink()
    assert "holds no config.json: the checkpoint is incomplete" in cli.refused("evaluate", best)


def test_weights_of_another_network(cli: Cli, best: Path, tmp_path: Path) -> None:
    for genotype, width, message in (
        ("AA-A", 32, "has no weight"),
        ("ASS-A", 32, "has the weight stages.0.blocks.2"),
        ("AS-A", 40, "another class count, width or genotype"),
    ):
        other = ModelConfig.of(genotype, widths=(16, width), head_dim=8, patch_size=2)
        save(tmp_path / message, open_model(other, **SHAPE))
        shutil.copy(tmp_path / message / "model.safetensors", best)
        assert message in cli.refused("evaluate", best)


def test_a_checkpoint_of_other_classes_is_not_evaluated(cli: Cli, best: Path, tmp_path: Path) -> None:
    model = open_model(ARCH, **{**SHAPE, "num_classes": 3})
    save_checkpoint(tmp_path / "three", model, model.state_dict(), PREPROCESSING, ("a", "b", "c"), {})
    assert "knows 3 classes, digits has 10: it is another set's" in cli.refused("evaluate", tmp_path / "three")
    config = read(best / "config.json")
    config["label_names"][3] = "drei"
    write_json(best / "config.json", config)
    assert "knows the class 'drei' where digits has '3': it is another set's" in cli.refused("evaluate", best)


def test_a_config_that_is_none(best: Path) -> None:
    config = read(best / "config.json")
    for changed, message in (
        ("{", "is not a checkpoint's config"),
        ("[]", "is not a checkpoint's config"),
        ({**config, "architecture": "nothere"}, "which timm does not know"),
        ({**config, "model_args": {**config["model_args"], "genotype": "S"}}, "describes no network"),
        ({**config, "pretrained_cfg": 3}, "describes no network"),
    ):
        (best / "config.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with pytest.raises(UserError, match=message):
            load_checkpoint(best)


def test_a_folder_named_like_a_model_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("AS-A").mkdir()
    Path("test_resnet").mkdir()
    assert open_model(ARCH, **SHAPE).arch.genotype == "AS-A"
    assert open_model(ModelConfig.of("test_resnet"), **{**SHAPE, "img_size": 32}).num_classes == 10
    with pytest.raises(UserError, match=r"AS-A holds no config\.json"):
        open_model(ModelConfig.of("./AS-A"))


# ---- the validation split of the training


def test_what_the_metrics_say_of_the_validation_split(trained: Path, tmp_path: Path) -> None:
    metrics = read_metrics(trained / "best")
    recorded = metrics["trained_on"]
    assert recorded == {"data": "digits", "validation": 0.02, "seed": 0, "split_seed": None}
    assert trained_on(metrics) == DataConfig("digits", validation=0.02)
    for told in (None, {}, {"data": "digits"}, {**recorded, "seed": "1"}, {**recorded, "validation": 2}):
        assert trained_on({"trained_on": told}) is None
    assert read_metrics(tmp_path) == {}
    (tmp_path / "metrics.json").write_text("no json")
    assert read_metrics(tmp_path) == {}


def test_another_validation_split_than_the_trainings_is_refused() -> None:
    trained = DataConfig("digits", seed=1)
    for same in (trained, DataConfig("digits", seed=5, split_seed=1), DataConfig("fashion-mnist")):  # another set
        check_cut("best", trained, same)
    for other in (DataConfig("digits"), replace(trained, split_seed=0), replace(trained, validation=0.2)):
        with pytest.raises(UserError, match=r"trained on digits with --validation 0\.1 --split-seed 1, so it knows"):
            check_cut("best", trained, other)
