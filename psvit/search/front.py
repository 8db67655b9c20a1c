"""Scores -> a ranking, its Pareto front, and the files that show it. No torch here."""

from __future__ import annotations

import csv
import html
import json
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from psvit.arch import Arch
from psvit.errors import UserError, one_line
from psvit.files import replacing, write_json
from psvit.search.budget import Prices, readable
from psvit.search.scores import Score, name_of
from psvit.search.space import Space, steps_of

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("rank", "genotype", "widths", "loss", "top1", "images", "macs", "params", "latency_ms")
DRAWN = 5_000
"""The page draws at most so many networks: a phone still moves through them."""
LISTED = 20
"""Rows of a table in a terminal at most."""
COSTS = {"latency_ms": "predicted latency of a batch, ms", "macs": "MACs for one image", "params": "parameters"}
GOODS = {"loss": "hold-out loss under the supernet, nats", "top1": "hold-out top-1 under the supernet, %"}


@dataclass(frozen=True)
class Ranked:
    """A member, its score on the largest slice it was scored on, and what it costs.

    Args:
        arch: the member.
        score: on its largest slice.
        macs: for one image, params: parameters.
        latency: predicted seconds of a batch, where there is a latency table.
        on_front: no member scored on the same, largest slice of all has less loss for no more cost, or costs less for
            no more loss.
        rank: 1 is the best.
    """

    arch: Arch
    score: Score
    macs: int
    params: int
    latency: float | None
    on_front: bool
    rank: int

    @property
    def cost(self) -> float:
        """What the front weighs against the loss: the latency where there is one, else the MACs."""
        return self.macs if self.latency is None else self.latency


