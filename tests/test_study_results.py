"""Results of a study: its statistics by hand and by simulation, its rows and claims, its tables, its page."""

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Tags
from scipy import stats

from psvit.data.data_config import DataConfig
from psvit.engine.train_config import light
from psvit.report.tables import to_markdown
from psvit.studies.definition import Claim, Figure, Group, Network, Study
from psvit.studies.known import of_now
from psvit.studies.results import AT_CHANCE, judged, results
from psvit.studies.statistics import Spread, difference, interval, ratio, verdict, widest
from psvit.studies.study_file import names, read_study
from psvit.studies.study_page import by_data, chart, study_page, write_report
from psvit.studies.study_tables import figure, group_table, made_on, study_markdown

NONE = Spread(math.inf, 0)

# Statistics ----------------------------------------------------------------------------------------------------------


def test_an_interval_by_hand() -> None:
    half = 4.302653 * 1 / math.sqrt(3)  # t of 2 degrees of freedom, standard deviation 1
    assert interval([1, 2, 3]) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert (interval([1]), interval([5, 5])) == (None, (5, 5))


A, B, C = [91.2, 90.5, 92.0, 91.1], [89.0, 90.0], [70.0]


def test_a_difference_is_welchs() -> None:
    expected = stats.ttest_ind(A, B, equal_var=False).confidence_interval()
    delta, low, high = difference(A, B, NONE)
    assert delta == pytest.approx(np.mean(A) - np.mean(B))
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert difference(B, A, NONE) == pytest.approx((-delta, -high, -low))


def test_the_widest_scatter_is_of_one_sample() -> None:
    assert widest([[1, 3], [0, 0, 3, 3, 9], [7], []]) == Spread(54 / 4, 4)  # squares of 54 around 3
    assert widest([[1, 9], [0, 0, 3, 3, 9]]) == Spread(32, 1)
    assert widest([[1], [2]]).freedom == 0


def test_a_ratio_by_hand() -> None:
    a, b = [1.0, math.e], [math.e, math.e**3]  # logarithms 0 1 and 1 3: variances 1/2 and 2
    total = 0.5 / 2 + 2 / 2
    freedom = total**2 / (0.25**2 + 1**2)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(total)
    point = sum(a) / sum(b)
    assert ratio(a, b, NONE) == pytest.approx((point, point * math.exp(-half), point * math.exp(half)))
    assert ratio([1.0], [2.0], NONE) == (0.5, 0.0, math.inf)
    assert ratio([3, 3], [2, 2], NONE) == pytest.approx((1.5, 1.5, 1.5))


def test_a_claim_holds_only_with_its_whole_interval() -> None:
    for low, high, found in ((0.5, 0.8, "holds"), (0.5, 0.81, "open"), (0.8, 0.9, "open"), (0.81, 0.9, "does not hold"),
                             (0.0, math.inf, "open")):  # fmt: skip
        assert verdict(low, high, 0.8) == found


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """500 studies of three seeds each: 95 %, within two standard errors of such a count."""
    rng = np.random.default_rng(0)
    means, ratios, careful = 0, 0, 0
    for first, second in zip(rng.normal(90, 0.7, (500, 3)), rng.lognormal(2, 0.1, (500, 3)), strict=True):
        low, high = interval(first.tolist()) or (0, 0)
        means += low <= 90 <= high
        once = [math.exp(2 + 0.1 * rng.normal())]
        _, low, high = ratio(second.tolist(), once, widest([np.log(second).tolist()]))  # several against one
        ratios += low <= 1 <= high
        calm = (2 + 0.02 * rng.normal(size=3)).tolist()  # the one that was trained once scatters more than this
        _, low, high = ratio(np.exp(calm).tolist(), once, widest([calm, np.log(second).tolist()]))
        careful += low <= 1 <= high
    assert 0.93 < means / 500 < 0.97
    assert careful / 500 > 0.93
    assert 0.925 < ratios / 500 < 0.975, "the middle of a ratio of means is a little off that of the logarithms"


# Results -------------------------------------------------------------------------------------------------------------


def trained(top1: float, number: int = 0, **more: Any) -> dict[str, Any]:
    """The result of a training."""
    return {
        "network": "AS-A 2d 16-32 /2", "macs": 1_000_000 * (number + 1), "params": 24_000, "top1": top1, "top5": 99.0,
        "loss": 0.5, "images": 359, "validation_top1": top1 - 1, "epoch": 2, "steps": 6, "seconds": 3600.0,
        "history": [[1, 50.0, 2.0], [2, top1, 1.0]], "folder": f"one/{number}/seed-0", **more,
    }  # fmt: skip


