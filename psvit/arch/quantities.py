"""Parse and format numbers with units: 25M, 600 M, 5ms. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf

from psvit.errors import UserError

COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def parse_quantity(text: str, units: Mapping[str, float] = COUNTS) -> float | None:
    """``"25M"`` -> 25e6; None unless `text` is a positive number with one of `units`."""
    found = re.fullmatch(r"([0-9.]+(?:e[+-]?\d+)?)\s*([A-Za-z]*)", text)
    try:
        value = float(found[1]) * units[found[2]] if found else 0.0
    except (ValueError, KeyError):
        return None
    return value if 0 < value < inf else None


def parse_macs(text: str) -> float:
    """``"25M"`` -> 25e6; also G, k, or a plain number.

    Raises:
        UserError: not a positive number with one of these letters.
    """
    value = parse_quantity(text)
    if value is None:
        raise UserError(f"--macs {text!r} is not a positive number such as 25M or 1.25G")
    return value


def format_count(value: float, digits: int = 4) -> str:
    """``6e8`` -> ``"600 M"``, with at most `digits` digits."""
    size, unit = next(((size, unit) for unit, size in reversed(COUNTS.items()) if value >= size), (1.0, ""))
    return f"{value / size:.{digits}g} {unit}".rstrip()
