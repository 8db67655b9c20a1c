"""A study's YAML file: what is read from it, what is refused and how, and that the shipped ones can be run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refusal_of
from tiny import CPU, Cli

from psvit.arch.model_config import ModelConfig
from psvit.engine.recipes import recipe_named
from psvit.engine.train_config import light
from psvit.errors import UserError
from psvit.pipeline import baselines
from psvit.studies.definition import Figure, Study, slug
from psvit.studies.plan import Plan
from psvit.studies.study_file import STUDIES, names, read_study

SMALL: dict[str, Any] = {
    "data": {"data": "digits", "limit": 48},
    "groups": {"one": {"macs": "1M", "networks": ["deit", "psvit_2d"]}, "two": {"networks": ["psvit_2d"]}},
}

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a study, as plain data or as text."""

    def write(data: Any) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
        return path

    return write


@pytest.fixture
def study(write: Write) -> Callable[..., Study]:
    """Reads the small study with other entries."""
    return lambda small=False, **changes: read_study(str(write({**SMALL, **changes})), small)


# What is read --------------------------------------------------------------------------------------------------------


def test_defaults(study: Callable[..., Study]) -> None:
    read = study()
    assert (read.name, read.title, read.reads, read.quick, read.precision) == ("mine", "mine", "test", False, "auto")
    assert study(precision="bfloat16").precision == "bfloat16"
    one, two = read.groups
    networks = [(n.label, n.network, n.changes, n.scaled, n.seeds) for n in one.networks]
    assert networks == [(name, name, (), True, (0,)) for name in ("deit", "psvit_2d")]
    assert (one.macs, two.macs, one.recipe, one.searches) == ("1M", None, recipe_named("auto", None, 8), False)
    assert (one.data.data, one.data.limit, one.data.validation, one.data.split_seed) == ("digits", 48, 0.1, 0)
    assert read.figures == (Figure(("one",)), Figure(("two",)))


def test_networks_are_a_list_or_a_mapping(study: Callable[..., Study]) -> None:
    networks = {
        "plain": "deit",
        "kept": {"network": "AS-A", "widths": [16, 32], "macs": "keep"},
        "often": {"network": "AS", "seeds": [3, 4]},
        "found": "searched",
    }
    read = study(groups={"one": {"macs": "1M", "seeds": [0, 1], "networks": networks}}).groups[0]
    assert [network.label for network in read.networks] == list(networks)
    assert [network.scaled for network in read.networks] == [True, False, True, True]
    assert [network.seeds for network in read.networks] == [(0, 1), (0, 1), (3, 4), (0, 1)]
    assert dict(read.networks[1].changes) == {"widths": (16, 32)}
    assert read.searches


def test_a_group_overrides_what_the_file_says(study: Callable[..., Study]) -> None:
    other = {
        "data": {"limit": 60}, "recipe": {"epochs": 3, "augment": {"hflip": 0}}, "arch": {"head_dim": 16},
        "search": {"max_share": 1}, "macs": "1M", "networks": ["psvit_2d", "resnet18"],
    }  # fmt: skip
    plain, changed = study(
        recipe={"epochs": 2, "lr": "5e-1"}, arch={"head_dim": 8, "pool_op": "avg"},
        search={"max_share": 2, "depth": [2]},
        groups={"plain": {"networks": ["psvit_2d"]}, "other": other},
    ).groups  # fmt: skip
    assert (plain.recipe.epochs, plain.recipe.lr, changed.recipe.epochs, changed.recipe.lr) == (2, 0.5, 3, 0.5)
    assert (plain.recipe.augment.hflip, changed.recipe.augment.hflip) == (0.5, 0)
    assert changed.recipe.augment.scale == light().augment.scale
    assert (plain.data.limit, changed.data.limit) == (48, 60)
    assert dict(plain.search) == {"max_share": 2, "depth": (2,)}
    assert dict(changed.search) == {"max_share": 1, "depth": (2,)}
    changes = [[dict(network.changes) for network in group.networks] for group in (plain, changed)]
    avg = {"pool_op": "avg"}
    assert changes == [[{"head_dim": 8, **avg}], [{"head_dim": 16, **avg}, {}]], "a ResNet has no such fields"


