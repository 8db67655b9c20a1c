"""Folders of images as people have them, and how each is read (docs/howto/own-data.md)."""

import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from image_folders import APPLE_DOUBLE, COMPOSED, DECOMPOSED, by_split, classes, fill, labels, opened, picture
from PIL import features
from refusals import refusal_of

from psvit.data.image_files import find_images, images_in
from psvit.errors import UserError

refused = partial(refusal_of, opened)


# ---- which files count


def test_hidden_and_system_files_are_left_out_and_counted(tmp_path: Path) -> None:
    classes(tmp_path, 12)
    hidden = ("cat/.ipynb_checkpoints", "@eaDir/x", "dog/@eaDir", ".git", "lost+found", "$RECYCLE.BIN", "#recycle")
    for name in hidden:
        fill(tmp_path / name, 2)
    for name in ("._000.png", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "cat" / name).write_bytes(APPLE_DOUBLE)
    files = opened(tmp_path)
    assert files.classes == ("cat", "dog")
    assert len(files.rows) == 24
    said = "\n".join(files.notes)
    assert "left out: hidden or system folders: 7 (" in said
    assert "left out: hidden or system files: 5 (" in said


def test_all_that_pillow_reads_counts_in_any_case(tmp_path: Path) -> None:
    endings = [".jpg", ".JPEG", ".jfif", ".png", ".webp", ".bmp", ".tif", ".TIFF", ".gif", ".ppm", ".jp2"]
    endings += [".avif"] if features.check("avif") else []
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for ending in endings:
            (tmp_path / name / f"a{ending}").write_bytes(picture(ending.lower()))
        for other in ("b0.txt", "b1.txt", "b.json", "b.pdf", "b"):
            (tmp_path / name / other).write_bytes(b"no picture")
    files = opened(tmp_path, validation=0)
    assert len(files.rows) == 2 * len(endings)
    for split in ("train", "test"):
        source = files.source(split)
        assert all(source.image(at).size == (4, 4) for at in range(len(source)))
    said = [note for note in files.notes if note.startswith("left out: ")]
    assert said[0].startswith("left out: .txt files, which Pillow cannot read: 4 ('cat/b0.txt', 'cat/b1.txt', ")
    assert {line.split()[2] for line in said[1:]} == {".json", ".pdf", "files"}


# ---- links


def test_links_are_followed_and_cycles_are_not(tmp_path: Path) -> None:
    classes(tmp_path / "store", 6)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        os.symlink(Path("..") / "store" / name, linked / name)
    assert len(opened(linked).rows) == len(images_in([str(linked)])[0]) == 12
    os.symlink("..", linked / "cat" / "all")  # leads to store/, then to itself
    os.symlink("nowhere", linked / "cat" / "gone.png")
    os.symlink("self.png", linked / "cat" / "self.png")
    files, left_out = find_images(linked)
    assert len(files) == 12
    assert left_out.names == {
        "folders already read under another name": ["cat/all/cat", "cat/all/dog"],
        "links that lead nowhere": ["cat/gone.png", "cat/self.png"],
    }


def test_a_file_with_several_names_counts_once_at_its_own_place(tmp_path: Path) -> None:
    classes(tmp_path, 4)
    os.symlink(Path("..") / "dog", tmp_path / "cat" / "a-link")  # before dog/ in every order
    os.symlink("000.png", tmp_path / "cat" / "00-link.png")
    os.link(tmp_path / "dog" / "000.png", tmp_path / "dog" / "hard.png")
    files = opened(tmp_path)
    assert labels(files) == {f"{name}/{at:03d}.png": name for name in ("cat", "dog") for at in range(4)}
    assert any("files already read under another name: 2 (" in note for note in files.notes)


def test_predict_takes_files_as_they_are_named_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, 2)
    hidden = tmp_path / ".hidden.png"
    hidden.write_bytes(picture())
    first = tmp_path / "cat" / "000.png"
    found, left_out = images_in([str(hidden), str(first), str(tmp_path)])
    assert found == [hidden, first, *(tmp_path / name for name in ("cat/001.png", "dog/000.png", "dog/001.png"))]
    assert left_out.lines() == [f"hidden or system files: 1 ('{hidden}')"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no images \(\.txt files, .*a\.txt'\): check the path"):
        images_in([str(tmp_path / "empty")])
    monkeypatch.chdir(tmp_path)
    for gone in ("gone", "~no-such-user/x"):
        with pytest.raises(UserError, match=f"no file or folder {gone}"):
            images_in([gone])


# ---- splits


@pytest.mark.parametrize(
    ("folders", "roles"),
    [
        (("Training", "Testing"), ("train", "test")),
        (("TRAIN", "dev"), ("train", "test")),
        (("train", "eval"), ("train", "test")),
        (("training", "validation", "testing"), ("train", "validation", "test")),
    ],
)
def test_splits_by_their_usual_names(folders: tuple[str, ...], roles: tuple[str, ...], tmp_path: Path) -> None:
    for name in folders:
        classes(tmp_path / name, 6)
    splits = by_split(opened(tmp_path))
    for name, role in zip(folders, roles, strict=True):
        allowed = {role, "validation"} if role == "train" and "validation" not in roles else {role}
        assert {split for path, split in splits.items() if path.startswith(name + "/")} == allowed, name


def test_an_unlabelled_test_split_is_left_out_with_a_note(tmp_path: Path) -> None:
    classes(tmp_path / "train", 12)
    classes(tmp_path / "valid", 6)
    fill(tmp_path / "test", 5)
    files = opened(tmp_path)
    assert set(by_split(files)) == {f"{s}/{c}/{i:03d}.png" for s, n in (("train", 12), ("valid", 6))
                                    for c in ("cat", "dog") for i in range(n)}  # fmt: skip
    assert any("images in test/, which has no class folders: 5 (" in note for note in files.notes)
    shutil.rmtree(tmp_path / "test")
    fill(tmp_path / "test" / "unknown", 5)
    assert any("images in test/, whose only folder unknown/ is no class of " in note for note in opened(tmp_path).notes)


def test_classes_that_a_split_lacks_are_named(tmp_path: Path) -> None:
    classes(tmp_path / "train", 10, ("cat", "dog", "rare"))
    classes(tmp_path / "valid", 5)
    files = opened(tmp_path)
    assert files.classes == ("cat", "dog", "rare")
    assert "valid/ has no image of 'rare'" in files.notes
    classes(tmp_path / "valid", 5, ("cow",))
    assert "valid/ has classes that train/ lacks, 'cow'" in refused(tmp_path)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/cat", "train/dog", "Training/cat"), "two folders for one split, "),
        (("train/cat", "train/dog", "val/cat", "valid/cat"), "two folders for one split, val/ and valid/"),
        (("train/2021", "car/2021"), "is train/ a split or a class?"),
        (("test/cat", "trainval/cat"), "rename the folder to train on to train/"),
        (("train", "test"), "test/, train/ hold images, but no class folders: put each class's images into a folder"),
        (("cat", "dog", "test"), "is test/ a class, or a split without classes?"),
        (("test/cat", "test/dog"), "has test/, but no train/"),
        (("cat/train", "cat/test", "dog/train"), "the class folders hold splits, as cat/test: put the splits first"),
    ],
)
def test_unclear_splits_are_refused(folders: tuple[str, ...], said: str, tmp_path: Path) -> None:
    for folder in folders:
        fill(tmp_path / folder, 2)
    assert said in refused(tmp_path)


