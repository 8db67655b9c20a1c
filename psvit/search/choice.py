"""The choice: among the networks whose score cannot be told from the best one's, the fastest on this machine.

Cannot be told: the mean difference of the losses, paired image by image, is at most one standard error (the
one-standard-error rule; Breiman et al. 1984, "Classification and Regression Trees").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from psvit.arch.arch import Arch
from psvit.errors import UserError, one_line
from psvit.files import write_json
from psvit.report.tables import Table
from psvit.search.front import LISTED, Ranked, name_columns, row_of

CHOICE = "choice.json"
"""The choice, kept in the folder of a search: measurements cannot be repeated."""

COMPARED = 64
"""At most this many networks are compared with the best, image by image."""

MEASURED = 12
"""At most this many of the tied networks are measured: the best, and the cheapest of the others."""

AT_A_TIME = 4
"""Networks measured at a time where no tied one keeps the latency limit."""

SLACK = 1.02
"""Measurements vary by this factor: the tolerance of a latency limit, and of what counts as equally fast."""

Ties = Literal["latency", "macs"]
Seconds = Callable[[Sequence[Arch]], Sequence[float]]


@dataclass(frozen=True)
class Tie:
    """A network whose loss cannot be told from the least.

    Args:
        rank: 1 is the best.
        excess: mean difference of its loss to the least, in nats.
        error: standard error of that mean, paired over the images.
        ms: measured milliseconds for a batch; None if it was not measured.
    """

    rank: int
    excess: float
    error: float
    ms: float | None = None


@dataclass(frozen=True)
class Choice:
    """The network to take, and why.

    Args:
        rank: its rank.
        ms: its measured milliseconds for a batch; None if it was not measured.
        why: the reason, a sentence or two.
        ties: the networks that cannot be told from the best, the best among them.
    """

    rank: int
    ms: float | None
    why: str
    ties: tuple[Tie, ...]

    def to_dict(self, ranked: Sequence[Ranked]) -> dict[str, Any]:
        """Plain data, with the score and cost of every tied network."""
        return {**asdict(self), "ties": [{**row_of(ranked[tie.rank - 1]), **asdict(tie)} for tie in self.ties]}


def choose(
    ranked: Sequence[Ranked],
    losses: Callable[[Sequence[Arch]], NDArray[np.float64]],
    seconds: Seconds,
    limit: float | None = None,
    ties: Ties = "latency",
) -> Choice:
    """Choose among the networks that were scored on the largest slice.

    Args:
        ranked: all scored networks, best first.
        losses: gives the losses (networks, images) on that slice.
        seconds: measures the seconds for a batch of each network.
        limit: of the latency, in seconds; None for none.
        ties: take the fastest of the tied networks, or the one of fewest MACs.

    Raises:
        UserError: no network is within the limit when it is measured.
    """
    final = [one for one in ranked if one.score.images == ranked[0].score.images]
    tied = tied_with_best(losses([one.arch for one in final[:COMPARED]]))
    # the best, so that its time is known, and the cheapest of the others
    costs = {tie.rank: one.macs if ties == "macs" else one.cost for tie in tied for one in [final[tie.rank - 1]]}
    near = sorted(tied, key=lambda tie: (tie.rank > 1, costs[tie.rank], tie.rank))[:MEASURED]
    measured: dict[int, float] = {}
    if limit is not None or (len(tied) > 1 and ties == "latency"):
        measured = dict(
            zip((tie.rank for tie in near), seconds([final[tie.rank - 1].arch for tie in near]), strict=True)
        )
        near = [tie for tie in near if limit is None or measured[tie.rank] <= SLACK * limit]
    tied = [Tie(tie.rank, tie.excess, tie.error, _ms(measured.get(tie.rank))) for tie in tied]
    if not near:
        assert limit is not None
        rank, second = _first_within(limit, [one for one in final if one.rank not in measured], seconds)
        why = f"none of the {len(measured)} measured ties keeps the limit; this is the next best that does"
        return Choice(rank, _ms(second), why, tuple(tied))
    if ties == "latency" and measured:
        fastest = min(measured[tie.rank] for tie in near)
        rank = min(tie.rank for tie in near if measured[tie.rank] <= SLACK * fastest)
    else:
        rank = min((final[tie.rank - 1].macs, tie.rank) for tie in near)[1]
    return Choice(rank, _ms(measured.get(rank)), _why(rank, final, tied, ties), tuple(tied))


def tied_with_best(losses: NDArray[np.float64]) -> list[Tie]:
    """The rows that cannot be told from the first; the first, of the least mean, is always among them.

    Args:
        losses: (networks, images), of ascending mean.
    """
    differences = losses - losses[:1]
    images = losses.shape[1]
    excess = differences.mean(axis=1).tolist()
    errors = (differences.std(axis=1, ddof=min(1, images - 1)) / images**0.5).tolist()
    others = zip(range(2, len(losses) + 1), excess[1:], errors[1:], strict=True)
    return [Tie(1, 0.0, 0.0), *(Tie(*other) for other in others if other[1] <= other[2])]


def _first_within(limit: float, ranked: Sequence[Ranked], seconds: Seconds) -> tuple[int, float]:
    """Rank and seconds of the best network that keeps the limit."""
    for start in range(0, len(ranked), AT_A_TIME):
        group = ranked[start : start + AT_A_TIME]
        for one, second in zip(group, seconds([one.arch for one in group]), strict=True):
            if second <= SLACK * limit:
                return one.rank, second
    raise UserError(
        f"none of the best networks keeps {1000 * limit:.3g} ms when measured: the machine is slower now than when its "
        "latency table was measured; try again with --resume, or search anew with another --budget"
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def _why(rank: int, final: Sequence[Ranked], tied: Sequence[Tie], ties: Ties) -> str:
    images = f"{final[0].score.images:,} validation images"
    if len(tied) == 1:
        return f"no other network is within one standard error of its loss on {images}"
    ms = {tie.rank: tie.ms for tie in tied if tie.ms is not None}
    told = f"{len(tied)} networks are within one standard error of the least loss, paired over {images}"
    if ties == "macs" or not ms:
        return f"{told}; this one has the fewest MACs"
    fastest = "is the fastest" if rank > 1 else "is as fast as the fastest"
    apart = f", {ms[rank]:.3g} ms where the least loss takes {ms[1]:.3g} ms" if rank > 1 else f", {ms[rank]:.3g} ms"
    return f"{told}; of {len(ms)} measured in turns this one {fastest}{apart}"


def keep_choice(folder: Path, choice: Choice, ranked: Sequence[Ranked]) -> None:
    """Write the choice into the folder of its search."""
    write_json(folder / CHOICE, choice.to_dict(ranked))


def kept_choice(folder: Path, ranked: Sequence[Ranked]) -> Choice | None:
    """The choice in the folder; None if none was made yet, or among other scores.

    Raises:
        UserError: the file is broken.
    """
    path = folder / CHOICE
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        ties = tuple(Tie(tie["rank"], tie["excess"], tie["error"], tie["ms"]) for tie in data["ties"])
        choice = Choice(data["rank"], data["ms"], data["why"], ties)
        if max(choice.rank, *(tie.rank for tie in ties), 1) > len(ranked):
            return None
        return choice if choice.to_dict(ranked) == data else None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is broken ({one_line(error, kind=True)}): remove it to choose anew") from error


def ties_table(choice: Mapping[str, Any]) -> Table:
    """A table of `Choice.to_dict`: the tied networks, those that were measured first."""
    ties = sorted(choice["ties"], key=lambda tie: (tie["ms"] is None, tie["ms"] or 0.0, tie["rank"]))[:LISTED]
    headings, names = name_columns(ties)
    rows = [
        (*name, f"{tie['macs'] / 1e6:,.2f}", "" if tie["ms"] is None else f"{tie['ms']:.3g}",
         f"{tie['excess']:.4f} ± {tie['error']:.4f}", f"{tie['top1']:.2f}", f"{tie['rank']:,}")
        for name, tie in zip(names, ties, strict=True)
    ]  # fmt: skip
    return Table(
        (*headings, "M MACs", "ms", "loss above the least", "top-1 %", "rank"),
        rows,
        len(headings),
        f"{len(rows)} of {len(choice['ties'])} networks whose loss is within one standard error (±) of the least.",
        [place for place, tie in enumerate(ties) if tie["rank"] == choice["rank"]],
    )