def study(labels: tuple[str, ...] = ("first", "second", "third"), seeds: int = 3, **more: Any) -> Study:
    """A study of two groups; `labels` name the networks of the first."""
    networks = tuple(Network(label, "AS-A", seeds=tuple(range(seeds))) for label in labels)
    data = DataConfig("digits", limit=48)
    groups = (
        Group(more.pop("group", "one"), networks, "1M", data, light()),
        Group("two", (Network(labels[0], "AS-A"),), None, DataConfig("digits", limit=96), light()),
    )
    given = {"title": "Title", "question": "Why?", "reads": "test", "figures": (Figure((groups[0].name,)),), **more}
    return Study("mine", groups=groups, **given)


TOP1 = {"first": [80.0, 82.0, 84.0], "second": [90.0, 91.0, 92.0], "third": [88.0, 95.0, 90.0]}
ERRORS = {label: [100 - value for value in values] for label, values in TOP1.items()}
SCATTER = widest([[math.log(error) for error in values] for values in ERRORS.values()])
SHAPE = {"img_size": [8, 8], "in_chans": 1, "num_classes": 10}
CLAIMS = (
    Claim("second over first", ("one", "second"), ("one", "first"), 0.8),
    Claim("first over second", ("one", "first"), ("one", "second")),
    Claim("third over second", ("one", "third"), ("one", "second")),
    Claim("first over itself of the other group", ("one", "first"), ("two", "first")),
)


def found(asked: Study, changes: dict[tuple[str, str, int], dict[str, Any]] | None = None, **searched: Any) -> Any:
    kept = {
        (group.name, network.label, seed): trained(top1, number, folder=f"{group.name}/{number}/seed-{seed}")
        for group in asked.groups
        for number, network in enumerate(group.networks)
        for seed, top1 in zip(network.seeds, list(TOP1.values())[number], strict=False)
    }
    return results(asked, {**kept, **(changes or {})}, searched, {group.name: SHAPE for group in asked.groups})


COMMAND = "psvit study 'my studies/mine.yaml' --precision float32"


def strict_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def test_rows_hold_means_intervals_and_ratios_of_errors() -> None:
    one, two = found(study())["groups"]
    assert [row["mean"] for row in one["rows"]] == pytest.approx([82, 91, 91])
    assert [row["error_ratio"] for row in one["rows"]] == pytest.approx([1, 0.5, 0.5])
    assert one["rows"][0]["deviation"] == pytest.approx(2)
    assert one["rows"][0]["interval"] == pytest.approx([82 - 2 * 4.302653 / 3**0.5, 82 + 2 * 4.302653 / 3**0.5])
    assert one["rows"][0]["history"] == [[1, 50.0], [2, 82.0]]
    assert one["rows"][0]["seconds"] == 3 * 3600
    assert (one["limit"], one["shape"], one["macs"]) == (48, SHAPE, "1M")
    assert (two["rows"][0]["interval"], two["rows"][0]["deviation"]) == (None, None), "one seed"


def test_claims_are_judged_by_the_ratio_of_errors() -> None:
    claims = found(study(claims=CLAIMS))["claims"]
    assert [claim["verdict"] for claim in claims] == ["holds", "does not hold", "open", "open, one seed"]
    assert claims[0]["ratio"] == pytest.approx(ratio(ERRORS["second"], ERRORS["first"], NONE))
    assert claims[0]["difference"] == pytest.approx(difference(TOP1["second"], TOP1["first"], NONE))
    assert [claim["apart"] for claim in claims] == [True, True, False, None], "whichever of the two is ahead"
    assert claims[3]["ratio"] == pytest.approx(ratio(ERRORS["first"], ERRORS["first"][:1], SCATTER)), "one seed"
    assert claims[3]["seeds"] == [3, 1]


def test_a_claim_over_a_network_at_chance_is_not_tested() -> None:
    classes, images = SHAPE["num_classes"], 359
    edge = 100 / classes + 200 * math.sqrt(1 / classes * (1 - 1 / classes) / images)
    for top1, said in ((edge - 0.1, AT_CHANCE), (edge + 0.1, "holds")):
        kept = {("one", "first", seed): {**trained(top1, folder=f"f/{seed}"), "images": images} for seed in range(3)}
        assert found(study(claims=CLAIMS[:1]), kept)["claims"][0]["verdict"] == said


RESULTS = Path(__file__).parent.parent / "docs" / "results"

