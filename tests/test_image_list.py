"""The list of a run's images where names and contents are repeated, and files that only look like one."""

import os
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from image_folders import by_split, classes, fill, opened
from torch import nn

from psvit.data.data_config import DataConfig
from psvit.data.image_files import images_in
from psvit.data.image_list import IMAGES, ImageList, Listed, check_unchanged, find_image_list, read_image_list
from psvit.data.image_sets import open_image_set
from psvit.engine.checkpoints import save_weights
from psvit.errors import UserError
from psvit.export.export_config import ExportConfig
from psvit.tasks.classification.evaluate import Classifier


def resumed(root: Path, kept: ImageList) -> ImageList:
    """The list that a resumed run makes of a folder."""
    return open_image_set(DataConfig(str(root)), kept).images


def test_images_of_equal_bytes_stay_in_their_splits(tmp_path: Path) -> None:
    classes(tmp_path, 20)
    for at in range(10):
        shutil.copy(tmp_path / "cat" / f"{at:03d}.png", tmp_path / "cat" / f"copy {at}.png")
    kept = opened(tmp_path).images
    assert kept.repeated()
    now = resumed(tmp_path, kept)
    assert now.fingerprint == kept.fingerprint
    assert not kept.changes(now)


def test_other_classes_are_never_gone_on_with(tmp_path: Path) -> None:
    classes(tmp_path, 12)
    kept = opened(tmp_path).images
    (tmp_path / "dog").rename(tmp_path / "ant")  # as many as before: the network would take cats for ants
    for accept in (False, True):
        with pytest.raises(UserError, match=r"gone, 'ant', 'dog': bring them back or start anew with --overwrite$"):
            check_unchanged(kept, resumed(tmp_path, kept), accept, tmp_path)


def test_two_files_of_one_composed_name_are_two(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    classes(tmp_path, 10, ("dog", *forms))
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("this file system composes names itself")
    kept = opened(tmp_path).images
    now = resumed(tmp_path, kept)
    assert not kept.changes(now)
    (tmp_path / forms[0] / "003.png").unlink()
    assert kept.changes(resumed(tmp_path, kept)) == ["1 gone, such as café/003.png"]
    fill(tmp_path / forms[0], 1, start=3)
    (tmp_path / forms[1] / "004.png").rename(tmp_path / forms[1] / "400.png")
    assert kept.changes(resumed(tmp_path, kept)) == [
        "1 added, such as café/400.png",
        "1 gone, such as café/004.png",
        "1 with other bytes, such as café/003.png",
    ]


@pytest.mark.parametrize(
    "content",
    [b"id,label\n1,cat\n", b"", b"split;label;path;digest\n", b"split,label,path,digest\ntrian,a,a/b.png,0\n",
     b"split,label,path,digest\ntrain,a\n", b'split,label,path,digest\n"' + b"x" * 140_000, "größe".encode("utf-16")],
)  # fmt: skip
def test_a_file_that_only_looks_like_a_list_is_passed_by(content: bytes, tmp_path: Path) -> None:
    own = ImageList((Listed("train", "a", "a/b.png", "0"),))
    (best := tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / IMAGES).write_bytes(content)
    with pytest.raises(UserError, match="is not a list of images"):
        read_image_list(tmp_path / "run" / IMAGES)
    assert find_image_list(best, own.fingerprint) is None
    own.write(tmp_path / IMAGES)
    assert find_image_list(best, own.fingerprint) is not None


def test_a_list_is_there_at_any_moment_of_its_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (ImageList((Listed("train", "a", path, "0"),)) for path in ("a/b.png", "a/c.png"))
    before.write(tmp_path / IMAGES)
    seen = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(read_image_list(tmp_path / IMAGES))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    after.write(tmp_path / IMAGES)
    assert seen == [before, before]
    assert read_image_list(tmp_path / IMAGES) == after


def test_a_home_that_is_nobodys_is_a_name_like_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'~no-such-user/x' is neither"):
        open_image_set(DataConfig("~no-such-user/x"))
    with pytest.raises(UserError, match="no file or folder ~no-such-user/x"):
        images_in(["~no-such-user/x"])
    classes(tmp_path / "~no-such-user", 3)
    assert len(by_split(opened(Path("~no-such-user")))) == 6


def test_two_splits_that_are_one_folder_are_told(tmp_path: Path) -> None:
    classes(tmp_path / "real", 3)
    (tmp_path / "set").mkdir()
    for split in ("test", "train"):
        os.symlink(tmp_path / "real", tmp_path / "set" / split)
    with pytest.raises(UserError, match=r"no train/ \(1 folders that are read already, by another name: train\)"):
        opened(tmp_path / "set")


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_weights_are_for_all_who_can_read_a_new_file(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").touch()
    save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
    assert (tmp_path / "model.safetensors").stat().st_mode == plain.stat().st_mode


def test_an_exported_file_names_the_list_too(tmp_path: Path) -> None:
    onnx_files = pytest.importorskip("psvit.export.onnx_files")
    images = ImageList((Listed("train", "a", "a/b.png", "0"),))
    cfg = {"input_size": (3, 8, 8), "mean": 0, "std": 1, "interpolation": "bicubic", "crop_pct": 1}
    told = {"trained_on": {"data": "photos", "validation": 0.1, "seed": 0, "split_seed": None}}
    told["trained_on"]["images"] = images.fingerprint
    classifier = Classifier(str(tmp_path), SimpleNamespace(pretrained_cfg=cfg), ("a", "b"), told)
    found = onnx_files.metadata_of(classifier, "float32")["trained_on"]
    images.write(tmp_path / IMAGES)
    listed = find_image_list(tmp_path, found["images"])
    assert listed is not None
    assert listed.rows == images.rows


class Blind(nn.Module):
    """A classifier of 8 x 8 pixels that always says the first of two classes."""

    batch_size, num_classes = None, 2
    pretrained_cfg: ClassVar = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "crop_pct": 1}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.eye(2)[:1].repeat(len(images), 1)


def test_exported_files_are_measured_on_the_splits_of_the_training(tmp_path: Path) -> None:
    onnx_files = pytest.importorskip("psvit.export.onnx_files")
    kept = opened(classes(tmp_path / "set", 30)).images
    for path in (tmp_path / "set" / "cat").iterdir():
        path.rename(path.with_suffix(".PNG"))  # so that hashes would cut anew
    kept.write(tmp_path / IMAGES)
    told = {"trained_on": {"images": kept.fingerprint}}
    classifier = Classifier(str(tmp_path / "best.onnx"), Blind(), ("cat", "dog"), told)
    data = DataConfig(str(tmp_path / "set"), workers=0)
    for split in ("validation", "test"):
        config = ExportConfig(output=str(tmp_path / "best.onnx"), split=split)
        accuracy, measured = onnx_files._measured(classifier, {"float32": classifier.model}, config, data)
        assert measured == {"data": "set", "split": split, "images": kept.counts()[split]}
        cats = sum((row.split, row.label) == (split, "cat") for row in kept.rows)
        assert accuracy == {"float32": pytest.approx(100 * cats / kept.counts()[split])}
