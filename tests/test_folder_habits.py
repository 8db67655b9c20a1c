"""Generated folders: habits of people, phones, Macs and label tools, mixed. What must hold for any of them."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import APPLE_DOUBLE, COMPOSED, DECOMPOSED, by_split, opened

from psvit.data.image_files import is_hidden, is_image, normalized
from psvit.data.image_folder import read_image_folder
from psvit.errors import UserError

CLASSES = ["cat", "dog", "Dog", COMPOSED, DECOMPOSED, "train", "x y", "2021", "10", "9", "größe m²", "蜂"]
LAYOUTS = [
    (), (), ("train", "test"), ("Training", "TESTING"), ("train", "val"), ("train", "Valid", "test"), ("TRAIN", "dev"),
]  # fmt: skip
BELOW = [("",), ("",), ("",), ("2021", "2022"), ("images",), ("a/b", "a/c")]
FILES = ["000.jpg", "001.JPG", "a b.png", "x.webp", "é.tif", "n.gif", "photo.jfif", "notes.txt", "no ending", "v.mp4"]
JUNK = ["._000.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/000.jpg", "@eaDir/t.jpg",
        "__MACOSX/cat/._1.jpg", "lost+found/x.png"]  # fmt: skip
LINKS = ["..", ".", "../..", "nowhere", "000.jpg", "../dog", "../cat/000.jpg"]


@dataclass(frozen=True)
class Habit:
    """One thing in a folder: where, what it is called, what it holds or leads to."""

    folder: str
    name: str
    content: bytes
    link: str | None = None

    def put(self, root: Path) -> None:
        path = root / self.folder / self.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.link is not None:
                os.symlink(self.link, path)
            elif not path.exists():
                path.write_bytes(self.content)
        except (FileExistsError, NotADirectoryError, OSError):
            return  # the name is taken, or leads through a link to nowhere


def joined(*names: str) -> str:
    return "/".join(name for name in names if name)


@st.composite
def folders(draw: st.DrawFn) -> tuple[list[Habit], str]:
    """A folder with or without splits, what has got into it, and a folder in which there are images of a class."""
    splits = draw(st.sampled_from(LAYOUTS)) or ("",)
    classes = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True))
    below = draw(st.sampled_from(BELOW))
    places = [joined(split, name, deeper) for split in splits for name in classes for deeper in below]
    habits = []
    for place in places:
        lacking = place.startswith(splits[1:]) if len(splits) > 1 else False
        count = draw(st.integers(0 if lacking else 1, 12))
        habits += [Habit(place, f"{at:03d}.jpg", f"{place}{at}".encode()) for at in range(count)]
    place = st.sampled_from(places)
    strange = st.sampled_from(["", *splits, "misc", "cat", "train/cat", "test", places[0] + "/deep"])
    anywhere = st.one_of(place, place, place, place, strange)
    contents = st.one_of(st.binary(min_size=6, max_size=6), st.just(b"a copy"))
    ordinary = st.builds(Habit, place, st.sampled_from(FILES), contents)
    lost = st.builds(Habit, strange, st.sampled_from(FILES), contents)
    junk = st.builds(Habit, anywhere, st.sampled_from(JUNK), st.just(APPLE_DOUBLE))
    links = st.builds(Habit, anywhere, st.sampled_from(["link", "l.jpg", "dog"]), st.just(b""), st.sampled_from(LINKS))
    habits += draw(st.lists(ordinary, max_size=6)) + draw(st.lists(junk, max_size=3))
    habits += draw(st.lists(lost, max_size=1)) + draw(st.lists(links, max_size=2))
    return habits, draw(place)


def on_disk(root: Path) -> Iterator[str]:
    """Every image file that is no link, by its path below the root."""
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not is_hidden(name)]
        for name in files:
            path = Path(folder) / name
            if not is_hidden(name) and is_image(name) and not path.is_symlink():
                yield os.path.relpath(path, root)


def check_nothing_is_dropped_unsaid(root: Path) -> None:
    found = read_image_folder(root, "it")
    read = {row.where for rows in found.splits.values() for row in rows}
    told = {name for names in found.left_out.names.values() for name in names}
    assert {normalized(name) for name in on_disk(root)} <= read | told
    assert not read & told


READ = Counter[str]()


@settings(max_examples=60)
@given(folder=folders(), name=st.sampled_from(["zz.jpg", "0.png"]))
def check_a_folder(folder: tuple[list[Habit], str], name: str) -> None:
    habits, place = folder
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for habit in habits:
            habit.put(root)
        try:
            before = opened(root, validation=0.2)
        except UserError as error:
            READ["refused"] += 1
            lines = str(error).splitlines()
            assert len(lines) == 1
            return
        READ["read"] += 1
        check_nothing_is_dropped_unsaid(root)
        files = [os.path.realpath(row.path) for row in before.rows]
        assert len(files) == len(set(files))  # no image in two splits
        assert set(before.splits) <= {"train", "validation", "test"}
        Habit(place, name, b"one more").put(root)
        after = opened(root, validation=0.2)
        few = [note for note in (*before.notes, *after.notes) if "too few images" in note]
        small = {row.label for row in (*before.rows, *after.rows) if any(repr(row.label) in note for note in few)}
        now, labels = by_split(after), {row.where: row.label for row in before.rows}
        for path, split in by_split(before).items():
            assert now[path] == split or labels[path] in small, path


def test_any_folder_is_read_or_refused_in_one_line() -> None:
    check_a_folder()
    assert READ["read"] > READ["refused"]  # most are folders that people should be able to use
