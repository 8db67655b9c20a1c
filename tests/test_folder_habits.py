"""Generated folders: habits of people, phones, Macs and label tools, mixed. What must hold for any of them."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import APPLE_DOUBLE, COMPOSED, DECOMPOSED, by_split, opened

from psvit.errors import UserError
from psvit.training.image_files import READ_FILES, READ_FOLDERS, is_hidden, is_image
from psvit.training.image_folder import read_image_folder

CLASSES = ["cat", "dog", "Dog", COMPOSED, DECOMPOSED, "train", "x y", "2021", "10", "9", "größe m²", "蜂"]
SPLITS = ["train", "Training", "test", "TEST", "val", "valid", "dev", "eval", "testing"]
BELOW = ["", "", "", "2021", "2022", "images", "a/b", "train"]
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


def places(split: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    parts = st.tuples(split, st.sampled_from(CLASSES), st.sampled_from(BELOW))
    return parts.map(lambda names: "/".join(name for name in names if name))


@st.composite
def folders(draw: st.DrawFn) -> list[Habit]:
    """A folder with or without splits, and what has got into it."""
    splits = draw(st.lists(st.sampled_from(SPLITS), max_size=3, unique=True))
    place = places(st.sampled_from(splits) if splits else st.just(""))
    strange = st.sampled_from(["", *splits, "misc", "cat", "train/cat"])
    anywhere = st.one_of(place, place, place, strange)
    contents = st.one_of(st.binary(min_size=6, max_size=6), st.just(b"a copy"))
    ordinary = st.builds(Habit, anywhere, st.sampled_from(FILES), contents)
    many = st.builds(lambda folder, count: [Habit(folder, f"{at:03d}.jpg", f"{folder}{at}".encode()) for at in range(count)],
                     place, st.integers(1, 12))  # fmt: skip
    junk = st.builds(Habit, anywhere, st.sampled_from(JUNK), st.just(APPLE_DOUBLE))
    links = st.builds(Habit, anywhere, st.sampled_from(["link", "l.jpg", "dog"]), st.just(b""), st.sampled_from(LINKS))
    habits = draw(st.lists(ordinary, max_size=6)) + draw(st.lists(junk, max_size=3)) + draw(st.lists(links, max_size=2))
    for group in draw(st.lists(many, min_size=1, max_size=4)):
        habits += group
    return habits


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
    read = {os.path.realpath(row.path) for rows in found.splits.values() for row in rows}
    told = {os.path.realpath(root / name) for names in found.passed.names.values() for name in names}
    told |= {os.path.realpath(root / name) for name in found.passed.names.get(READ_FILES, ())}
    again = found.passed.names.get(READ_FOLDERS, ())
    for name in on_disk(root):
        path = os.path.realpath(root / name)
        composed = any(os.path.samefile(path, one) for one in told if os.path.exists(one))
        assert path in read or path in told or composed or again, name
        assert not (path in read and path in told and not again), name


@settings(max_examples=200)
@given(habits=folders(), more=places(st.sampled_from(["", "train", "Training"])), name=st.sampled_from(["zz.jpg", "0.png"]))
def test_any_folder_is_read_or_refused_in_one_line(habits: list[Habit], more: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        for habit in habits:
            habit.put(root)
        try:
            before = opened(root, holdout=0.2)
        except UserError as error:
            assert "\n" not in str(error)
            return
        check_nothing_is_dropped_unsaid(root)
        files = [os.path.realpath(row.path) for row in before.rows]
        assert len(files) == len(set(files))  # no image in two splits
        assert set(before.splits) <= {"train", "holdout", "test"}
        existing = {Path(row.where).parent for row in before.rows}
        Habit(more if Path(more) in existing else str(min(existing)), name, b"one more").put(root)
        try:
            after = opened(root, holdout=0.2)
        except UserError as error:
            assert "\n" not in str(error)
            return
        small = {row.label for row in (*before.rows, *after.rows)
                 if any("too few images" in note and repr(row.label) in note for note in (*before.notes, *after.notes))}  # fmt: skip
        now, labels = by_split(after), {row.where: row.label for row in before.rows}
        for path, split in by_split(before).items():
            assert now[path] == split or labels[path] in small, path
