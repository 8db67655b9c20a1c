"""The definition of a study: groups of networks, trained with several seeds, and claims about them. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from psvit.data.data_config import DataConfig
from psvit.engine.train_config import Precision, Recipe
from psvit.errors import UserError

SEARCHED = "searched"
"""Name of the network found by a search with the group's MACs as budget."""

IDLE = ("threads", "workers", "accept_changes", "image_cache", "image_cache_dir")
"""Settings of a training that do not change its results."""

Split = Literal["test", "validation"]
Axis = Literal["macs", "images", "epochs", "lr"]


@dataclass(frozen=True)
class Network:
    """A network of a group.

    Args:
        label: its name in the study.
        network: searched, or a name for `psvit.pipeline.baselines.baseline`.
        changes: fields of `Arch` to change.
        scaled: scale it to the group's MACs.
        seeds: of its trainings.
    """

    label: str
    network: str
    changes: tuple[tuple[str, Any], ...] = ()
    scaled: bool = True
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Group:
    """Networks trained with the same data and recipe.

    Args:
        name: its name in the study.
        networks: the networks to train.
        macs: MACs to scale them to, as text; None for no scaling.
        data: the images; the seed is replaced by each training's.
        recipe: of the trainings.
        search: settings of the search for the network called searched, named like the flags of ``psvit search``.
    """

    name: str
    networks: tuple[Network, ...]
    macs: str | None
    data: DataConfig
    recipe: Recipe
    search: tuple[tuple[str, Any], ...] = ()

    @property
    def searches(self) -> bool:
        """Whether one of the networks has to be searched."""
        return any(network.network == SEARCHED for network in self.networks)


@dataclass(frozen=True)
class Claim:
    """One network is better than another.

    Args:
        claim: in words.
        better: group and label of the network that should be better, worse: of the other.
        at_most: largest ratio of the better network's error to the other's.
    """

    claim: str
    better: tuple[str, str]
    worse: tuple[str, str]
    at_most: float = 1.0


@dataclass(frozen=True)
class Figure:
    """A figure of the results.

    Args:
        groups: their names.
        x: horizontal axis: macs, images (of training), epochs or lr (learning rate), with a point per group and a line
            per network; None for a list of means with intervals.
    """

    groups: tuple[str, ...]
    x: Axis | None = None


@dataclass(frozen=True)
class Study:
    """A study; see `psvit.studies.study_file` for its file.

    Args:
        name: of its file.
        title: for headings.
        question: the question in a sentence or two.
        reads: the split whose metrics count: test (of the checkpoint that is best on the validation split, read once),
            or validation (of the last epoch).
        groups: the networks to train.
        claims: the claims to test.
        figures: of its results; by default the means of each group.
        quick: whether this is the small version.
        source: the name or path given to `read_study`.
        precision: of its trainings, unless --precision is given; auto depends on the machine.
    """

    name: str
    title: str
    question: str
    reads: Split
    groups: tuple[Group, ...]
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    quick: bool = False
    source: str = ""
    precision: Precision = "auto"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for results, without the path of the file."""
        apart = ("source", "precision") if self.precision == "auto" else ("source",)  # as in older results
        return {name: value for name, value in asdict(self).items() if name not in apart}

    def only(self, names: Sequence[str]) -> Study:
        """The study with these groups only, by name or `slug`, and the claims and figures that they suffice for.

        Raises:
            UserError: it has no such group.
        """
        wanted = {slug(name): name for name in names}
        groups = tuple(group for group in self.groups if slug(group.name) in wanted)
        kept = [group.name for group in groups]
        for name in wanted.keys() - {slug(name) for name in kept}:
            there = ", ".join(repr(group.name) for group in self.groups)
            raise UserError(f"--groups {wanted[name]!r} is not a group of {self.name}: it has {there}")
        figures = [replace(one, groups=tuple(name for name in one.groups if name in kept)) for one in self.figures]
        return replace(
            self,
            groups=groups,
            claims=tuple(one for one in self.claims if one.better[0] in kept and one.worse[0] in kept),
            figures=tuple(one for one in figures if one.groups),
        )


def slug(text: str) -> str:
    """A name for a folder: lower-case letters of any script, digits, underscores, dots and hyphens.

    >>> slug("6 M MACs, reinvested")
    '6-m-macs-reinvested'
    """
    composed = unicodedata.normalize("NFC", text.lower())  # the same bytes on all file systems
    return re.sub(r"[^\w.]+", "-", composed).strip("-.") or "-"


def check_slugs(names: Sequence[str], what: str) -> None:
    """Refuse names that would share a folder.

    Raises:
        UserError: two names have the same `slug`.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.get(slug(name))
        seen[slug(name)] = name
        if other is not None:
            raise UserError(f"{what} {other!r} and {name!r} would share a folder: rename one")