def fronts(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Non-dominated sorting: for each point the number of its front, 0 first; all coordinates are minimised.

    A point dominates another if it is nowhere greater and somewhere less; so equal points share a front. A point's
    front is one more than the last front of those that dominate it. NaN counts as infinite. Two coordinates take
    O(n log n), others at most a comparison of every pair.
    """
    clean = [tuple(inf if isnan(value) else value for value in point) for point in points]
    numbers: dict[tuple[float, ...], int] = {}
    members: list[list[tuple[float, ...]]] = []  # of every front so far
    least: list[float] = []  # the second coordinate of each front's last point: it never falls from front to front
    for point in sorted(set(clean)):  # what dominates a point stands before it
        if len(point) == 2:
            numbers[point] = number = bisect_right(least, point[1])
            least[number : number + 1] = [point[1]]
            continue
        low, high = 0, len(members)
        while low < high:  # what a front dominates, the fronts before it dominate too
            middle = (low + high) // 2
            beaten = any(all(a <= b for a, b in zip(other, point, strict=True)) for other in members[middle])
            low, high = (middle + 1, high) if beaten else (low, middle)
        if low == len(members):
            members.append([])
        members[low].append(point)
        numbers[point] = low
    return [numbers[point] for point in clean]


def pareto(points: Sequence[tuple[float, ...]]) -> list[bool]:
    """For each point whether no other dominates it; see `fronts`."""
    return [number == 0 for number in fronts(points)]


def rank(scores: Iterable[Score], space: Space, prices: Prices) -> list[Ranked]:
    """Every member that was scored, best first.

    A member counts with its largest slice, and members rank by that slice (larger first), then by loss, by cost, by
    genotype and widths: a total order, so the same scores in any order rank alike. The front is that of loss against
    latency where `prices` have it, else against MACs. Only members scored on the largest slice of all stand for it:
    losses on different slices are means over different images, so their difference may be the images'.

    Args:
        scores: of members of `space`; several of one member on different slices.
        space: for what the members have in common.
        prices: what they cost.
    """
    best: dict[tuple[str, tuple[int, ...]], Score] = {}
    for score in scores:
        name = score.genotype, score.widths
        if name not in best or _order(score) < _order(best[name]):
            best[name] = score
    found = []
    for (genotype, widths), score in best.items():
        arch = replace(space.like, genotype=genotype, widths=widths)
        macs, params, *seconds = prices.of(steps_of(arch))
        found.append(Ranked(arch, score, int(macs), int(params), seconds[0] if seconds else None, False, 0))
    found.sort(key=lambda one: (*_order(one.score)[:2], one.cost, *name_of(one.arch)))
    final = [one for one in found if one.score.images == found[0].score.images]
    front = pareto([(one.score.loss, one.cost) for one in final]) + [False] * (len(found) - len(final))
    return [replace(one, on_front=on, rank=i) for i, (one, on) in enumerate(zip(found, front, strict=True), start=1)]


def _order(score: Score) -> tuple[int, float, float]:
    return -score.images, inf if isnan(score.loss) else score.loss, -score.top1  # NaN has no place in an order


# The files -----------------------------------------------------------------------------------------------------------


def write_front(folder: Path, ranked: Sequence[Ranked], facts: Mapping[str, Any]) -> None:
    """Write ``front.html``, ``front.csv`` (every member) and, last, ``front.json`` (the front, cheap to dear).

    Args:
        folder: made if it is missing.
        ranked: what `rank` returned.
        facts: go into ``front.json`` beside ``front``. Of them the page tells ``data``, a name, ``budget``, limits by
            kind, and ``chosen``, genotype and widths; ``front.json`` gains the other figures of the chosen member,
            which need not be on the front: a latency that was measured may have ruled out what was predicted.
    """
    chosen = next((one for one in ranked if _is_chosen(one.arch.genotype, one.arch.widths, facts)), None)
    front = sorted((one for one in ranked if one.on_front), key=lambda one: (one.cost, one.rank))
    data = {**facts, **({"chosen": {**facts["chosen"], **_row(chosen)}} if chosen else {})}
    with replacing(folder / "front.html") as temporary:
        temporary.write_text(_page(ranked, chosen, facts), encoding="utf-8")
    with replacing(folder / "front.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, "on_front"), lineterminator="\n")
        writer.writeheader()
        for one in ranked:
            row = _row(one)
            writer.writerow({**row, "widths": " ".join(map(str, row["widths"])), "on_front": int(one.on_front)})
    write_json(folder / "front.json", {**data, "front": [_row(one) for one in front]})


def read_front(folder: Path) -> dict[str, Any]:
    """What ``front.json`` of a search's folder holds.

    Raises:
        UserError: it is missing or broken.
    """
    path = folder / "front.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no front.json: name the folder of a search, or finish it with --resume")
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        front_table(data)  # as far as it is read
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({one_line(error, kind=True)}): search again with --resume") from error
    return data


def front_table(data: Mapping[str, Any]) -> Table:
    """What `read_front` returned, for a terminal: cheap to dear, at most `LISTED` rows, the chosen one marked."""
    from rich.markup import escape
    from rich.table import Table

    chosen, count = data.get("chosen") or {}, len(data["front"])
    others = [row for row in data["front"] if not _is_chosen(row["genotype"], row["widths"], data)]
    rows = [*others, chosen] if "rank" in chosen else list(data["front"])
    timed = all(row["latency_ms"] is not None for row in rows)
    rows.sort(key=lambda row: (row["latency_ms" if timed else "macs"], row["rank"]))
    marked = [row is chosen for row in rows]
    ends = {0, len(rows) - 1} if rows else set()
    shown = thin(len(rows), LISTED, ends | {i for i, mark in enumerate(marked) if mark})
    images = f" on {rows[0]['images']:,} images" if rows else ""
    some = f"{len(shown)} of the " if len(shown) < len(rows) else "the "
    table = Table(box=None, header_style="bold", pad_edge=False, caption_justify="left", caption=(
        f"{some}{count:,} networks on the front, which holds what no other beats in loss and cost; loss and top-1 are "
        f"the supernet's{images} of the hold-out"))  # fmt: skip
    for heading in ("genotype", "widths"):
        table.add_column(heading, overflow="fold")
    for heading in ("M MACs", "M params", *(["ms"] if timed else []), "loss", "top-1 %", "rank"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for i in shown:
        row = rows[i]
        figures = [f"{row['macs'] / 1e6:,.2f}", f"{row['params'] / 1e6:,.3f}"]
        figures += [f"{row['latency_ms']:.4g}"] if timed else []
        figures += ["" if row["loss"] is None else f"{row['loss']:.4f}", f"{row['top1']:.2f}", f"{row['rank']:,}"]
        mark = ("chosen" if len(rows) == count else "chosen, off the front") if marked[i] else ""
        cells = (escape(row["genotype"]), " ".join(map(str, row["widths"])), *figures, mark)
        table.add_row(*cells, style="bold green" if mark else None)
    return table


def thin(count: int, limit: int, keep: Iterable[int] = ()) -> list[int]:
    """At most `limit` of the numbers below `count`, in order: all of `keep`, however many, and the others evenly."""
    kept = set(keep)
    others = [i for i in range(count) if i not in kept]
    room = min(max(0, limit - len(kept)), len(others))
    return sorted(kept | {others[(2 * i + 1) * len(others) // (2 * room)] for i in range(room)})


def _is_chosen(genotype: str, widths: Sequence[int], facts: Mapping[str, Any]) -> bool:
    chosen = facts.get("chosen") or {}
    return chosen.get("genotype") == genotype and list(chosen.get("widths", ())) == list(widths)


def _row(one: Ranked) -> dict[str, Any]:
    """The figures of a member as plain data; a loss that is no number is None, since JSON has no NaN."""
    score = one.score
    loss = score.loss if isfinite(score.loss) else None
    latency = None if one.latency is None else 1000 * one.latency
    values = (one.rank, one.arch.genotype, list(one.arch.widths), loss, score.top1, score.images)
    return dict(zip(COLUMNS, (*values, one.macs, one.params, latency), strict=True))


# The page ------------------------------------------------------------------------------------------------------------


def _page(ranked: Sequence[Ranked], chosen: Ranked | None, facts: Mapping[str, Any]) -> str:
    """A page that needs nothing but itself."""
    from plotly.offline import get_plotlyjs  # slow to read, and only needed here

    rows = [_row(one) for one in ranked]
    final = [i for i, row in enumerate(rows) if row["images"] == rows[0]["images"]]
    costs = [kind for kind in COSTS if all(row[kind] is not None for row in rows)]
    lines: dict[str, list[int]] = {}  # the front of each pair of axes, cheap to dear
    for cost in costs:
        for good, sign in (("loss", 1.0), ("top1", -1.0)):
            points = [(rows[i][cost], inf if rows[i][good] is None else sign * rows[i][good]) for i in final]
            front = [i for i, on in zip(final, pareto(points), strict=True) if on]
            lines[f"{good} {cost}"] = sorted(front, key=lambda i: (rows[i][cost], i))
    star = [] if chosen is None else [chosen.rank - 1]
    drawn = thin(len(rows), DRAWN, {*star, *(i for line in lines.values() for i in line)})
    place = {i: number for number, i in enumerate(drawn)}
    data = {
        "columns": {name: [rows[i][name] for i in drawn] for name in (*costs, *GOODS, "images")},
        "text": [_hover(ranked[i]) for i in drawn],
        "lines": {axes: [place[i] for i in line] for axes, line in lines.items()},
        "chosen": [place[i] for i in star],
        "names": {**COSTS, **GOODS},
    }
    notes = []
    if rows:
        notes.append(f"The line joins the front, the networks that no other beats on both axes, among the "
                     f"{len(final):,} scored on {rows[0]['images']:,} images of the hold-out.")  # fmt: skip
    if len(final) < len(rows):
        notes.append("Paler networks were scored on fewer images; losses on different images do not compare.")
    if len(drawn) < len(rows):
        notes.append(f"Drawn are {len(drawn):,} of {len(rows):,} networks: the fronts, and the others thinned evenly.")
    budget = " and ".join(readable(kind, limit) for kind, limit in dict(facts.get("budget") or {}).items())
    return _PAGE.substitute(
        title=html.escape(f"Search on {facts.get('data', 'images')}"),
        summary=html.escape(f"{len(rows):,} networks scored, budget {budget or 'without limit'}"),
        chosen="" if chosen is None else "Chosen: " + html.escape(_hover(chosen).replace("<br>", ", ")) + ".",
        notes=html.escape(" ".join(notes)),
        costs="".join(f'<option value="{kind}">{html.escape(COSTS[kind])}</option>' for kind in costs),
        goods="".join(f'<option value="{kind}">{html.escape(name)}</option>' for kind, name in GOODS.items()),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # nothing in it can end the script
        plotly=get_plotlyjs(),
    )


def _hover(one: Ranked) -> str:
    latency = [] if one.latency is None else [readable("latency", one.latency)]
    return "<br>".join([
        f"{one.arch.genotype}, widths {' '.join(map(str, one.arch.widths))}",
        ", ".join([readable("macs", one.macs), readable("params", one.params), *latency]),
        f"loss {one.score.loss:.4f}, top-1 {one.score.top1:.2f} %",
        f"on {one.score.images:,} images, rank {one.rank:,}",
    ])  # fmt: skip


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; form-action 'none';
 script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --paper: #fff; --soft: #59636e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #15181c; --soft: #a0a8b2; } }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 1rem/1.45 system-ui, sans-serif;
 color: var(--ink); background: var(--paper); }
h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0; }
.note { color: var(--soft); font-size: .875rem; }
form { display: flex; flex-wrap: wrap; gap: .4rem 1.2rem; margin: .8rem 0 .3rem; }
select { font: inherit; max-width: 100%; }
#plot { height: max(24rem, min(64vh, 40rem)); }
@media print {
 :root { --ink: #000; --paper: #fff; --soft: #444; }
 #plot { height: 460px; }
 form, .modebar { display: none; }
}
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary. $chosen</p>
<form>
<label>across <select id="cost">$costs</select></label>
<label>up <select id="good">$goods</select></label>
</form>
<div id="plot"><noscript>The plot needs JavaScript; front.csv holds the same figures.</noscript></div>
<p class="note">$notes</p>
<script type="application/json" id="data">$data</script>
<script>$plotly</script>
<script>
const data = JSON.parse(document.getElementById("data").textContent), columns = data.columns;
const chosenCost = document.getElementById("cost"), chosenGood = document.getElementById("good");
const dark = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(hover: none)").matches;
const slices = [...new Set(columns.images)].sort((a, b) => a - b);
let printing = false;
function draw() {
  const cost = chosenCost.value, good = chosenGood.value, night = dark.matches && !printing;
  const ink = night ? "#e6e8eb" : "#1f2328", grid = night ? "#343a42" : "#e3e6ea";
  const blue = night ? "#79b8ff" : "#0969da", red = night ? "#ffa657" : "#bc4c00";
  const trace = (chosen, more) => ({
    type: "scatter", mode: "markers", hovertemplate: "%{text}<extra></extra>",
    x: chosen.map(i => columns[cost][i]), y: chosen.map(i => columns[good][i]), text: chosen.map(i => data.text[i]),
    ...more
  });
  const all = columns.images.map((_, i) => i);
  const traces = slices.map((size, i) => [size, slices.length - 1 - i]).map(([size, smaller]) => trace(
    all.filter(j => columns.images[j] === size), {
      name: "scored on " + size.toLocaleString("en") + " images",
      marker: { color: blue, size: smaller ? 5 : 7, opacity: smaller ? 0.6 * Math.pow(0.6, smaller) : 0.9 }
    }
  ));
  traces.push(trace(data.lines[good + " " + cost] || [], {
    name: "front", mode: "lines+markers", line: { shape: "hv", color: red, width: 2 }, marker: { color: red, size: 7 }
  }));
  if (data.chosen.length) traces.push(trace(data.chosen, {
    name: "chosen", marker: { symbol: "star", size: 17, color: red, line: { color: ink, width: 1.5 } }
  }));
  const axis = name => ({
    title: { text: data.names[name], standoff: 8 }, gridcolor: grid, linecolor: grid, zeroline: false, automargin: true,
    ...(["macs", "params"].includes(name) ? { tickformat: "~s" } : {})
  });
  Plotly.react("plot", traces, {
    autosize: !printing, ...(printing ? { width: 660, height: 460 } : {}), dragmode: touch ? false : "zoom",
    font: { color: ink, size: 13, family: "system-ui, sans-serif" }, paper_bgcolor: "transparent",
    plot_bgcolor: "transparent", margin: { l: 10, r: 10, t: 32, b: 10 }, xaxis: axis(cost), yaxis: axis(good),
    legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" }, hovermode: "closest",
    hoverlabel: { align: "left" }, modebar: { bgcolor: "transparent", color: grid, activecolor: ink }
  }, {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    showSendToCloud: false, plotlyServerURL: ""  // a button that would upload the plot
  });
}
document.querySelector("noscript").remove();
for (const select of [chosenCost, chosenGood]) select.addEventListener("change", draw);
dark.addEventListener("change", draw);
addEventListener("beforeprint", () => { printing = true; draw(); });
addEventListener("afterprint", () => { printing = false; draw(); });
draw();
</script>
</body>
</html>
""")
