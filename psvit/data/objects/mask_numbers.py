"""The numbers or colours in masks -> classes. No torch here.

Consecutive numbers from 0 are class numbers. A few numbers far apart are one class each. Many numbers between two or
more that fill areas come from smoothed edges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from psvit.data.objects.class_names import ClassNames, unpacked
from psvit.data.objects.objects import IGNORED
from psvit.errors import UserError

FAR = 16
"""Numbers this far apart are not noise of each other."""
MOST_APART = 32
"""Up to this many numbers may be one class each if they have gaps, or need not fill areas if they have none."""
NOISE = 0.05
"""Largest fraction of pixels with numbers closer than `FAR` to another number, in a lossless format."""
EDGES = 0.5
"""Largest fraction of all pixels on smoothed edges."""
MOST_BLENDED = 0.02
"""Largest fraction of all pixels with the same colour on smoothed edges."""


@dataclass(frozen=True, eq=False)
class Numbers:
    """The meaning of the numbers or packed colours in masks.

    Args:
        keys: (n,) known numbers, ascending.
        means: (n,) the class of each, or 255 for ignored.
        rest: other numbers are refused, ignored, or take the class of the nearest key.
        colours: keys are colours.
        told: the classes, for the message about another number.
    """

    keys: NDArray[np.int64]
    means: NDArray[np.int64]
    rest: str = "refused"
    colours: bool = False
    told: str = ""

    def classes(self, values: NDArray[np.int64], name: str) -> NDArray[np.int64]:
        """Class number of each pixel.

        Raises:
            UserError: a number without a class.
        """
        above = np.searchsorted(self.keys, values).clip(max=len(self.keys) - 1)
        if self.rest == "nearest":
            below = (above - 1).clip(min=0)
            nearer = np.abs(values - self.keys[below]) < np.abs(self.keys[above] - values)
            return self.means[np.where(nearer, below, above)]
        known = self.keys[above] == values
        if self.rest == "refused" and not known.all():
            wrong = int(values[~known][0])
            what = f"the colour {unpacked(wrong)}" if self.colours else f"the number {wrong}"
            raise UserError(f"mask {name} holds {what}, but the set has {self.told}: mend it")
        return np.where(known, self.means[above], IGNORED)


def numbered(count: int, first: int = 0) -> Numbers:
    """`count` class numbers from `first`; smaller numbers and 255 are ignored."""
    keys = np.append(np.arange(first + count), IGNORED)
    means = np.append(np.full(first, IGNORED), np.append(np.arange(count), IGNORED))
    told = f"classes {first} to {first + count - 1}, and {IGNORED} for ignored pixels"
    return Numbers(keys, means, told=told)


def each_a_class(keys: Sequence[int], rest: str = "refused", colours: bool = False) -> Numbers:
    """Each of these numbers or colours is a class, in this order; 255 is ignored unless it is one of the numbers."""
    pairs = [(key, at) for at, key in enumerate(keys)]
    if not colours and IGNORED not in keys and rest != "nearest":
        pairs.append((IGNORED, IGNORED))
    pairs.sort()
    some = ", ".join((unpacked(key) if colours else str(key)) for key in keys[:5]) + ", ..." * (len(keys) > 5)
    told = f"classes for {'the colours' if colours else 'the numbers'} {some} alone"
    return Numbers(np.asarray([key for key, _ in pairs]), np.asarray([at for _, at in pairs]), rest, colours, told)


@dataclass
class Seen:
    """The numbers or colours in the training masks.

    Args:
        pixels: count of each number; solid: numbers that fill a square of nine pixels somewhere.
        lossy: the name of a mask in a lossy format.
    """

    pixels: Counter[int] = field(default_factory=Counter)
    solid: set[int] = field(default_factory=set)
    lossy: str = ""

    def add(self, values: NDArray[np.integer[Any]]) -> None:
        """Count the numbers (H, W) of one mask."""
        found, counts = _counted(values)
        self.pixels.update(dict(zip(found, counts, strict=True)))
        if self.solid.issuperset(found):
            return
        row = (values[:, :-2] == values[:, 1:-1]) & (values[:, 1:-1] == values[:, 2:])
        middle = values[:, 1:-1]
        same = middle[:-1] == middle[1:]
        whole = row[:-2] & row[1:-1] & row[2:] & same[:-1] & same[1:]
        self.solid.update(_counted(middle[1:-1][whole])[0])

    def share(self, keys: Sequence[int]) -> float:
        """The fraction of all pixels with these numbers."""
        return sum(self.pixels[key] for key in keys) / max(self.pixels.total(), 1)

    def areas(self) -> list[int] | None:
        """The numbers that fill areas, if smoothing or JPEG explains all others; else None."""
        groups: list[list[int]] = []
        for key in sorted(self.solid):
            if groups and key - groups[-1][-1] < FAR:
                groups[-1].append(key)
            else:
                groups.append([key])
        peaks = [max(group, key=lambda key: self.pixels[key]) for group in groups]
        for peak, group in zip(peaks, groups, strict=True):
            if not self.lossy and sum(self.pixels[key] for key in group if key != peak) > NOISE * self.pixels[peak]:
                return None
        others = [key for key in self.pixels if key not in peaks]
        few = len(others) < 3 or len(others) <= len(peaks) or len(peaks) < 2
        if few or self.share(others) > EDGES or min(others) <= peaks[0] - FAR or max(others) >= peaks[-1] + FAR:
            return None
        return peaks


def _counted(values: NDArray[np.integer[Any]]) -> tuple[list[int], list[int]]:
    """The numbers that occur, ascending, and their counts."""
    if values.dtype.itemsize > 2 and values.size and not 0 <= values.min() <= values.max() < 1 << 16:
        found, counts = np.unique(values, return_counts=True)
        return found.tolist(), counts.tolist()
    counts = np.bincount(values.ravel())  # several times faster
    there = np.flatnonzero(counts)
    return there.tolist(), counts[there].tolist()


@dataclass(frozen=True)
class Meaning:
    """The meaning of the numbers, the class names, and lines for the user."""

    numbers: Numbers
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def understand(where: str, seen: Seen, named: ClassNames | None, colours: bool) -> Meaning:
    """Derive the classes from the training masks.

    Args:
        where: the set, for messages.
        seen: numbers or colours in the masks.
        named: class names, if known.
        colours: the masks hold colours.

    Raises:
        UserError: the meaning is ambiguous, or a number has no name.
    """
    if colours:
        return _colours(where, seen, named)
    values = sorted(seen.pixels)
    areas = seen.areas()
    if seen.lossy and (areas is None or len(areas) > 2):
        raise UserError(f"{seen.lossy} is of a format that changes numbers, and the masks are not of two numbers far "
                        "apart: save masks as PNG")  # fmt: skip
    if named is not None and named.keys is not None and not named.colours:
        return _named_numbers(where, seen, named)
    classes = [value for value in values if value != IGNORED]
    count = None if named is None else len(named.names)
    if values == [0, IGNORED] and (count is None or count <= 2):
        note = f"{where}: the masks hold 0 and {IGNORED} only: {IGNORED} is taken as class 1, not as ignored"
        return Meaning(each_a_class((0, IGNORED)), _names(where, (0, IGNORED), named), (note,))
    if named is not None and (not classes or classes[-1] < len(named.names)):
        return Meaning(numbered(len(named.names)), named.names)
    if areas is not None and count in (None, len(areas)):
        others = [key for key in seen.pixels if key not in areas]
        rest = "nearest" if len(areas) == 2 else "ignored"
        note = _edges(where, seen, areas, others, rest)
        return Meaning(each_a_class(areas, rest), _names(where, areas, named), (note,))
    if named is None:
        return _unnamed(where, seen, classes)
    for keys in (classes, values) if _have_gaps(classes) else ():
        if count == len(keys):
            return Meaning(each_a_class(keys), named.names, (_in_order(where, seen, keys),))
    largest = max(key for key, _ in seen.pixels.most_common(count))
    raise UserError(f"{where}: the masks hold the numbers {_listed(values)}, but {named.source or 'the network'} names "
                    f"{count} classes: give each number a line, as in '{largest}: name'")  # fmt: skip


def _have_gaps(classes: Sequence[int]) -> bool:
    """Whether at most half of the numbers up to the highest occur, so they are not class numbers."""
    return bool(classes) and 2 * len(classes) <= classes[-1]


def _unnamed(where: str, seen: Seen, classes: list[int]) -> Meaning:
    most = classes[-1] if classes else 0
    of_areas = len(classes) <= MOST_APART or 2 * len(seen.solid & set(classes)) >= len(classes)
    if not _have_gaps(classes) and most < IGNORED and of_areas:
        missing = sorted(set(range(most + 1)) - set(classes))
        lack = f"{where}: no training mask holds the numbers {_listed(missing)}: classes without a pixel to learn from"
        return Meaning(numbered(most + 1), _names(where, range(most + 1), None), (lack,) if missing else ())
    if 1 < len(classes) <= MOST_APART:
        return Meaning(each_a_class(classes), _names(where, classes, None), (_in_order(where, seen, classes),))
    largest = sorted(key for key, _ in seen.pixels.most_common(4))
    raise UserError(
        f"{where}: the masks hold {len(classes)} numbers up to {most}, which are no class numbers; "
        f"{100 * seen.share(largest):.0f} % of the pixels are {_listed(largest)}: give classes.txt a line for each "
        f"that is a class, as in '{largest[-1]}: name', or save masks of numbers 0, 1, 2, ..."
    )


def _named_numbers(where: str, seen: Seen, named: ClassNames) -> Meaning:
    keys = named.keys or ()
    others = [value for value in seen.pixels if value not in keys and value != IGNORED]
    if not others:
        return Meaning(each_a_class(keys), named.names)
    if len(others) < 3 or len(keys) < 2 or set(others) & (seen.solid - _near(keys)) or seen.share(others) > EDGES:
        wrong = max(others, key=lambda value: seen.pixels[value])
        line = f"in {named.source} a line, as in '{wrong}: name'"
        if not named.source:
            line = f"in a classes.txt a line with a class of the network, as in '{wrong}: {named.names[-1]}'"
        raise UserError(f"{where}: no class has the number {wrong}, which {100 * seen.share([wrong]):.2g} % of the "
                        f"pixels of the masks are: give it {line}, or mend the masks")  # fmt: skip
    rest = "nearest" if len(keys) == 2 else "ignored"
    return Meaning(each_a_class(keys, rest), named.names, (_edges(where, seen, sorted(keys), others, rest),))


def _near(keys: Sequence[int]) -> set[int]:
    return {near for key in keys for near in range(key - FAR + 1, key + FAR)}


def _edges(where: str, seen: Seen, keys: Sequence[int], others: Sequence[int], rest: str) -> str:
    done = "taken for the nearer of the two" if rest == "nearest" else "ignored"
    return (f"{where}: the masks hold {_listed(keys)}, a class each, and {len(others)} numbers between them in "
            f"{100 * seen.share(others):.2g} % of the pixels, as smoothed edges do: those are {done}")  # fmt: skip


def _in_order(where: str, seen: Seen, keys: Sequence[int]) -> str:
    ignored = f", {IGNORED} is ignored" if IGNORED in seen.pixels and IGNORED not in keys else ""
    return (f"{where}: the masks hold the numbers {_listed(keys)}: each is taken for a class, in this order{ignored}; "
            f"a classes.txt with lines such as '{keys[-1]}: name' says otherwise")  # fmt: skip


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:8])) + (f" and {len(values) - 8} more" if len(values) > 8 else "")


def _names(where: str, keys: Sequence[int], named: ClassNames | None) -> tuple[str, ...]:
    if named is None:
        return tuple(f"class {key}" for key in keys)
    if len(named.names) < len(keys):
        raise UserError(f"{where}: the masks have {len(keys)} classes, but {named.source or 'the network'} names "
                        f"{len(named.names)}: give a name a line, the background's first")  # fmt: skip
    return named.names


def _colours(where: str, seen: Seen, named: ClassNames | None) -> Meaning:
    total = len(seen.pixels)
    common = [key for key, _ in seen.pixels.most_common(5)]
    if named is None or not named.colours:
        some = "; ".join(map(unpacked, common))
        blended = ", more than there are classes: save them as PNG without smoothing, and" if total > IGNORED else ":"
        raise UserError(f"{where}: the masks hold {total} colours, such as {some}{blended} give classes.txt a line for "
                        f"each class, as in 'name {unpacked(common[0])}', or save class numbers")  # fmt: skip
    keys = named.keys or ()
    others = [key for key in seen.pixels if key not in keys]
    wrong = max(others, key=lambda key: seen.pixels[key], default=0)
    if others and (wrong in seen.solid or seen.share([wrong]) > MOST_BLENDED or seen.share(others) > EDGES):
        raise UserError(f"{named.source} has no class for the colour {unpacked(wrong)}, which "
                        f"{100 * seen.share([wrong]):.2g} % of the pixels of the masks are: give it a line, as in "
                        f"'name {unpacked(wrong)}'")  # fmt: skip
    notes: tuple[str, ...] = ()
    if others:
        notes = (f"{where}: {len(others)} colours that are no class's, in {100 * seen.share(others):.2g} % of the "
                 "pixels, as smoothed edges have, are ignored",)  # fmt: skip
    return Meaning(each_a_class(keys, "ignored" if others else "refused", colours=True), named.names, notes)
