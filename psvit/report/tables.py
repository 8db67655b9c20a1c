"""A table as plain data, printed by rich or written as Markdown; see also `psvit.report.page.Page.table`. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Table(NamedTuple):
    """Cells of text, with ``**bold**`` and `code` as in Markdown.

    Args:
        headings: of the columns.
        rows: cells of each row.
        left: number of left-aligned columns (words) at the start; the others hold numbers.
        caption: text below the table.
        highlight: indices of rows in bold.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    caption: str = ""
    highlight: Sequence[int] = ()


def to_markdown(table: Table) -> str:
    """The table in Markdown, without its caption."""
    rule = ["---" if column < table.left else "---:" for column in range(len(table.headings))]
    rows = ([" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in table.rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (table.headings, rule, *rows))


def print_table(table: Table, title: str = "") -> None:
    """Print the table in the terminal's width, or in 140 characters without a terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(to_rich(table, title))


def to_rich(table: Table, title: str = "") -> RichTable:
    """The table for a terminal; cells are shown literally, without the marks of Markdown."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    shown = RichTable(
        title=escape(title) or None, title_justify="left", title_style="bold", box=None, header_style="bold",
        pad_edge=False, caption=escape(table.caption) or None, caption_justify="left",
    )  # fmt: skip
    for number, heading in enumerate(table.headings):
        words = number < table.left
        shown.add_column(
            escape(heading), justify="left" if words else "right", overflow="fold" if words else "ellipsis"
        )
    for number, row in enumerate(table.rows):
        cells = (escape(cell.replace("**", "").replace("`", "")) for cell in row)
        shown.add_row(*cells, style="bold" if number in table.highlight else None)
    return shown
