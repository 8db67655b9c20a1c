"""Digests of files: an unchanged file is read once, a changed one is noticed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from psvit.data import digests as module
from psvit.data.digests import digests


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are read, with a store of its own; each call is as in a new process."""
    names: list[str] = []
    inner = module._read.__wrapped__

    def counted(stamp: module._Stamp) -> str:
        names.append(Path(stamp.path).name)
        return inner(stamp)

    monkeypatch.setattr(module, "_read", counted)
    monkeypatch.setattr(module, "STORE", tmp_path / "cache" / "digests.sqlite")
    monkeypatch.setattr(module, "SETTLED", -1)
    return names


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    return [str(tmp_path / name) for name in "abc"]


def test_a_file_is_read_once(files: list[str], read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = digests(files)
    assert len(set(first)) == 3
    monkeypatch.chdir(Path(files[0]).parent)
    assert digests(["c", *files]) == [first[2], *first]
    assert sorted(read) == ["a", "b", "c"]


@pytest.mark.parametrize("change", ["size", "time", "bytes"])
def test_a_changed_file_is_read_again(change: str, files: list[str], read: list[str]) -> None:
    before, times = digests(files), os.stat(files[1])
    Path(files[1]).write_bytes(b"BB" if change == "size" else b"B")
    later = times.st_mtime_ns + (1000 if change == "time" else 0)
    os.utime(files[1], ns=(later, later))
    now = digests(files)
    assert [a == b for a, b in zip(before, now, strict=True)] == [True, False, True]
    assert digests(files) == now
    assert sorted(read) == ["a", "b", "b", "c"]


def test_a_file_just_written_may_change_unseen_and_is_not_kept(
    files: list[str], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLED", 10**12)
    assert digests(files) == digests(files)
    assert sorted(read) == ["a", "a", "b", "b", "c", "c"]


def test_what_cannot_be_read_has_none(files: list[str], read: list[str], tmp_path: Path) -> None:
    found = digests([*files, str(tmp_path), str(tmp_path / "gone")])
    assert found[:3] == digests(files)
    assert found[3:] == ["", ""]


@pytest.mark.parametrize("content", [b"", b"mine" * 1000, None])
def test_a_store_that_cannot_be_used_is_done_without(
    content: bytes | None, files: list[str], read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is None:
        monkeypatch.setattr(module, "STORE", Path(files[0]) / "in a file")
    else:
        module.STORE.parent.mkdir()
        module.STORE.write_bytes(content)
    for _ in range(2):
        assert len(set(digests(files))) == 3
    assert len(read) == (6 if content != b"" else 3)
