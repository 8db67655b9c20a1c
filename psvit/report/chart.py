"""The interactive plot: points whose axes the reader chooses, drawn by plotly in the page. No torch here."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from string import Template

from psvit.report.figures import NIGHT, PALETTE, SYMBOLS


@dataclass(frozen=True)
class Chart:
    """Points with several figures each, of which the reader chooses one for each axis.

    Args:
        columns: figures of all points, by a short name; None, and what is not finite, is left out of the plot.
        names: what each column is, with its unit.
        across: columns to choose from for the horizontal axis, the first at first.
        up: columns to choose from for the vertical axis.
        text: of each point, shown when it is pointed at; lines are parted by newlines.
        groups: for each group of points, by its name, their numbers, in the order they are drawn.
        pale: names of groups that stay in the background, the palest first.
        lines: points to join by a stair, for each pair of axes, by ``"UP ACROSS"``.
        line: name of that stair.
        chosen: numbers of points that wear a star.
        errors: half the height of each point's interval, by the column that goes up.
        labels: short texts that stand beside the points.
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
    labels: Sequence[str] = ()

    def html(self, number: int) -> str:
        """The plot's place in the page, its data and its choices.

        Args:
            number: tells it from the others in the page.
        """
        data = {
            **vars(self),  # plotly reads tags in what it writes
            "columns": {column: _finite(values) for column, values in self.columns.items()},
            "errors": {column: _finite(values) for column, values in self.errors.items()},
            "names": {column: html.escape(name, quote=False) for column, name in self.names.items()},
            "text": [html.escape(text, quote=False).replace("\n", "<br>") for text in self.text],
            "groups": {html.escape(name, quote=False): points for name, points in self.groups.items()},
            "pale": [html.escape(name, quote=False) for name in self.pale],
            "line": html.escape(self.line, quote=False),
            "labels": [html.escape(label, quote=False) for label in self.labels],
        }
        written = json.dumps(data, separators=(",", ":"), allow_nan=False)
        safe = written.replace("<", "\\u003c")  # nothing in it can end the script
        return (
            f'<div class="chart" id="chart{number}">\n<form>{self._choice("across", self.across)}'
            f"{self._choice('up', self.up)}</form>\n"
            f'<div class="plot"><noscript>The plot needs JavaScript.</noscript></div>\n'
            f'<script type="application/json">{safe}</script>\n</div>'
        )

    def _choice(self, name: str, columns: Sequence[str]) -> str:
        options = "".join(
            f'<option value="{html.escape(column)}">{html.escape(self.names[column])}</option>' for column in columns
        )
        return f'<label>{name} <select name="{name}">{options}</select></label>\n'


def _finite(values: Sequence[float | None]) -> list[float | None]:
    """The values with None for those that JSON cannot hold."""
    return [None if value is None or not isfinite(value) else value for value in values]


SCRIPT = Template("""
"use strict";
const DAY = $day, NIGHT = $night, SYMBOLS = $symbols;
const dark = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(hover: none)").matches;
let printing = false;
const charts = [...document.querySelectorAll(".chart")].map(place => {
  const data = JSON.parse(place.querySelector("script").textContent), columns = data.columns;
  const plot = place.querySelector(".plot"), form = place.querySelector("form");
  const names = Object.keys(data.groups);
  function draw() {
    const across = form.across.value, up = form.up.value, night = dark.matches && !printing;
    const shade = i => (night ? NIGHT : DAY)[i % DAY.length];
    const ink = night ? "#e6e8eb" : "#1f2328", grid = night ? "#343a42" : "#e3e6ea", red = shade(1);
    const trace = (points, more) => ({
      type: "scatter", mode: "markers", hovertemplate: "%{customdata}<extra></extra>",
      x: points.map(i => columns[across][i]), y: points.map(i => columns[up][i]),
      customdata: points.map(i => data.text[i]), ...more
    });
    const one = names.length - data.pale.length < 2;
    const traces = names.map((name, i) => {
      const points = data.groups[name], place = data.pale.indexOf(name);
      const paler = place < 0 ? 0 : data.pale.length - place;
      const color = one ? shade(0) : shade(i);
      const error = data.errors[up] && {
        type: "data", array: points.map(i => data.errors[up][i]), color, thickness: 1.5, width: 4
      };
      return trace(points, {
        name, showlegend: !data.labels.length, ...(error ? { error_y: error } : {}),
        ...(data.labels.length ? { mode: "markers+text", text: points.map(i => data.labels[i]),
          textposition: points.map(i => side(columns[across], columns[up], i)), cliponaxis: false } : {}),
        marker: {
          color, size: paler ? 5 : data.labels.length ? 10 : 7, opacity: paler ? 0.6 * Math.pow(0.6, paler) : 0.9,
          symbol: one ? "circle" : SYMBOLS[i % SYMBOLS.length]
        }
      });
    });
    const stair = data.lines[up + " " + across];
    if (stair) traces.push(trace(stair, {
      name: data.line, mode: "lines+markers", line: { shape: "hv", color: red, width: 2 },
      marker: { color: red, size: 7 }
    }));
    if (data.chosen.length) traces.push(trace(data.chosen, {
      name: "chosen", marker: { symbol: "star", size: 17, color: red, line: { color: ink, width: 1.5 } }
    }));
    const axis = name => ({
      title: { text: data.names[name], standoff: 8 }, gridcolor: grid, linecolor: grid, zeroline: false,
      automargin: true,
      ...(["macs", "params"].includes(name) ? { tickformat: "~s" } : {})
    });
    Plotly.react(plot, traces, {
      autosize: !printing, ...(printing ? { width: 600, height: 340 } : {}), dragmode: touch ? false : "zoom",
      font: { color: ink, size: 13, family: "system-ui, sans-serif" }, paper_bgcolor: "transparent",
      plot_bgcolor: "transparent", margin: { l: 10, r: 10, t: 32, b: 10 }, xaxis: axis(across), yaxis: axis(up),
      legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" }, hovermode: "closest",
      hoverlabel: { align: "left" }, modebar: { bgcolor: "transparent", color: grid, activecolor: ink }
    }, {
      responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
      showSendToCloud: false, plotlyServerURL: ""  // a button that would upload the plot
    });
  }
  function side(x, y, i) {  // a text stands towards the middle of the plot, two that would meet apart
    const ends = column => {
      const known = column.filter(value => value !== null);
      return [Math.min(...known), Math.max(...known)];
    };
    const [left, right] = ends(x), [low, high] = ends(y);
    const apart = (column, j, size) => Math.abs(column[j] - column[i]) / size;
    const near = x.map((_, j) => j).filter(
      j => j !== i && apart(x, j, right - left || 1) < 0.3 && apart(y, j, high - low || 1) < 0.07
    );
    const above = near.every(j => y[i] > y[j] || (y[i] === y[j] && i < j));
    const level = near.length ? (above ? "top" : "bottom") : "middle";
    return level + (x[i] > (left + right) / 2 ? " left" : " right");
  }
  plot.querySelector("noscript").remove();
  form.addEventListener("change", draw);
  return draw;
});
const redraw = () => charts.forEach(draw => draw());
dark.addEventListener("change", redraw);
addEventListener("beforeprint", () => { printing = true; redraw(); });
addEventListener("afterprint", () => { printing = false; redraw(); });
redraw();
""").substitute(day=json.dumps(PALETTE), night=json.dumps(NIGHT), symbols=json.dumps(SYMBOLS))