def test_quick_comes_last(study: Callable[..., Study]) -> None:
    quick = {"data": {"limit": 20}, "recipe": {"epochs": 1}, "seeds": [5], "search": {"supernet_epochs": 1}}
    given: dict[str, Any] = {
        "groups": {"one": {"seeds": [0, 1], "data": {"limit": 30}, "networks": {"a": {"network": "AS", "seeds": [7]}}}},
        "quick": quick,
    }
    group, small = study(**given).groups[0], study(small=True, **given).groups[0]
    assert (group.data.limit, group.networks[0].seeds) == (30, (7,))
    assert (small.data.limit, small.recipe.epochs, small.networks[0].seeds) == (20, 1, (5,))
    assert dict(small.search) == {"supernet_epochs": 1}
    assert study(small=True, **given).quick


def test_claims_and_figures(study: Callable[..., Study]) -> None:
    claim = {"claim": "better", "better": ["one", "psvit_2d"], "worse": ["one", "deit"]}
    read = study(claims=[claim, {**claim, "at_most": 0.65}], figures=[{"x": "macs", "groups": ["two", "one"]}])
    assert [c.at_most for c in read.claims] == [1.0, 0.65]
    assert read.claims[0].better == ("one", "psvit_2d")
    assert read.figures == (Figure(("two", "one"), "macs"),)


# What is refused -----------------------------------------------------------------------------------------------------

CLAIM = {"claim": "c", "better": ["one", "deit"], "worse": ["one", "psvit_2d"]}


def in_group(**entries: Any) -> dict[str, Any]:
    return {"groups": {"one": {"networks": ["deit"], **entries}}}


def refused(write: Write, data: Any) -> str:
    """The one line by which a study is refused."""
    return refusal_of(read_study, str(write(data)))


def test_an_unknown_setting_is_named_wherever_it_stands(write: Write) -> None:
    for entries, reason in (
        ({"grups": {}}, "the file has an unknown setting 'grups'; did you mean groups?"),
        (in_group(macz="1M"), "group one has an unknown setting 'macz'; did you mean macs?"),
        (in_group(networks={"a": {"network": "AS", "widhts": [8]}}), "'widhts'; did you mean widths?"),
        ({"recipe": {"augment": {"flip": 1}}}, "augment has an unknown setting 'flip'; did you mean hflip?"),
        (in_group(search={"resume": True}), "has an unknown setting 'resume'"),  # the study sets it
        ({"claims": [{**CLAIM, "atmost": 1}]}, "a claim has an unknown setting 'atmost'; did you mean at_most?"),
        ({"quick": {"sees": [0]}}, "quick has an unknown setting 'sees'; did you mean seeds?"),
    ):
        assert reason in refused(write, {**SMALL, **entries}), entries


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"groups": None}, "groups is not a list of names with values"),
        ({"claims": 5}, "claims 5 is not a list"),
        ({"precision": "half"}, "precision 'half' is not one of auto, float32, bfloat16, float16"),
        ({"data": {"validation": 2}}, "--validation 2.0 is not a fraction"),
        ({"search": {"stage_widths": [16]}}, "--stage-widths 16 is not a list of whole numbers such as 32,48,64"),
        ({"groups": {}}, "it has no groups: name one, with its networks"),
        (in_group(networks={"a": {"pool_op": "avg"}}), "network a has no network: name one"),
        (in_group(networks={"a": {"network": "AS", "macs": "5M"}}), "network a: macs '5M' is not one of keep"),
        (in_group(networks={"a": {"network": "searched", "pool_op": "avg"}}, macs="1M"), "leave out pool_op"),
        (in_group(networks={"a": {"network": "searched", "macs": "keep"}}, macs="1M"), "leave out macs"),
        (in_group(networks=["searched"]), "group one searches a network and has no macs: give it some, as 6M"),
        (in_group(seeds=[0, -1]), "seeds of network deit: -1 is not a whole number from 0 to 10^18"),
        (in_group(networks={"a": {"network": "AS", "seeds": [2, 2]}}), "seeds [2, 2] of network a are not different"),
        ({"recipe": {"name": "heavy"}}, "there is no recipe 'heavy': the recipes are auto, light, photos, deit"),
        ({"claims": [{**CLAIM, "better": ["one", "resnet18"]}]}, "claim 'c': better ['one', 'resnet18'] is not [group"),
        ({"figures": [{"groups": ["three"]}]}, "a figure's groups ['three'] are not among one, two"),
    ],
)
def test_a_value_outside_its_rule_is_named(entries: dict[str, Any], reason: str, write: Write) -> None:
    assert reason in refused(write, {**SMALL, **entries})


