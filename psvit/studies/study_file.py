"""A YAML file -> a study: groups of networks, each trained with several seeds, and the claims that they test. No torch.

title: Do poolings help?
question: A sentence or two on what is asked.
reads: validation                        # or test: the split whose figures count
precision: float32                    # of the trainings; leave out for the machine's best
data: {data: fashion-mnist, limit: 12000, validation: 0.1}
recipe: {epochs: 6}                   # what differs from the light recipe
groups:
  equal MACs:                         # a name
    macs: 6M                          # every network is scaled to them; leave out for none
    seeds: [0, 1, 2]
    networks:
      deit: deit                      # label: a network, as psvit run --models knows it
      average: {network: psvit_2d, pool_op: avg}              # with other fields of Arch
      narrow: {network: AS-AS, widths: [32, 32], macs: keep}  # not scaled
claims:
  - {claim: Average over DeiT, better: [equal MACs, average], worse: [equal MACs, deit], at_most: 0.8}
quick: {data: {limit: 500}, recipe: {epochs: 1}, seeds: [0]}  # what --quick changes
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from psvit.arch.arch import ARCH_FIELDS
from psvit.data.data_config import DataConfig
from psvit.engine.train_config import RECIPES, Machine, Recipe
from psvit.errors import UserError, one_line
from psvit.search.search_config import SearchFolder, SpaceConfig, SupernetConfig
from psvit.studies.plan import SEARCHED, Claim, Figure, Group, Network, Study, is_ours

REWRITTEN = ("deit", "psvit_1d", "psvit_2d")
"""Networks that a genotype changes; deit is as deep as it."""

STUDIES = Path(__file__).parent / "plans"


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def study_file(name: str) -> Path:
    """The file of a study: one that comes with the package, or a path.

    Raises:
        UserError: there is none.
    """
    own = STUDIES / f"{name}.yaml"
    if own.is_file():
        return own
    path = Path(os.path.expanduser(name))
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else f": give {', '.join(names())}, or a YAML file like theirs"
    raise UserError(f"there is no study {name!r}{hint}")


def read_study(name: str, quick: bool = False) -> Study:
    """Read and check a study.

    Args:
        name: of one that comes with the package, or a YAML file.
        quick: take what its section quick says instead.

    Raises:
        UserError: no such study, or a setting outside its rule; the message names the file and the setting.
    """
    path = study_file(name)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Once)
        return replace(_study(path.stem, _mapping(data, "the file"), quick), source=name)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not YAML: {one_line(error)}") from error
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error


class _Once(yaml.SafeLoader):
    """Refuses a name that a mapping holds twice, of which YAML would silently drop the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping's names and values."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise UserError(f"line {key.start_mark.line + 1}: {key.value!r} stands twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# to YAML 1e-3 is text, 1.0e-3 a number; here both are numbers, as on the command line
_Once.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("+-0123456789")
)


def _study(name: str, data: Mapping[str, Any], quick: bool) -> Study:
    apart = ("title", "question", "reads", "precision", "groups", "claims", "figures", "quick")
    check_names(data, (*apart, "data", "recipe", "search", "arch"), "the file")
    if quick and not data.get("quick"):
        raise UserError("it has no section quick: leave out --quick")
    small = _section(data, "quick")
    check_names(small, ("data", "recipe", "search", "seeds"), "quick")
    small = small if quick else {}
    groups = tuple(
        _group(group, _mapping(own, f"group {group}"), data, small)
        for group, own in _mapping(data.get("groups"), "groups").items()
    )
    if not groups:
        raise UserError("it has no groups: name one, with its networks")
    reads = data.get("reads", "test")
    if reads not in ("test", "validation"):
        raise UserError(f"reads {reads!r} is not test or validation")
    study = Study(name, str(data.get("title", name)), str(data.get("question", "")).strip(), reads, groups, quick=quick)
    return replace(
        study,
        precision=Machine(precision=data.get("precision", "auto")).precision,
        claims=tuple(_claim(entry, study) for entry in _list(data.get("claims"), "claims")),
        figures=tuple(_figure(entry, study) for entry in _list(data.get("figures"), "figures"))
        or tuple(Figure((group.name,)) for group in groups),
    )


def _group(name: str, own: Mapping[str, Any], shared: Mapping[str, Any], small: Mapping[str, Any]) -> Group:
    check_names(own, ("macs", "seeds", "arch", "networks", "data", "recipe", "search"), f"group {name}")
    seeds = _seeds(small.get("seeds", own.get("seeds", [0])), name)
    layers = (shared, own, small)
    given: dict[str, dict[str, Any]] = {
        key: {k: v for part in layers for k, v in _section(part, key).items()}
        for key in ("data", "recipe", "search", "arch")
    }
    search_config(given["search"], f"search of group {name}")
    networks = own.get("networks")
    if isinstance(networks, list):
        if not all(isinstance(network, str) for network in networks):
            raise UserError(f"networks of group {name} are a list of more than names: give label: {{network: ...}}")
        if len(set(networks)) < len(networks):
            raise UserError(f"networks {networks} of group {name} hold one twice")
        networks = {network: network for network in networks}
    entries = _mapping(networks, f"networks of group {name}").items()
    check_names(given["arch"], ARCH_FIELDS, f"arch of group {name}")
    found = tuple(
        _network(str(label), spec, Defaults(seeds, "seeds" in small, given["arch"])) for label, spec in entries
    )
    if not found:
        raise UserError(f"group {name} has no networks")
    macs = own.get("macs")
    data = _made(DataConfig, {"split_seed": 0, **given["data"]}, "data")
    group = Group(
        str(name), found, None if macs is None else str(macs), data, _recipe(given["recipe"]), _pairs(given["search"])
    )
    if group.searches and macs is None:
        raise UserError(f"group {name} searches a network and has no macs: give it some, as 6M")
    return group


