"""A YAML file -> a study: groups of networks, trained with several seeds, and claims about them. No torch.

title: Do poolings help?
question: The question in a sentence or two.
reads: validation                     # or test: the split whose metrics count
precision: float32                    # of the trainings; leave out for the machine's best
data: {data: fashion-mnist, limit: 12000, validation: 0.1}
recipe: {epochs: 6}                   # changes to the recipe that fits; name: light takes another
groups:
  equal MACs:                         # a name
    macs: 6M                          # scale all networks to this; leave out for no scaling
    seeds: [0, 1, 2]
    networks:
      deit: deit                      # label: a network, as in psvit run --models
      average: {network: psvit_2d, pool_op: avg}              # with other fields of Arch
      narrow: {network: AS-AS, widths: [32, 32], macs: keep}  # not scaled
claims:
  - {claim: Average over DeiT, better: [equal MACs, average], worse: [equal MACs, deit], at_most: 0.8}
quick: {data: {limit: 500}, recipe: {epochs: 1}, seeds: [0]}  # changes with --quick
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from psvit.arch.arch import ARCH_FIELDS
from psvit.arch.model_config import AUTO
from psvit.config import Count, Positive, Seed, checked
from psvit.data.data_config import DataConfig
from psvit.engine.recipes import recipe_named
from psvit.engine.train_config import Precision, Recipe
from psvit.errors import UserError, one_line
from psvit.pipeline.run_config import is_ours
from psvit.search.search_config import ScoringConfig, SearchRunConfig, SpaceConfig, SupernetConfig
from psvit.studies.definition import SEARCHED, Axis, Claim, Figure, Group, Network, Split, Study

REWRITTEN = ("deit", "psvit_1d", "psvit_2d", "psvit_plus", "plain_twin")
"""Networks that may have a genotype; deit and plain_twin take only its depth."""

LAYERED = ("data", "recipe", "search", "arch")
"""Sections for all groups (at the root of the file) or for one group."""

STUDIES = Path(__file__).parent / "plans"


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def study_file(name: str) -> Path:
    """The file of a study: one of the package, or a path.

    Raises:
        UserError: no such study.
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
        name: of a study of the package, or a YAML file.
        quick: apply its section quick.

    Raises:
        UserError: no such study, or a wrong setting; the message names the file and the setting.
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
    """A loader that refuses duplicate names: YAML would silently drop the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping, checked for duplicates."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise UserError(f"line {key.start_mark.line + 1}: {key.value!r} stands twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML reads 1e-3 as text; here it is a number, as on the command line
_Once.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("+-0123456789")
)


def _study(name: str, data: Mapping[str, Any], quick: bool) -> Study:
    apart = ("title", "question", "reads", "precision", "groups", "claims", "figures", "quick")
    check_names(data, (*apart, *LAYERED), "the file")
    if quick and not data.get("quick"):
        raise UserError("it has no section quick: leave out --quick")
    small = _section(data, "quick")
    check_names(small, ("data", "recipe", "search", "seeds"), "quick")
    groups = tuple(
        _group(str(group), _mapping(own, f"group {group}"), data, small if quick else {})
        for group, own in _mapping(data.get("groups"), "groups").items()
    )
    if not groups:
        raise UserError("it has no groups: name one, with its networks")
    return Study(
        name,
        title=str(data.get("title", name)),
        question=str(data.get("question", "")).strip(),
        reads=checked(data.get("reads", "test"), Split, "reads"),
        groups=groups,
        claims=tuple(_claim(entry, groups) for entry in _list(data.get("claims"), "claims")),
        figures=tuple(_figure(entry, groups) for entry in _list(data.get("figures"), "figures"))
        or tuple(Figure((group.name,)) for group in groups),
        quick=quick,
        precision=checked(data.get("precision", "auto"), Precision, "precision"),
    )


def _group(name: str, own: Mapping[str, Any], shared: Mapping[str, Any], small: Mapping[str, Any]) -> Group:
    """A group from the sections for all groups, its own, and those of quick; later ones win."""
    what = f"group {name}"
    check_names(own, ("macs", "seeds", "networks", *LAYERED), what)
    data, recipe, search, arch = (
        {k: v for part in (shared, own, small) for k, v in _section(part, key).items()} for key in LAYERED
    )
    search_config(search, f"search of {what}")
    check_names(arch, ARCH_FIELDS, f"arch of {what}")
    networks = own.get("networks")
    if isinstance(networks, list):
        networks = {network: network for network in checked(networks, tuple[str, ...], f"networks of {what}")}
    entries = _mapping(networks, f"networks of {what}").items()
    found = tuple(_network(str(label), spec, arch, own.get("seeds", 0), small.get("seeds")) for label, spec in entries)
    if not found:
        raise UserError(f"{what} has no networks")
    macs = None if own.get("macs") is None else str(own["macs"])
    images = _made(DataConfig, {"split_seed": 0, **data}, "data")
    group = Group(name, found, macs, images, _recipe(recipe, images.side), _pairs(search))
    if group.searches and macs is None:
        raise UserError(f"{what} searches a network and has no macs: give it some, as 6M")
    return group


def _network(label: str, spec: Any, arch: Mapping[str, Any], seeds: Any, quick_seeds: Any) -> Network:
    """A network from its name or entries, the group's fields of Arch and seeds, and the seeds of quick."""
    what = f"network {label}"
    changes = {"network": spec} if isinstance(spec, str) else dict(_mapping(spec, what))
    network, macs = changes.pop("network", None), changes.pop("macs", None)
    seeds = _seeds(changes.pop("seeds", seeds), label)
    if not isinstance(network, str):
        raise UserError(f"{what} has no network: name one, such as psvit_2d or AS-ASS-AS")
    kept = checked(macs, Literal["keep"] | None, f"{what}: macs") is not None
    check_names(changes, ARCH_FIELDS, what)
    if network == SEARCHED and (given := [*changes, *["macs"] * kept, *arch]):
        raise UserError(f"{what} is searched as it is: leave out {given[0]}")
    if is_ours(network):
        changes = {**arch, **changes}
    if changes.get("genotype") is not None and network not in REWRITTEN:
        raise UserError(f"{what}: {network} has no other genotype: leave it out, or take psvit_2d")
    return Network(
        label, network, _pairs(changes), not kept, seeds if quick_seeds is None else _seeds(quick_seeds, label)
    )