def test_a_file_that_is_no_study(write: Write, cli: Cli, tmp_path: Path) -> None:
    for text, reason in (
        ("just words", "mine.yaml: the file is not a list of names with values"),
        ("groups: [", "mine.yaml is not YAML: while parsing"),
        ("groups:\n  a: {networks: {deit: deit, deit: AS}}", "mine.yaml: line 2: 'deit' stands twice"),
        ("a: !!python/object:os.system {}", "mine.yaml is not YAML: could not determine a constructor"),
    ):
        assert reason in refused(write, text)
    assert "there is no study 'claim'; did you mean claims?" in cli.refused("study", "claim")
    assert f"give {', '.join(names())}, or a YAML file like theirs" in cli.refused("study", tmp_path / "none.yaml")


def test_a_study_that_cannot_be_run_is_refused_before_anything_is_trained(write: Write) -> None:
    two = SMALL["groups"]["two"]
    for entries, reason in (
        (in_group(networks={"a b": "deit", "A-B": "deit"}), "networks 'a b' and 'A-B' would share a folder"),
        ({"groups": {"x!": two, "x?": two}}, "groups 'x!' and 'x?' would share"),
        (in_group(networks={"found": "searched", "Search": "deit"}, macs="1M"), "'search' and 'Search' would share"),
        (in_group(data={"validation": 0}), "group one has validation 0"),
        (in_group(networks=["vit_nothing"]), "network vit_nothing of group one: no model is called 'vit_nothing'"),
        (in_group(networks={"a": {"network": "resnet18", "pool_op": "avg"}}), "resnet18 is a model of timm"),
        (in_group(macs="1k"), "network deit of group one: no width of"),
        (in_group(recipe={"opt": "adamz"}), "recipe of group one: --opt 'adamz' is not to be had"),
    ):
        with pytest.raises(UserError) as error:
            Plan(read_study(str(write({**SMALL, **entries}))), Path("unused"), CPU)
        assert reason in str(error.value), entries


# Printed and planned -------------------------------------------------------------------------------------------------


def test_a_study_is_printed_as_it_is(cli: Cli) -> None:
    assert cli.ok("study", "claims", "--print") == (STUDIES / "claims.yaml").read_text(encoding="utf-8")


def test_a_dry_run_lists_everything_and_writes_nothing(
    cli: Cli, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psvit.studies.task_runner.work_all", lambda *_: pytest.fail("it trains"))
    networks = {"ours": "psvit_2d", "found": "searched"}
    path = write({**SMALL, "groups": {"one": {"macs": "1M", "seeds": [0, 2], "networks": networks}}})
    said = cli.ok("study", path, "--dry-run", "--output", tmp_path / "out", "--results", tmp_path / "results.json")
    for line in ("one: digits, 48 images, 20 epochs", "  ours: AS-ASS-AS 2d", "  found: what the search finds"):
        assert line in said
    assert [item.name for item in tmp_path.iterdir()] == ["mine.yaml"]


def test_every_trial_has_its_seed_and_its_folder(study: Callable[..., Study]) -> None:
    read = study(groups={"A b": {"seeds": [3, 1], "networks": {"x": "AS", "y": {"network": "AS-A", "seeds": [4]}}}})
    trials = Plan(read, Path("out"), CPU).trials({})
    assert [(trial.folder.as_posix(), trial.config.data.seed) for trial in trials] == [
        ("out/a-b/x/seed-3", 3),
        ("out/a-b/y/seed-4", 4),
        ("out/a-b/x/seed-1", 1),
    ], "the first seed of all, then the second"
    assert {trial.config.data.split_seed for trial in trials} == {0}, "all have the same validation split"


def test_names_of_folders() -> None:
    for name, folder in (("6 M MACs, reinvested", "6-m-macs-reinvested"), ("../..", "-"), ("日本, 2", "日本-2"),
                         ("U\u0308", "ü"), ("Ω/..", "ω")):  # fmt: skip
        assert slug(name) == folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "transfer")) for name in names()]
)
def test_the_shipped_studies_can_be_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the scaling of ResNets, which is slow and has its own test."""
    monkeypatch.setattr(baselines, "_scaled_timm", lambda model, macs, data: ModelConfig.of(model))
    study, quick = read_study(name), read_study(name, quick=True)
    section = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())["quick"]
    assert {group.recipe.epochs for group in quick.groups} == {section["recipe"]["epochs"]}
    assert {network.seeds for group in quick.groups for network in group.networks} == {(0,)}
    assert study.title
    assert study.question
    plan = Plan(study, Path("unused"), CPU)
    assert len(plan.searches) == sum(group.searches for group in study.groups)
    for group in study.groups:
        planned = [label for where, label in plan.models if where == group.name]
        assert planned == [network.label for network in group.networks if network.network != "searched"]
