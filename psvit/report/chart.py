"""An interactive scatter plot with selectable axes, drawn by plotly. No torch here."""

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
    """Points with several metrics each; a menu selects the two axes.

    Args:
        columns: values of all points by the short name in the menu; None and non-finite values are not drawn.
        names: title of the axis for each column, with its unit.
        across: columns for the horizontal axis, the default first.
        up: columns for the vertical axis, the default first.
        text: hover text of each point; may have several lines.
        groups: name of each group -> indices of its points, in drawing order.
        pale: names of groups in the background, the palest first.
        lines: for a pair of axes ``"UP ACROSS"``, indices of the points joined by a step line.
        line: name of that line.
        chosen: indices of points marked with a star.
        errors: for a vertical column, half the height of each point's error bar.
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
        from plotly import graph_objects as go  # slow to import

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
        """Name and style of the trace of each group, of the line and of the stars."""
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
        """Coordinates and error bars of each trace, as an update of plotly."""
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
    """`value`, or None if it is not finite (JSON has no such number)."""
    return value if value is not None and isfinite(value) else None