def _recipe(given: Mapping[str, Any], side: int) -> Recipe:
    """The recipe with changes, for images of this side; without a name the fitting one."""
    given = dict(given)
    epochs = checked(given.get("epochs"), Count | None, "epochs of recipe:")
    base = recipe_named(given.pop("name", AUTO), epochs, side)
    augment = _made(base.augment, _mapping(given.pop("augment", {}), "augment"), "augment")
    return _made(base, {**given, "augment": augment}, "recipe")


def _claim(entry: Any, groups: Sequence[Group]) -> Claim:
    data = dict(_mapping(entry, "a claim"))
    check_names(data, [field.name for field in fields(Claim)], "a claim")
    what = f"claim {checked(data.get('claim'), str, 'the text of a claim')!r}"
    there = {(group.name, network.label) for group in groups for network in group.networks}
    for side in ("better", "worse"):
        data[side] = tuple(map(str, _list(data.get(side), f"{side} of {what}")))
        if data[side] not in there:
            raise UserError(f"{what}: {side} {list(data[side])} is not [group, label] of a network")
    return Claim(**{**data, "at_most": checked(data.get("at_most", 1.0), Positive, f"{what}: at_most")})


def _figure(entry: Any, groups: Sequence[Group]) -> Figure:
    data = _mapping(entry, "a figure")
    check_names(data, [field.name for field in fields(Figure)], "a figure")
    there = [group.name for group in groups]
    named = tuple(map(str, _list(data.get("groups"), "groups of a figure")))
    if not named or not set(named) <= set(there):
        raise UserError(f"a figure's groups {list(named)} are not among {', '.join(there)}")
    return Figure(named, checked(data.get("x"), Axis | None, "x of a figure"))


def search_config(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The parts of a `SearchConfig` that a study may set, by name.

    Raises:
        UserError: an unknown setting, one that the study sets itself, or a wrong value.
    """
    kinds: dict[str, type[Any]] = {
        "search": SearchRunConfig, "space": SpaceConfig, "supernet": SupernetConfig, "scoring": ScoringConfig
    }  # fmt: skip
    apart = ("budget", "output", "resume", "overwrite")
    own = {part: [field.name for field in fields(kind) if field.name not in apart] for part, kind in kinds.items()}
    check_names(given, [name for names in own.values() for name in names], what)
    return {
        part: kind(**{name: value for name, value in given.items() if name in own[part]})
        for part, kind in kinds.items()
    }


def _made(base: Any, given: Mapping[str, Any], what: str) -> Any:
    """A dataclass built with, or an instance changed by, the values in `given`."""
    check_names(given, [field.name for field in fields(base)], what)
    return base(**given) if isinstance(base, type) else replace(base, **given)


def _seeds(given: Any, network: str) -> tuple[int, ...]:
    seeds: tuple[int, ...] = checked(given, tuple[Seed, ...], f"seeds of network {network}:")
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {given} of network {network} are not different whole numbers, such as [0, 1, 2]")
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
    """The names and values of a section; empty if it is left out."""
    return _mapping({} if data.get(name) is None else data[name], name)


def _pairs(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in given.items())


def check_names(given: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Refuse unknown settings.

    Raises:
        UserError: a name in `given` is not in `known`; the message suggests a close one or lists all.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f": it may have {', '.join(known)}"
            raise UserError(f"{what} has an unknown setting {name!r}{hint}")
