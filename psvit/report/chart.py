"""The interactive plot: points whose axes the reader chooses, drawn by plotly in the page. No torch here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from psvit.report.figures import PALETTE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")
CONFIG = {"displaylogo": False, "responsive": True, "plotlyServerURL": ""}  # no button that uploads the plot


@dataclass(frozen=True)
class Chart:
    """Points with several metrics each; the reader chooses which two are drawn.

    Args:
        columns: metrics of all points, by a short name, which the menu shows; None and what is not finite are not
            drawn.
        names: what each column is, with its unit: the titles of the axes.
        across: columns for the horizontal axis, the first one drawn first.
        up: columns for the vertical axis.
        text: of each point, shown when it is pointed at; lines are parted by newlines.
        groups: for each group of points, by its name, their numbers, in the order they are drawn.
        pale: names of groups that stay in the background, the palest first.
        lines: points to join by a stair, for each pair of axes, by ``"UP ACROSS"``.
        line: name of that stair.
        chosen: numbers of points that wear a star.
        errors: half the height of each point's interval, by the column that goes up.
    """

    columns: Mapping[str, Sequence[float | None]]
    names: Mapping[str, str]
    across: Sequence[str]
    up: Sequence[str]
    text: Sequence[str]
    groups: Mapping[str, Sequence[int]]
    pale: Sequence[str] = ()
    lines: Mapping[str, Sequence[int]] = field(default_factory=dict)
    line: str = "front"
    chosen: Sequence[int] = ()
    errors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def figure(self) -> Figure:
        """The plot, with a menu of the pairs of axes."""
        from plotly import graph_objects as go  # slow to read

        pairs = [(up, across) for up in self.up for across in self.across]
        first, titles = self._places(*pairs[0]), self._titles(*pairs[0])
        buttons = [{"label": f"{up} against {across}", "method": "update",
                    "args": [self._places(up, across), self._titles(up, across)]} for up, across in pairs]  # fmt: skip
        layout = go.Layout(
            titles, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", dragmode=False, hovermode="closest",
            margin={"l": 10, "r": 10, "t": 60, "b": 10}, legend={"orientation": "h", "yref": "container", "y": 0},
            font={"size": 13, "family": "system-ui, sans-serif"}, hoverlabel={"align": "left"},
            modebar={"bgcolor": "rgba(0,0,0,0)", "color": PALETTE[-1], "activecolor": PALETTE[0]},
            updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}]
            if len(buttons) > 1 else [],
        )  # fmt: skip
        layout.update({axis: {"automargin": True, "zeroline": False, "gridcolor": "rgba(128,128,128,.3)",
                              "exponentformat": "SI"} for axis in ("xaxis", "yaxis")})  # fmt: skip
        figure = go.Figure(layout=layout)
        for number, trace in enumerate(self._traces()):
            figure.add_scatter(x=first["x"][number], y=first["y"][number], **trace)
            figure.data[-1].error_y.array = first["error_y.array"][number]
        return figure

    def _traces(self) -> list[dict[str, Any]]:
        """How each group, the stair and the star look."""
        traces: list[dict[str, Any]] = []
        one = len(self.groups) - len(self.pale) < 2
        for number, (name, points) in enumerate(self.groups.items()):
            paler = len(self.pale) - self.pale.index(name) if name in self.pale else 0
            place = 0 if one else number
            marker = {"color": PALETTE[place % len(PALETTE)], "symbol": SYMBOLS[place % len(SYMBOLS)],
                      "size": 5 if paler else 8, "opacity": 0.7 ** (paler + 1) if paler else 0.9}  # fmt: skip
            text = [html.escape(self.text[i], quote=False).replace("\n", "<br>") for i in points]
            traces.append({"name": html.escape(name, quote=False), "mode": "markers", "marker": marker, "text": text,
                           "hovertemplate": "%{text}<extra></extra>"})  # fmt: skip
        if self.lines:
            traces.append({"name": html.escape(self.line, quote=False), "mode": "lines", "hoverinfo": "skip",
                           "line": {"shape": "hv", "color": PALETTE[1], "width": 2}})  # fmt: skip
        if self.chosen:
            star = {"symbol": "star-open", "size": 17, "color": PALETTE[1], "line": {"width": 2}}
            traces.append({"name": "chosen", "mode": "markers", "marker": star, "hoverinfo": "skip"})
        return traces

    def _places(self, up: str, across: str) -> dict[str, list[Any]]:
        """Where the points of each trace lie, and their intervals, as plotly updates them."""
        traces = [*self.groups.values()]
        traces += [self.lines.get(f"{up} {across}", ())] * bool(self.lines) + [self.chosen] * bool(self.chosen)
        x, y = ([[_finite(self.columns[name][i]) for i in points] for points in traces] for name in (across, up))
        errors = [[_finite(self.errors[up][i]) for i in points] if up in self.errors else None
                  for points in self.groups.values()]  # fmt: skip
        return {"x": x, "y": y, "error_y.array": errors + [None] * (len(traces) - len(errors))}

    def _titles(self, up: str, across: str) -> dict[str, str]:
        titles = {"xaxis.title.text": self.names[across], "yaxis.title.text": self.names[up]}
        return {axis: html.escape(title, quote=False) for axis, title in titles.items()}


def _finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return value if value is not None and isfinite(value) else None