OUTDATED = ("ablation", "transfer")
"""Studies whose committed results answer an earlier definition of them, until they are run again."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xfail(strict=True)] * (name in OUTDATED))
        for name in names()
        if (RESULTS / f"{name}.json").is_file()
    ],
)
def test_the_claims_of_the_committed_results_are_judged_as_they_would_be_now(name: str) -> None:
    path = RESULTS / f"{name}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    asked = read_study(name).only([group["name"] for group in data["config"]["groups"]])  # others may follow
    anew = json.loads(json.dumps({"claims": judged(asked.claims, data["groups"]), "config": asked.to_dict()}))
    assert rounded(data["claims"]) == rounded(anew["claims"]), (
        f"write psvit.studies.results.judged of its rows to {path}"
    )
    data["config"]["groups"] = list(map(of_now, data["config"]["groups"]))
    for kind in ("groups", "claims", "figures"):
        assert data["config"][kind] == anew["config"][kind], f"{path} answers another {name}.yaml"


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(inside) for key, inside in value.items()}
    return [rounded(inside) for inside in value] if isinstance(value, list) else value


def test_results_are_json_without_infinity_or_nan() -> None:
    alone = strict_json(found(study(claims=CLAIMS, seeds=1)))
    assert [claim["ratio"][1:] for claim in alone["claims"]] == [[0.0, None]] * 4
    assert [claim["difference"][1:] for claim in alone["claims"]] == [[None, None]] * 4
    assert {claim["verdict"] for claim in alone["claims"]} == {"open, one seed"}
    perfect = {("one", "first", seed): trained(100.0) for seed in range(3)}
    data = strict_json(found(study(claims=CLAIMS), perfect))
    assert [row["error_ratio"] for row in data["groups"][0]["rows"]] == [None] * 3, "nothing is over 0 errors"
    assert data["claims"][1]["verdict"] == "holds"


def test_a_failed_training_is_told_and_left_out() -> None:
    broken = {("one", "second", 1): {"error": "the loss is nan", "folder": "x"}}
    broken |= {("one", "third", seed): {"error": "the loss is inf"} for seed in range(3)}
    data = strict_json(found(study(claims=CLAIMS), broken))
    second, third = data["groups"][0]["rows"][1:]
    assert (second["seeds"], second["top1"], second["failed"]) == ([0, 2], [90.0, 92.0], {"1": "the loss is nan"})
    assert (third["mean"], third["interval"], len(third["failed"])) == (None, None, 3)
    assert data["claims"][2]["verdict"] == "not measured"
    assert data["claims"][0]["seeds"] == [2, 3]


def test_a_training_that_two_rows_share_counts_once() -> None:
    one = study().groups[0]
    networks = tuple(replace(n, seeds=n.seeds[: 3 - i]) for i, n in enumerate(one.networks))  # 3 seeds, 2, and 1
    two = replace(one, name="two", networks=networks)
    alone = Group("alone", (Network("a", "AS-A"),), None, DataConfig("digits"), light())
    claim = Claim("c", ("one", "first"), ("alone", "a"))
    shared = {
        ("two", network.label, seed): trained(TOP1[network.label][seed], folder=f"one/{number}/seed-{seed}")
        for number, network in enumerate(two.networks)
        for seed in network.seeds
    }
    asked = replace(study(claims=(claim,)), groups=(one, two, alone))
    made = found(asked, {("alone", "a", 0): trained(80.0, folder="alone/a/seed-0"), **shared})
    assert SCATTER.freedom == 2
    assert made["claims"][0]["ratio"] == pytest.approx(ratio(ERRORS["first"], [20.0], SCATTER))
    assert (made["trainings"], made["training_seconds"]) == (10, 10 * 3600)


# Tables --------------------------------------------------------------------------------------------------------------


def whole(data: Any) -> Any:
    """Results with what a study adds to them."""
    machine = {"cpu": "a CPU", "device_name": None, "jobs": 2}
    return strict_json({**data, "machine": machine, "versions": {"torch": "2.0"}})


def test_the_cells_of_a_group() -> None:
    broken = {("one", "third", 1): {"error": "the loss is nan"}}
    group = found(study(), broken)["groups"][0]
    table = group_table(group, "test")
    assert [row[0] for row in table.rows] == ["first", "second", "third (seed 1 failed: the loss is nan)"]
    assert table.rows[1][1:] == (
        "`AS-A 2d 16-32 /2`", "2.00", "0.024", "90.00 91.00 92.00", "91.00 ± 2.48", "0.50"
    )  # fmt: skip
    assert {len(row) for row in table.rows} == {len(table.headings)}
    assert "validation split" in " ".join(group_table(group, "validation").headings)


def test_the_markdown_holds_every_group_and_how_to_read_it() -> None:
    data = whole(found(study(labels=("a|b", "c\nd", "e"), quick=True)))
    text = study_markdown(data)
    assert text.index("**one**") < text.index("**two**")
    assert "digits: 48 training images, 20 epochs, batch 128; 359 test images, read once for each training." in text
    assert "**This is the quick version of the study: its figures mean little.**" in text
    machine = {**data["machine"], "computed_in": "bfloat16"}
    said = made_on({**data, "machine": machine, "wall_seconds": 5 * 3600})
    assert said.endswith(", 2 at a time on a CPU in bfloat16; 5.0 hours by the clock, all told.")
    lines = to_markdown(group_table(data["groups"][0], "test")).splitlines()
    assert lines[2].startswith("| a\\|b | `AS-A 2d 16-32 /2` |")
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [8] * 5, "a new line or | in a name is escaped"


# The page ------------------------------------------------------------------------------------------------------------

FIGURES = (Figure(("one",)), Figure(("one", "two"), "macs"), Figure(("one", "two"), "images"))
ARCH = {"genotype": "AS-A", "widths": [16, 32], "head_dim": 8, "patch_size": 2}


def test_the_page_holds_every_network_figure_and_claim(tmp_path: Path) -> None:
    data = whole(found(study(claims=CLAIMS, figures=FIGURES), one=ARCH))
    files = write_report(tmp_path, data, COMMAND)
    drawn = [f"mine{number}.{kind}" for number in ("", "-2", "-3") for kind in ("svg", "png")]
    assert [path.name for path in files] == ["report.html", "tables.md", *drawn]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}
    text = files[0].read_text()
    assert {*TOP1, *(claim.claim for claim in CLAIMS), "holds", "91.00 ± 2.48"} <= set(Tags(text).cells)
    assert text.count("<figure>") == 3 + 2 + 1  # figures, learning curves of two groups, the network that was found
    assert f"{tmp_path}/one/1/seed-0/best" in text, "the most accurate network"
    assert f"<code>{COMMAND}</code>" in html.unescape(re.sub("</?span>", "", text))


def test_accuracies_on_two_data_sets_are_not_in_one_plot(tmp_path: Path) -> None:
    asked = study()
    asked = replace(asked, groups=(asked.groups[0], replace(asked.groups[1], data=DataConfig("mnist-5k"))))
    sets = by_data(found(asked))
    assert {name: [row["label"] for _, row in rows] for name, rows in sets.items()} == {
        "digits": list(TOP1), "mnist-5k": ["first"]
    }  # fmt: skip
    page = study_page(whole(found(asked)), tmp_path, COMMAND).html()
    for place in ("one/1/seed-0/best", "two/0/seed-0/best"):
        assert f"{tmp_path}/{place}" in page


def test_latency_is_a_column_and_an_axis_where_it_was_measured() -> None:
    data = whole(found(study(labels=("first", "second"))))
    assert "ms" not in group_table(data["groups"][0], "test").headings
    for group in data["groups"]:
        for number, row in enumerate(group["rows"]):
            row["latency_ms"] = 1.25 + number
    data["latency"] = {"latency_batch": 8, "latency_dtype": "float32", "latency_mode": "eager"}
    table = group_table(data["groups"][0], "test")
    assert [row[table.headings.index("ms")] for row in table.rows] == ["1.25", "2.25"]
    assert "ms: of a batch of 8 in float32, eager, on the machine that wrote this." in study_markdown(data)
    assert chart(by_data(data)["digits"], "test").columns["latency_ms"] == [1.25, 2.25, 1.25]
    data["groups"][0]["rows"][0]["latency_ms"] = None
    assert group_table(data["groups"][0], "test").rows[0][4] == "–"
    assert chart(by_data(data)["digits"], "test").across == ("macs", "params"), "every point needs one"


def test_a_figure_over_images_counts_them_where_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = study(figures=(Figure(("one", "two"), "images"),))
    asked = replace(asked, groups=(asked.groups[0], replace(asked.groups[1], data=DataConfig("digits"))))
    kept = {(g.name, n.label, s): trained(80.0) for g in asked.groups for n in g.networks for s in n.seeds}
    data = whole(results(asked, kept, {}, {group.name: SHAPE for group in asked.groups}, {"one": 48, "two": 1295}))
    drawn: list[Any] = []
    monkeypatch.setattr("psvit.studies.study_tables.curves", lambda lines, *_, **__: drawn.append(lines))
    figure(data["config"]["figures"][0], data)
    assert drawn[0]["first"][0] == [48, 1295]
    assert "digits: all training images" in study_markdown(data)


def test_the_network_to_use_is_chosen_on_the_validation_split(tmp_path: Path) -> None:
    kept = {("one", "third", seed): trained(85.0, 2, validation_top1=99.0, folder=f"t/{seed}") for seed in range(3)}
    page = study_page(whole(found(study(), kept)), tmp_path, COMMAND).html()
    assert f"{tmp_path}/t/0/best" in page
    assert f"{tmp_path}/one/1/seed-0/best" not in page, "it is the best on the test split"