class Defaults(NamedTuple):
    """What a group says of all its networks: seeds, whether they are fixed, fields of Arch."""

    seeds: tuple[int, ...]
    fixed: bool
    arch: Mapping[str, Any]


def _network(label: str, spec: Any, group: Defaults) -> Network:
    changes = {"network": spec} if isinstance(spec, str) else dict(_mapping(spec, f"network {label}"))
    network, macs = changes.pop("network", None), changes.pop("macs", None)
    seeds = _seeds(changes.pop("seeds", group.seeds), label)
    if not isinstance(network, str):
        raise UserError(f"network {label} has no network: name one, such as psvit_2d or AS-ASS-AS")
    if macs not in (None, "keep"):
        raise UserError(f"network {label}: macs {macs!r} is not keep; MACs are the group's")
    check_names(changes, ARCH_FIELDS, f"network {label}")
    if network == SEARCHED and (changes or macs):
        raise UserError(f"network {label} is searched as it is: leave out {next(iter(changes), 'macs')}")
    if network == SEARCHED and group.arch:
        raise UserError(
            f"network {label} is searched as it is, so arch would leave it out: give {next(iter(group.arch))} to each "
            "network that is to have it"
        )
    if is_ours(network):
        changes = {**group.arch, **changes}
    if changes.get("genotype") is not None and network not in REWRITTEN:
        raise UserError(f"network {label}: {network} has no other genotype: leave it out, or take psvit_1d or psvit_2d")
    return Network(label, network, _pairs(changes), macs is None, group.seeds if group.fixed else seeds)


def _recipe(given: Mapping[str, Any]) -> Recipe:
    given = dict(given)
    name = given.pop("name", "light")
    if name not in list(RECIPES):
        raise UserError(f"there is no recipe {name!r}: the recipes are {', '.join(RECIPES)}")
    base = RECIPES[name]()
    augment = _made(base.augment, _mapping(given.pop("augment", {}), "augment"), "augment")
    return _made(base, {**given, "augment": augment}, "recipe")


def _claim(entry: Any, study: Study) -> Claim:
    data = dict(_mapping(entry, "a claim"))
    check_names(data, [f.name for f in fields(Claim)], "a claim")
    if not isinstance(data.get("claim"), str):
        raise UserError(f"a claim's claim {data.get('claim')!r} is not text: say what it claims")
    there = {(group.name, network.label) for group in study.groups for network in group.networks}
    for side in ("better", "worse"):
        where = tuple(map(str, _list(data.get(side), f"{side} of claim {data['claim']!r}")))
        if where not in there:
            raise UserError(f"claim {data['claim']!r}: {side} {list(where)} is not [group, label] of a network")
        data[side] = where
    bound = data.get("at_most", 1.0)
    if not isinstance(bound, (int, float)) or isinstance(bound, bool) or not 0 < bound < inf:
        raise UserError(f"claim {data['claim']!r}: at_most {bound!r} is not a positive number")
    return Claim(**data)


def _figure(entry: Any, study: Study) -> Figure:
    data = _mapping(entry, "a figure")
    check_names(data, [f.name for f in fields(Figure)], "a figure")
    there = [group.name for group in study.groups]
    groups = tuple(map(str, _list(data.get("groups"), "groups of a figure")))
    if not groups or any(group not in there for group in groups):
        raise UserError(f"a figure's groups {list(groups)} are not among {', '.join(there)}")
    if data.get("x") not in (None, "macs", "images", "epochs"):
        raise UserError(f"a figure's x {data['x']!r} is not macs, images or epochs")
    return Figure(groups, data.get("x"))


def search_config(given: Mapping[str, Any], what: str) -> dict[str, dict[str, Any]]:
    """Settings of a search, by the part of `SearchConfig` that they belong to, each checked.

    Raises:
        UserError: one that there is not, that the study sets itself, or that breaks its rule; it begins with `what`.
    """
    kinds: dict[str, type[Any]] = {"search": SearchFolder, "space": SpaceConfig, "supernet": SupernetConfig}
    apart = ("budget", "output", "resume", "overwrite")
    own = {part: [f.name for f in fields(kind) if f.name not in apart] for part, kind in kinds.items()}
    check_names(given, [name for names in own.values() for name in names], what)
    parts = {part: {name: value for name, value in given.items() if name in own[part]} for part in kinds}
    for part, kind in kinds.items():
        kind(**parts[part])
    return parts


def _made(base: Any, given: Mapping[str, Any], what: str) -> Any:
    """A settings class, or settings with other values.

    Raises:
        UserError: a field that there is not, or a value that breaks its rule.
    """
    check_names(given, [field.name for field in fields(base)], what)
    return base(**given) if isinstance(base, type) else replace(base, **given)


def _seeds(given: Any, where: str) -> tuple[int, ...]:
    seeds = tuple(given) if isinstance(given, (list, tuple)) else (given,)
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise UserError(f"seeds {given!r} of {where} are not whole numbers of at least 0, as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {given!r} of {where} hold one twice")
    return seeds


def _list(value: Any, what: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise UserError(f"{what} {value!r} is not a list")
    return value or []


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what} is not a list of names with values")
    return value


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The names and values of a section; none where it is left out or empty."""
    return _mapping({} if data.get(name) is None else data[name], name)


def _pairs(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in given.items())


def check_names(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse settings that there are not.

    Raises:
        UserError: one of `given` is not `known`; the message names a close one, or all.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f": it may have {', '.join(known)}"
            raise UserError(f"{what} has an unknown setting {name!r}{hint}")
