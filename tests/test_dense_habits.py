"""Generated folders of boxes and masks, laid out as people and label tools do. What must hold for any of them."""

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from psvit.data.objects.object_sets import DenseData, open_class_maps, open_objects
from psvit.data.objects.objects_config import DenseDataConfig
from psvit.errors import UserError

SPLITS = [
    ("",),
    ("",),
    ("train", "val"),
    ("Training", "TESTING"),
    ("train", "valid", "test"),
    ("train2017", "dev"),
    ("x",),
]
PLACES = {
    "kind first": ("images/{split}/{name}", "masks/{split}/{stem}"),
    "split first": ("{split}/images/{name}", "{split}/labels/{stem}"),
    "beside": ("{split}/{name}", "{split}/{stem}_mask"),
    "called alike": ("{split}/{name}", "{split}_masks/{stem}"),
    "voc": ("JPEGImages/{name}", "SegmentationClass/{stem}"),
    "coco": ("{split}/{name}", ""),
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
        number = 0
        for split, count in self.images.items():
            names = []
            for _ in range(count):
                self.put_one(root, split, number)
                names.append(f"é{number}{self.endings[0]}")
                number += 1
            if self.layout == "coco":
                self.annotate(root / split, names)
            elif self.layout == "voc" and split and names:
                lists = root / "ImageSets" / "Segmentation" / f"{split}.txt"
                lists.parent.mkdir(parents=True, exist_ok=True)
                lists.write_text("".join(f"{os.path.splitext(name)[0]}\n" for name in names), encoding="utf-8")
        for name in self.junk:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"\0\5\26\7")
        return number + self.junk.count("lost.png")

    def put_one(self, root: Path, split: str, number: int) -> None:
        name = f"é{number}{self.endings[0]}"
        image, mask = (
            root / part.format(split=split, name=name, stem=os.path.splitext(name)[0]) for part in PLACES[self.layout]
        )
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (number % 250, 0, 9)).save(image)
        if self.layout != "coco" and number != self.lacking:
            pixels = np.zeros((6, 6), dtype=np.uint8)
            pixels[1:5, 1:5] = self.numbers[number % len(self.numbers)]
            mask = mask.with_name(mask.name + self.endings[1])
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(mask)

    def annotate(self, folder: Path, names: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        square = [[1, 1, 5, 1, 5, 5, 1, 5]]
        content = {
            "images": [{"id": at, "file_name": name, "width": 6, "height": 6} for at, name in enumerate(names)],
            "categories": [{"id": 1, "name": "a"}],
            "annotations": [{"id": at, "image_id": at, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": square}
                            for at in range(len(names)) if at != self.lacking],
        }  # fmt: skip
        (folder / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")


@st.composite
def folders(draw: st.DrawFn) -> Folder:
    splits = draw(st.sampled_from(SPLITS))
    return Folder(
        layout=draw(st.sampled_from(list(PLACES))),
        images={split: draw(st.integers(0 if at else 2, 9)) for at, split in enumerate(splits)},
        endings=(
            draw(st.sampled_from([".png", ".JPG", ".webp", ".tif"])),
            draw(st.sampled_from([".png", ".TIF", ".gif"])),
        ),
        numbers=draw(st.sampled_from(NUMBERS)),
        lacking=draw(st.integers(0, 12)),
        junk=tuple(draw(st.lists(st.sampled_from(JUNK), max_size=2, unique=True))),
    )


def check_what_was_opened(data: DenseData, images: int) -> None:
    """No image in two splits, none dropped unsaid; all can be read."""
    assert data.files is not None
    paths = [os.path.realpath(row.path) for row in data.files.rows]
    assert len(paths) == len(set(paths))
    parts = [data.split(name) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) + data.files.splits.count("unused") == len(paths)
    told = "\n".join(data.notes)
    assert len(paths) == images or "not used" in told or "without a mask" in told, told
    for part in parts:
        for at in range(len(part)):
            assert part.image(at).size == (6, 6)


READ = Counter[str]()


@settings(max_examples=30)
@given(folder=folders())
def check_a_folder(folder: Folder) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        count = folder.put(root)
        for opener in (open_class_maps, open_objects):
            wanted = DenseDataConfig(str(root), validation=0.2)
            try:
                data = opener(wanted)
            except UserError as error:
                READ["refused"] += opener is open_class_maps
                lines = str(error).splitlines()
                assert len(lines) == 1
                continue
            READ["read"] += opener is open_class_maps
            check_what_was_opened(data, count)
            split = next(iter(folder.images))
            folder.put_one(root, split, 1000)
            if folder.layout in ("coco", "voc"):
                continue  # nothing lists it
            after = opener(wanted)
            now = {row.where: own for row, own in zip(after.files.rows, after.files.splits, strict=True)}  # type: ignore[union-attr]
            if not any("too few images" in note for note in (*data.notes, *after.notes)):
                before = zip(data.files.rows, data.files.splits, strict=True)  # type: ignore[union-attr]
                assert all(now[row.where] == own for row, own in before)


def test_any_folder_is_opened_or_refused_in_one_line() -> None:
    check_a_folder()
    assert READ["read"] > READ["refused"]
