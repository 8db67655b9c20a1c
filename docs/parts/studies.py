"""Results of ``psvit study`` and ``psvit analyze`` -> the blocks of pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psvit.analysis.analysis_page import layer_legend, layer_table
from psvit.report.tables import Table, to_markdown
from psvit.studies.plan import slug
from psvit.studies.tables import claims_table, group_note, group_table, notes, study_markdown

Data = Mapping[str, Any]


def study_block(data: Data, name: str, part: str) -> str:
    """A study's tables: all of them, those of the part ``claims``, or of the group whose name has that slug.

    Raises:
        ValueError: no such part.
    """
    if not part:
        return study_markdown(data)
    if part == "claims":
        return "\n\n".join([to_markdown(claims_table(data)), *notes(data)])
    groups = {slug(group["name"]): group for group in data["groups"]}
    if part not in groups:
        raise ValueError(f"results:{name}.{part}: the study has no such group: {', '.join(['claims', *groups])}")
    group = groups[part]
    quick = "**This is the quick version of the study: its figures mean little.** " if data["quick"] else ""
    note = f"{quick}{group_note(group, data)} ±: 95 % confidence interval of the mean over seeds."
    return f"{to_markdown(group_table(group, data['reads']))}\n\n{note}"


def analysis_block(data: Data, name: str, part: str) -> str:
    """An analysis: its layers, what its columns mean, and its verdict in words (part ``verdict``: those alone).

    Raises:
        ValueError: no such part.
    """
    if part not in ("", "verdict"):
        raise ValueError(f"results:{name}.{part}: an analysis has only the part verdict, and figures")
    verdict = "\n".join(f"- {line}" for line in data["verdict"])
    if part:
        return verdict
    images = data["data"]
    size = "×".join(map(str, images["img_size"]))
    figures = "" if data["loss"] is None else f"; top-1 {data['top1']:.1f} %, loss {data['loss']:.3f}"
    network = data["network"] or data["model"]
    told = (
        f"`{network}`, {data['weights']} weights, on {images['images']} images of the validation split of "
        f"{images['name']} at "
        f"{size} pixels{figures}."
    )
    headings, rows = layer_table(data)
    return f"{told}\n\n{to_markdown(Table(headings, rows, 1))}\n\n{layer_legend(data)}.\n\n{verdict}"
