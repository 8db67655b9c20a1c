"""A study's YAML file: what is read from it, what is refused and how, and that the shipped ones can be run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import CPU, Cli

from psvit.arch.model_config import ModelConfig
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


def changes_of(study: Study, group: int = 0) -> list[dict[str, Any]]:
    return [dict(network.changes) for network in study.groups[group].networks]


# What is read --------------------------------------------------------------------------------------------------------


def test_defaults(study: Callable[..., Study]) -> None:
    read = study()
    assert (read.name, read.title, read.reads, read.quick) == ("mine", "mine", "test", False)
    one, two = read.groups
    assert [(n.label, n.network, n.changes, n.scaled, n.seeds) for n in one.networks] == [
        ("deit", "deit", (), True, (0,)),
        ("psvit_2d", "psvit_2d", (), True, (0,)),
    ]
    assert (one.macs, two.macs) == ("1M", None)
    assert one.recipe == light()
    assert (one.data.data, one.data.limit, one.data.validation, one.data.split_seed) == ("digits", 48, 0.1, 0)
    assert read.figures == (Figure(("one",)), Figure(("two",)))
    assert not one.searches


def test_the_precision_is_the_files_or_the_machines(study: Callable[..., Study]) -> None:
    assert study().precision == "auto"
    assert "precision" not in study().to_dict(), "results of before compare equal"
    assert study(precision="bfloat16").precision == study(precision="bfloat16").to_dict()["precision"] == "bfloat16"
    assert read_study("transfer").precision == "float32", "ResNet-18 overflows on digits in bfloat16"


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
    read = study(
        recipe={"epochs": 2, "lr": 0.5}, arch={"head_dim": 8, "pool_op": "avg"}, search={"max_share": 2, "depth": [2]},
        groups={"plain": {"networks": ["psvit_2d"]}, "other": other},
    )  # fmt: skip
    plain, changed = read.groups
    assert (plain.recipe.epochs, plain.recipe.lr, changed.recipe.epochs, changed.recipe.lr) == (2, 0.5, 3, 0.5)
    assert (plain.recipe.augment.hflip, changed.recipe.augment.hflip) == (0.5, 0)
    assert changed.recipe.augment.scale == light().augment.scale
    assert (plain.data.limit, changed.data.limit) == (48, 60)
    assert (dict(plain.search), dict(changed.search)) == (
        {"max_share": 2, "depth": (2,)},
        {"max_share": 1, "depth": (2,)},
    )
    assert changes_of(read) == [{"head_dim": 8, "pool_op": "avg"}]
    assert changes_of(read, 1) == [{"head_dim": 16, "pool_op": "avg"}, {}], "a ResNet has no such fields"


def test_numbers_that_yaml_takes_for_text(write: Write) -> None:
    read = read_study(str(write("{recipe: {lr: 1e-3, min_lr: 1e-05}, groups: {a: {macs: 2e6, networks: [deit]}}}")))
    assert (read.groups[0].recipe.lr, read.groups[0].recipe.min_lr) == (1e-3, 1e-5)
    assert dict(Plan(read, Path("unused"), CPU).models)["a", "deit"].network


def test_config_of_a_search_are_lists_or_single_values(study: Callable[..., Study]) -> None:
    search = {"depth": 2, "stages": [1, 2], "stage_widths": ["16", "16,32"], "method": "tree", "least": 0}
    group = {"macs": "250k", "search": search, "networks": ["searched"]}
    (found,) = Plan(study(groups={"one": group}), Path("unused"), CPU).searches
    space = found.config.space
    assert (space.depth, space.stages, space.stage_widths, space.least) == ((2,), (1, 2), ("16", "16,32"), 0)


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
    with pytest.raises(UserError) as error:
        read_study(str(write(data)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_setting_is_named_wherever_it_stands(write: Write) -> None:
    for entries, reason in (
        ({"grups": {}}, "the file has an unknown setting 'grups'; did you mean groups?"),
        (in_group(macz="1M"), "group one has an unknown setting 'macz'; did you mean macs?"),
        (in_group(networks={"a": {"network": "AS", "widhts": [8]}}), "'widhts'; did you mean widths?"),
        (in_group(arch={"poolop": "avg"}), "arch of group one has an unknown setting 'poolop'; did you mean pool_op?"),
        ({"data": {"dta": "digits"}}, "data has an unknown setting 'dta'; did you mean data?"),
        ({"recipe": {"epoch": 1}}, "recipe has an unknown setting 'epoch'; did you mean epochs?"),
        ({"recipe": {"augment": {"flip": 1}}}, "augment has an unknown setting 'flip'; did you mean hflip?"),
        ({"search": {"dept": 2}}, "search of group one has an unknown setting 'dept'; did you mean depth?"),
        (in_group(search={"resume": True}), "has an unknown setting 'resume'"),  # the study sets it
        ({"claims": [{**CLAIM, "atmost": 1}]}, "a claim has an unknown setting 'atmost'; did you mean at_most?"),
        ({"quick": {"sees": [0]}}, "quick has an unknown setting 'sees'; did you mean seeds?"),
    ):
        said = refused(write, {**SMALL, **entries})
        assert said.startswith("mine.yaml: ")
        assert reason in said, entries


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"groups": None}, "groups is not a list of names with values"),
        ({"claims": 5}, "claims 5 is not a list"),
        ({"claims": [{**CLAIM, "claim": None}]}, "the text of a claim None is not text"),
        ({"precision": "half"}, "precision 'half' is not one of auto, float32, bfloat16, float16"),
        ({"data": {"validation": 2}}, "--validation 2.0 is not a fraction"),
        ({"search": {"stage_widths": [16]}}, "--stage-widths 16 is not a list of whole numbers such as 32,48,64"),
        ({"reads": "train"}, "reads 'train' is not one of test, validation"),
        ({"groups": {}}, "it has no groups: name one, with its networks"),
        (in_group(networks=[]), "group one has no networks"),
        (in_group(networks=[{"network": "deit"}]), "networks of group one {'network': 'deit'} is not text"),
        (in_group(networks={"a": {"pool_op": "avg"}}), "network a has no network: name one"),
        (in_group(networks={"a": {"network": "AS", "macs": "5M"}}), "network a: macs '5M' is not one of keep"),
        (in_group(networks={"a": {"network": "searched", "pool_op": "avg"}}, macs="1M"), "leave out pool_op"),
        (in_group(networks={"a": {"network": "searched", "macs": "keep"}}, macs="1M"), "leave out macs"),
        (in_group(networks=["searched"], arch={"pool_op": "avg"}, macs="1M"), "searched as it is: leave out pool_op"),
        (in_group(networks=["searched"]), "group one searches a network and has no macs: give it some, as 6M"),
        (in_group(seeds=[]), "seeds [] of network deit are not different whole numbers"),
        (in_group(seeds=[0, -1]), "seeds of network deit: -1 is not a whole number from 0 to 10^18"),
        (in_group(networks={"a": {"network": "AS", "seeds": [2, 2]}}), "seeds [2, 2] of network a are not different"),
        ({"recipe": {"name": "heavy"}}, "there is no recipe 'heavy': the recipes are light, deit"),
        ({"claims": [{**CLAIM, "at_most": "half"}]}, "claim 'c': at_most 'half' is not a positive number"),
        ({"claims": [{**CLAIM, "better": ["one", "resnet18"]}]}, "claim 'c': better ['one', 'resnet18'] is not [group"),
        ({"figures": [{"groups": ["three"]}]}, "a figure's groups ['three'] are not among one, two"),
        (
            {"figures": [{"groups": ["one"], "x": "params"}]},
            "x of a figure 'params' is not one of macs, images",
        ),
    ],
)
def test_a_value_outside_its_rule_is_named(entries: dict[str, Any], reason: str, write: Write) -> None:
    assert reason in refused(write, {**SMALL, **entries})


def test_a_file_that_is_no_study(write: Write) -> None:
    for text, reason in (
        ("just words", "mine.yaml: the file is not a list of names with values"),
        ("groups: [", "mine.yaml is not YAML: while parsing"),
        ("groups:\n  a: {networks: {deit: deit, deit: AS}}", "mine.yaml: line 2: 'deit' stands twice"),
        ("a: !!python/object:os.system {}", "mine.yaml is not YAML: could not determine a constructor"),
    ):
        assert reason in refused(write, text)


def test_a_study_that_cannot_be_run_is_refused_before_anything_is_trained(write: Write) -> None:
    two = SMALL["groups"]["two"]
    for entries, reason in (
        (in_group(networks={"a b": "deit", "A-B": "deit"}), "networks 'a b' and 'A-B' would share a folder"),
        ({"groups": {"x!": two, "x?": two}}, "groups 'x!' and 'x?' would share"),
        (in_group(networks={"found": "searched", "Search": "deit"}, macs="1M"), "'search' and 'Search' would share"),
        (in_group(data={"validation": 0}), "group one has validation 0"),
        (in_group(networks=["vit_nothing"]), "network vit_nothing of group one: no model is called 'vit_nothing'"),
        (in_group(networks={"a": {"network": "AS", "widths": [7]}}), "network a of group one: width 7"),
        (in_group(networks={"a": {"network": "resnet18", "pool_op": "avg"}}), "resnet18 is a model of timm"),
        (in_group(macs="1k"), "network deit of group one: no width of"),
        (in_group(networks=["searched"], macs="1M", search={"depth": [1, 2, 3]}), "--depth 1 2 3"),
        (in_group(recipe={"opt": "adamz"}), "recipe of group one: --opt 'adamz' is not to be had"),
        (in_group(data={"limit": 5}), "--limit 5 is below the 10 classes"),
    ):
        with pytest.raises(UserError) as error:
            Plan(read_study(str(write({**SMALL, **entries}))), Path("unused"), CPU)
        assert reason in str(error.value), entries


def test_an_unknown_study(cli: Cli, tmp_path: Path) -> None:
    assert "there is no study 'claim'; did you mean claims?" in cli.refused("study", "claim")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "study.txt").touch()
    for name in ("nothing", tmp_path, tmp_path / "folder.yaml", tmp_path / "none.yaml", tmp_path / "study.txt"):
        said = cli.refused("study", name)
        assert f"there is no study {str(name)!r}: give {', '.join(names())}, or a YAML file like theirs" in said


def test_flags_that_do_not_fit(cli: Cli, write: Write, tmp_path: Path) -> None:
    path = write(SMALL)
    assert "--resume and --overwrite contradict" in cli.refused("study", path, "--resume", "--overwrite")
    assert "--jobs 0 is not a whole number of at least 1" in cli.refused("study", path, "--jobs", "0")
    assert "mine.yaml: it has no section quick: leave out --quick" in cli.refused("study", path, "--quick")
    assert "is a folder: give a file" in cli.refused("study", path, "--results", tmp_path, "--output", tmp_path / "out")
    assert "is a file: give a folder as --output" in cli.refused("study", path, "--output", path)


# Printed and planned -------------------------------------------------------------------------------------------------


def test_a_study_is_printed_as_it_is(cli: Cli) -> None:
    assert cli.ok("study", "claims", "--print") == (STUDIES / "claims.yaml").read_text(encoding="utf-8")


def test_a_dry_run_lists_everything_and_writes_nothing(
    cli: Cli, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it works")

    monkeypatch.setattr("psvit.studies.task_runner.work_all", never)
    networks = {"ours": "psvit_2d", "found": "searched"}
    path = write({**SMALL, "groups": {"one": {"macs": "1M", "seeds": [0, 2], "networks": networks}}})
    said = cli.ok("study", path, "--dry-run", "--output", tmp_path / "out", "--results", tmp_path / "results.json")
    assert "one: digits, 48 images, 20 epochs" in said
    for line in ("ours: AS-ASS-AS 2d", "found: what the search finds"):
        assert f"  {line}" in said
    assert said.count("seeds 0 2") == 2
    assert "one, search: 1M" in said
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mine.yaml"]


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
    assert slug("6 M MACs, reinvested") == "6-m-macs-reinvested"
    assert slug("../..") == "-"
    assert slug("日本, 2") == "日本-2"
    assert slug("Ü") == slug("U\u0308") == "ü", "however it is written"
    assert slug("Ω/..") == "ω"
    assert slug("+?") == "-"


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
