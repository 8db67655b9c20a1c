"""The score of a network under the supernet, and the journal in which every score is kept. No torch here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.errors import UserError
from psvit.files import writing


@dataclass(frozen=True)
class Score:
    """The metrics of one network under the supernet, on a slice of the validation split.

    Args:
        genotype: of the network.
        widths: of its stages.
        loss: mean cross-entropy in nats.
        top1: top-1 accuracy in percent.
        images: size of the slice; a larger slice contains the smaller ones.
    """

    genotype: str
    widths: tuple[int, ...]
    loss: float
    top1: float
    images: int

    @property
    def key(self) -> Key:
        """Genotype, widths and number of images."""
        return self.genotype, self.widths, self.images


Key = tuple[str, tuple[int, ...], int]


def name_of(arch: Arch) -> tuple[str, tuple[int, ...]]:
    """Genotype and widths, which identify a network within its space."""
    return arch.genotype, arch.widths


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
                data: dict[str, Any] = json.loads(line)
                scores.append(Score(**{**data, "widths": tuple(data["widths"])}))
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
            file.write("".join(json.dumps(asdict(score)) + "\n" for score in scores).encode())
            file.flush()
            os.fsync(file.fileno())
        for score in scores:
            self.scores[score.key] = score
