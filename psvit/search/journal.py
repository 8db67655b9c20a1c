"""The score of a network under the supernet, and the journal in which every score is kept. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from psvit.arch.arch import Arch, MlpKind
from psvit.arch.stem_convolutions import Stem
from psvit.arch.steps import elements_of
from psvit.errors import UserError
from psvit.files import writing


class Name(NamedTuple):
    """What tells a network from the others of its space: fields of its `Arch`."""

    genotype: str
    widths: tuple[int, ...]
    stem: Stem
    mlp: MlpKind
    mlp_ratio: float

    @property
    def elements(self) -> str:
        """The elements as text: ``"pool, local x2"``."""
        return f"{self.stem}, {self.mlp} x{self.mlp_ratio:g}"

    def arch(self, like: Arch) -> Arch:
        """The network, with the other settings of `like`."""
        return replace(like, **self._asdict())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Name:
        """The name in plain data that may hold more."""
        return cls(**{**{field: data[field] for field in cls._fields}, "widths": tuple(data["widths"])})


@dataclass(frozen=True)
class Score:
    """The metrics of one network under the supernet, on a slice of the validation split.

    Args:
        name: of the network.
        loss: mean cross-entropy in nats.
        top1: top-1 accuracy in percent.
        images: size of the slice; a larger slice contains the smaller ones.
    """

    name: Name
    loss: float
    top1: float
    images: int

    @property
    def key(self) -> Key:
        """Name and number of images."""
        return self.name, self.images

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**self.name._asdict(), "loss": self.loss, "top1": self.top1, "images": self.images}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Score:
        """Rebuild a Score from `to_dict`."""
        return cls(Name.from_dict(data), data["loss"], data["top1"], data["images"])


Key = tuple[Name, int]


def name_of(arch: Arch) -> Name:
    """The name of a network within its space."""
    return Name(arch.genotype, arch.widths, *elements_of(arch))


class Journal:
    """A file of scores, one line of JSON each, appended after every chunk.

    A last line that a killed process left incomplete is dropped, and its network is scored again.

    Args:
        path: the file; created with the first score.
        say: takes lines for the user; None to read only and not repair the file.

    Raises:
        UserError: a line before the last is broken.
    """

    def __init__(self, path: Path, say: Callable[[str], None] | None = print) -> None:
        self.path = path
        self.scores: dict[Key, Score] = {}
        for score in self._read(say):
            self.scores[score.key] = score

    def _read(self, say: Callable[[str], None] | None) -> list[Score]:
        if not self.path.is_file():
            return []
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw) and say is not None:
            say(f"journal   {self.path} ends in mid-line: the last line is dropped, its network is scored again")
            with self.path.open("r+b") as file:
                file.truncate(whole)
        scores = []
        for number, line in enumerate(raw[:whole].splitlines(), start=1):
            try:
                scores.append(Score.from_dict(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{self.path}, line {number} is no score ({error}): restore it, or start anew with --overwrite"
                ) from error
        return scores

    def add(self, scores: Iterable[Score]) -> None:
        """Append scores and flush them to the disk."""
        scores = list(scores)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path), self.path.open("ab") as file:
            file.write("".join(json.dumps(score.to_dict()) + "\n" for score in scores).encode())
            file.flush()
            os.fsync(file.fileno())
        for score in scores:
            self.scores[score.key] = score
