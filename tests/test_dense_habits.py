"""Generated folders of images and masks, laid out as people do. What must hold for any of them."""

import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psvit.data.objects.object_sets import DenseData, open_class_maps
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.errors import UserError

SPLITS = [("",), ("",), ("train", "val"), ("Training", "TESTING"), ("train", "valid", "test"), ("train2017", "dev"),
          ("x",)]  # fmt: skip
PLACES = {
    "kind first": ("images/{split}/{name}", "masks/{split}/{name}"),
    "split first": ("{split}/images/{name}", "{split}/labels/{name}"),
    "beside": ("{split}/{name}", "{split}/{name}_mask"),
    "called alike": ("{split}/{name}", "{split}_masks/{name}"),
    "voc": ("JPEGImages/{name}", "SegmentationClass/{name}"),
}
NUMBERS = [(0, 1), (0, 1, 2), (0, 255), (0, 128), (0, 50, 200), (0, 1, 9), (7,)]
JUNK = ["._000.png", ".DS_Store", "Thumbs.db", "__MACOSX/._1.png", "notes.md", "train/.x.png", "lost.png"]


@dataclass(frozen=True)
class Folder:
    """What is laid out: the layout, its splits with the number of images of each, and what got into it."""

    layout: str
    images: dict[str, int]
    endings: tuple[str, str]
    numbers: tuple[int, ...]
    lacking: int
    junk: tuple[str, ...]

    def put(self, root: Path) -> int:
        """Write it; the number of images."""
        places = [split for split, count in self.images.items() for _ in range(count)]
        for number, split in enumerate(places):
            self.put_one(root, split, number)
            if self.layout == "voc" and split:
                (lists := root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
                with (lists / f"{split}.txt").open("a", encoding="utf-8") as file:
                    file.write(f"é{number}\n")
        for name in self.junk:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"\0\5\26\7")
        return len(places) + self.junk.count("lost.png")

    def put_one(self, root: Path, split: str, number: int) -> None:
        """Write an image, and its mask unless it lacks one."""
        pixels = np.zeros((6, 6), dtype=np.uint8)
        pixels[1:5, 1:5] = self.numbers[number % len(self.numbers)]
        both = (Image.new("RGB", (6, 6), (number % 250, 0, 9)), Image.fromarray(pixels))
        for part, image, ending in zip(PLACES[self.layout], both, self.endings, strict=True):
            path = root / (part.format(split=split, name=f"é{number}") + ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            if image is both[0] or number != self.lacking:
                image.save(path)


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    splits = draw(st.sampled_from(SPLITS))
    images = st.sampled_from([".png", ".JPG", ".webp", ".tif"])
    return Folder(
        layout=draw(st.sampled_from(list(PLACES))),
        images={split: draw(st.integers(0 if at else 2, 9)) for at, split in enumerate(splits)},
        endings=draw(st.tuples(images, st.sampled_from([".png", ".TIF", ".gif"]))),
        numbers=draw(st.sampled_from(NUMBERS)),
        lacking=draw(st.integers(0, 12)),
        junk=tuple(draw(st.lists(st.sampled_from(JUNK), max_size=2, unique=True))),
    )


def check_what_was_opened(data: DenseData, images: int) -> dict[str, str]:
    """No image in two splits, none dropped unsaid; all can be read. The split of each."""
    assert data.files is not None
    paths = [os.path.realpath(row.path) for row in data.files.rows]
    assert len(paths) == len(set(paths))
    parts = [data.split(name) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) + data.files.splits.count("unused") == len(paths)
    told = "\n".join(data.notes)
    assert len(paths) == images or "not used" in told or "without a mask" in told, told
    assert all(part.image(at).size == (6, 6) for part in parts for at in range(len(part)))
    return {row.where: own for row, own in zip(data.files.rows, data.files.splits, strict=True)}


READ = Counter[str]()


@settings(max_examples=30)
@given(folder=folders())
def check_a_folder(folder: Folder) -> None:
    with tempfile.TemporaryDirectory() as made:
        root, wanted = Path(made), DenseDataConfig(made, validation=0.2)
        count = folder.put(root)
        try:
            data = open_class_maps(wanted)
        except UserError as error:
            READ["refused"] += 1
            lines = str(error).splitlines()
            assert len(lines) == 1
            return
        READ["read"] += 1
        before = check_what_was_opened(data, count)
        if folder.layout == "voc":
            return  # no list names another image
        folder.put_one(root, next(iter(folder.images)), 1000)
        after = open_class_maps(wanted)
        now = check_what_was_opened(after, count + 1)
        if not any("too few images" in note for note in (*data.notes, *after.notes)):
            assert before.items() <= now.items()


def test_any_folder_is_opened_or_refused_in_one_line() -> None:
    check_a_folder()
    assert READ["read"] > READ["refused"]