def test_a_class_called_train_stands_beside_classes(tmp_path: Path) -> None:
    files = opened(classes(tmp_path, 6, ("bus", "train")))
    assert files.classes == ("bus", "train")
    assert "train/ is taken for a class, since it stands beside bus/" in files.notes


def test_folders_beside_splits_and_images_beside_classes_are_noted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        fill(classes(tmp_path / split, 4), 1)
    classes(tmp_path / "raw", 3)
    fill(tmp_path, 1)
    (tmp_path / "train" / "empty").mkdir()
    files = opened(tmp_path)
    assert len(files.rows) == 16
    said = "\n".join(files.notes)
    assert "images in raw/, which is no split: 6 (" in said
    assert "images outside of a class folder: 3 ('000.png', 'test/000.png', 'train/000.png')" in said
    assert "folders without an image: 1 ('train/empty')" in said


# ---- classes


@pytest.mark.parametrize("below", [("2021", "2022"), ("images",), ("2021-05-03", "20220102"), ("raw/1999", "raw")])
def test_dates_and_one_name_below_classes_are_no_classes(below: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for folder in below:
            fill(tmp_path / name / folder, 2)
    files = opened(tmp_path)
    assert files.classes == ("cat", "dog")
    assert all(path.startswith(f"{label}/") for path, label in labels(files).items())
    if below[0] == "2021":
        assert "would be one class, 2021" in refused(tmp_path, class_folders="inner")


@pytest.mark.parametrize(
    ("splits", "names"), [(("training_set", "test_set"), ("cat", "dog")), (("fold1", "fold2"), ("0001", "0002"))]
)
def test_splits_by_other_names_become_no_classes(
    splits: tuple[str, ...], names: tuple[str, ...], tmp_path: Path
) -> None:
    for split in splits:
        classes(tmp_path / split, 2, names)
    said = refused(tmp_path)
    assert f"the classes, or splits of the classes '{names[0]}', '{names[1]}'?" in said
    assert "rename them train, val and test" in said
    assert opened(tmp_path, class_folders="outer").classes == tuple(sorted(splits))
    for split, name in zip(splits, ("train", "test"), strict=True):
        (tmp_path / split).rename(tmp_path / name)
    assert opened(tmp_path).classes == names


def test_folders_within_folders_ask_which_are_the_classes(tmp_path: Path) -> None:
    for name in ("animals/cat", "animals/dog", "vehicles/car"):
        fill(tmp_path / name, 4)
    assert "the outer folders, as animals, or the inner ones, as animals/cat? Give --class-folders" in refused(tmp_path)
    assert opened(tmp_path, class_folders="inner").classes == ("car", "cat", "dog")
    assert opened(tmp_path, class_folders="outer").classes == ("animals", "vehicles")
    shutil.copytree(tmp_path / "animals", tmp_path / "one" / "animals")
    assert f"give --data {tmp_path / 'one' / 'animals'}" in refused(tmp_path / "one")


def test_names_are_compared_composed(tmp_path: Path) -> None:
    assert COMPOSED != DECOMPOSED
    classes(tmp_path / "train", 8, (COMPOSED, "tea"))
    classes(tmp_path / "test", 4, (DECOMPOSED, "tea"))
    files = opened(tmp_path, validation=0)
    found = Counter((split, row.label) for row, split in zip(files.rows, files.splits, strict=True))
    assert found == {("train", COMPOSED): 8, ("train", "tea"): 8, ("test", COMPOSED): 4, ("test", "tea"): 4}


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    assert "no class folder of it holds an image" in refused(tmp_path)
    fill(tmp_path, 3)
    assert "(images outside of a class folder: '000.png', '001.png', '002.png')" in refused(tmp_path)
    assert "one class only, 'ant'" in refused(classes(tmp_path / "one", 3, ("ant",)))
    assert "is a file, not a folder" in refused(tmp_path / "000.png")
