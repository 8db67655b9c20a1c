"""The list of a run's images: written, found, compared, and kept to by exported files."""

import os
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from image_folders import classes, opened, picture
from torch import nn

from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.image_list import (
    IMAGES,
    ImageList,
    Listed,
    check_unchanged,
    find_image_list,
    list_files,
    read_image_list,
)
from psvit.data.image_sets import open_image_set
from psvit.engine.checkpoints import save_weights
from psvit.engine.run_folder import clear_run
from psvit.errors import UserError
from psvit.export.export_config import ExportConfig
from psvit.tasks.classification.evaluate import Classifier


def resumed(root: Path, kept: ImageList) -> ImageList:
    """The list that a resumed run makes of a folder."""
    return open_image_set(DataConfig(str(root)), kept).images


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = (Listed("train", "größe, m²", "größe, m²/a\udce9.png", "0" * 32), Listed("test", "蜂", '蜂/"b".png', ""))
    ImageList(rows).write(tmp_path / IMAGES)
    assert read_image_list(tmp_path / IMAGES) == ImageList(rows)
    assert read_image_list(tmp_path / "gone.csv") is None


def test_a_list_is_found_beside_a_checkpoint_if_it_is_its_own(tmp_path: Path) -> None:
    found = ImageList((Listed("train", "a", "a/b.png", "0"),))
    found.write(tmp_path / IMAGES)
    (best := tmp_path / "searched" / "best").mkdir(parents=True)
    assert find_image_list(best, found.fingerprint) == ImageList(found.rows, found.learned())
    assert find_image_list(best, "another") is None
    assert find_image_list(best, None) is None
    ImageList((Listed("train", "a", "a/c.png", "1"),)).write(tmp_path / IMAGES)  # what was learned before stays
    again = find_image_list(best, found.fingerprint)
    assert again is not None
    assert again.rows == found.rows
    assert again.trained(["0", "1", "2"]) == 2
    assert len(list_files(tmp_path)) == 2


@pytest.mark.parametrize(
    "content",
    [b"id,label\n1,cat\n", b"", b"\0", b"split,label,path,digest\ntrian,a,a/b.png,0\n",
     b"split,label,path,digest\ntrain,a\n", b'split,label,path,digest\n"' + b"x" * 140_000, "größe".encode("utf-16")],
)  # fmt: skip
def test_a_users_own_file_is_no_list_and_is_left_alone(content: bytes, tmp_path: Path) -> None:
    own = ImageList((Listed("train", "a", "a/b.png", "0"),))
    (best := tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / IMAGES).write_bytes(content)
    with pytest.raises(UserError, match="is not a list of images"):
        read_image_list(tmp_path / "run" / IMAGES)
    own.write(tmp_path / IMAGES)
    assert find_image_list(best, own.fingerprint) is not None
    (mine := tmp_path / "images_of_mine.csv").write_bytes(content)
    clear_run(tmp_path)
    assert list(tmp_path.glob("*.csv")) == [mine]


def test_changes_are_named(tmp_path: Path) -> None:
    classes(tmp_path, 12)
    before = opened(tmp_path).images
    assert check_unchanged(before, opened(tmp_path).images, False, tmp_path) == ()
    (tmp_path / "cat" / "new.png").write_bytes(picture())
    (tmp_path / "cat" / "003.png").write_bytes(picture())
    (tmp_path / "dog" / "001.png").unlink()
    now = opened(tmp_path).images
    with pytest.raises(UserError) as caught:
        check_unchanged(before, now, False, tmp_path)
    assert ("1 added, such as cat/new.png; 1 gone, such as dog/001.png; 1 with other bytes, such as cat/003.png: "
            "bring them back, give --accept-changes") in str(caught.value)  # fmt: skip
    assert len(check_unchanged(before, now, True, tmp_path)) == 3


def test_other_classes_are_never_gone_on_with(tmp_path: Path) -> None:
    classes(tmp_path, 12)
    kept = opened(tmp_path).images
    (tmp_path / "dog").rename(tmp_path / "ant")  # as many as before: the network would take cats for ants
    for accept in (False, True):
        with pytest.raises(UserError, match=r"gone, 'ant', 'dog': bring them back or start anew with --overwrite$"):
            check_unchanged(kept, resumed(tmp_path, kept), accept, tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_weights_are_for_all_who_can_read_a_new_file(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").touch()
    save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(2)})
    assert (tmp_path / "model.safetensors").stat().st_mode == plain.stat().st_mode


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
        images = open_data(DataConfig(data.data, workers=0, img_size=8), classifier.images)
        accuracy, measured = onnx_files.measure(classifier, {"float32": classifier.model}, config, data, images)
        assert measured == {"data": "set", "split": split, "images": kept.counts()[split]}
        cats = sum((row.split, row.label) == (split, "cat") for row in kept.rows)
        assert accuracy == {"float32": pytest.approx(100 * cats / kept.counts()[split])}
