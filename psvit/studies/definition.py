"""What a study asks: groups of networks, each trained with several seeds, and the claims that they test. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from psvit.data.data_config import DataConfig
from psvit.engine.train_config import Precision, Recipe
from psvit.errors import UserError

BASELINES = ("deit", "deit12", "psvit_1d", "psvit_2d")
SEARCHED = "searched"
"""The name of the network that a search of the group's budget finds."""

IDLE = ("threads", "workers", "accept_changes")
"""Settings of a training that change no result."""

Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Network:
    """A network of a group.

    Args:
        label: what the study calls it.
        network: searched, or a name as `psvit.pipeline.baselines.baseline` knows it.
        changes: fields of `Arch` that differ.
        scaled: to the group's MACs.
        seeds: of its trainings.
    """

    label: str
    network: str
    changes: tuple[tuple[str, Any], ...] = ()
    scaled: bool = True
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Group:
    """Networks that are trained alike.

    Args:
        name: what the study calls it.
        networks: what is trained.
        macs: MACs that they are scaled to, as text; None for none.
        data: the images; its seed is replaced by each training's.
        recipe: how they are trained.
        search: settings of the search for the network called searched, by the names of ``psvit search``'s flags.
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
        at_most: what the error of the better may be, over that of the worse.
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
        x: what lies across: macs, images (of training) or epochs, each group being a point of every network's line;
            none for means with their intervals, one under another.
    """

    groups: tuple[str, ...]
    x: Literal["macs", "images", "epochs"] | None = None


@dataclass(frozen=True)
class Study:
    """A study, read and checked; see the module's page for its file.

    Args:
        name: of its file.
        title: for headings.
        question: what the study answers, in a sentence or two.
        reads: the split whose metrics count: test (of the checkpoint that is best on the validation split, read once),
            or validation (of the last epoch).
        groups: what is trained.
        claims: what it tests.
        figures: of its results; by default the means of each group.
        quick: whether this is the small version.
        source: the study as `read_study` was asked for it.
        precision: of its trainings, unless --precision gives another; auto leaves it to the machine.
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
        apart = ("source", "precision") if self.precision == "auto" else ("source",)  # older results have none
        return {name: value for name, value in asdict(self).items() if name not in apart}


def is_ours(network: str) -> bool:
    """Whether a network is described by an Arch, and is not searched."""
    return network in BASELINES or set(network) <= set("AS-")


def slug(text: str) -> str:
    """A name for a folder: small letters of any script, digits, underscores, points and hyphens.

    >>> slug("6 M MACs, reinvested")
    '6-m-macs-reinvested'
    """
    composed = unicodedata.normalize("NFC", text.lower())  # some file systems keep accents apart, some do not
    return re.sub(r"[^\w.]+", "-", composed).strip("-.") or "-"


def check_slugs(names: Sequence[str], what: str) -> None:
    """Refuse names that would share a folder.

    Raises:
        UserError: two of them would.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.get(slug(name))
        seen[slug(name)] = name
        if other is not None:
            raise UserError(f"{what} {other!r} and {name!r} would share a folder: rename one")
