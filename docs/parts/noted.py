"""A table in Markdown and the note below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psvit.report.tables import Table, to_markdown

Data = Mapping[str, Any]
"""The content of a file of docs/results, or a part of it."""


def noted_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int, note: str) -> str:
    """A table whose first `left` columns are aligned to the left, and a note below it."""
    return f"{to_markdown(Table(headings, rows, left))}\n\n{note}"
