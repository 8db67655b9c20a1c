"""Settings as flags and YAML files: fields of dataclasses -> flags with help texts -> dataclasses."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import yaml
from docstring_parser.google import parse as parse_docstring

from psvit.arch.model_config import AUTO, ModelConfig
from psvit.config import Config, Fraction, Seed, Text, checked, hints_of, leaves
from psvit.data.data_config import DataConfig, usual_side
from psvit.engine.recipes import RECIPES, fitting, recipe_named
from psvit.engine.train_config import Schedule
from psvit.errors import UserError, flag, one_line
from psvit.report.command import flag_words

T = TypeVar("T")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Adds the default to a flag's help text."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if default is None or default is False or default in (argparse.SUPPRESS, (), {}) or not action.option_strings:
            return text
        values = default if isinstance(default, (tuple, list)) else (default,)
        return f"{text} (default {' '.join(f'{x:g}' if isinstance(x, float) else str(x) for x in values)})"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """Raise a UserError with a message of one line."""
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            name = unknown[1].partition("=")[0]
            close = difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.7)
            hint = f"; did you mean {close[0]}?" if close else ""
            message = f"there is no flag {name}{hint}" if name.startswith("-") else f"{unknown[1]!r} is too many"
        command = " ".join(takewhile(str.islower, self.prog.split()))
        raise UserError(f"{message.removeprefix('argument ')} (see {command} --help)")


class Flags:
    """The flags of a command: those of its settings, ``--config FILE.yaml``, and further ones by `add`.

    Args:
        command: its name.
        description: what it does, with an example.
        configs: dataclass instances, possibly nested, whose fields become flags and whose values the defaults; if a
            name occurs twice, the first one counts.
        apart: names of fields that do not become flags.
    """

    def __init__(self, command: str, description: str, *configs: Any, apart: Sequence[str] = ()) -> None:
        self.parser = _Parser(
            prog=f"psvit {command}",
            usage=f"psvit {command} [flags]",
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self.parser._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)")  # values, as argparse says of -1 alone
        self.hints: dict[str, Any] = {}
        for config in configs:
            self._add_config(config, apart)
        if configs:
            self.parser.add_argument(
                "--config", metavar="FILE", help="YAML file of flags; the command line counts more"
            )
            self.parser.add_argument("--print-config", action="store_true", help="print such a file, with all values")

    def _add_config(self, config: Any, apart: Sequence[str]) -> None:
        config = config.flags() if isinstance(config, ModelConfig) else config
        cls = type(config)
        texts = {param.arg_name: param.description for base in reversed(cls.__mro__) if is_dataclass(base)
                 for param in parse_docstring(base.__doc__ or "").params}  # fmt: skip
        group = self.parser.add_argument_group((cls.__doc__ or "").splitlines()[0].rstrip("."))
        for field in fields(config):
            value = getattr(config, field.name)
            if is_dataclass(value):
                self._add_config(value, apart)
            elif field.name not in apart and field.name not in self.hints:
                text = " ".join((texts.get(field.name) or "").split()).rstrip(".")
                self.add(flag(field.name), text, hints_of(cls)[field.name], value, group)

    def add(self, name: str, text: str, hint: Any = Text, default: Any = None, group: Any = None) -> None:
        """Add a flag or a positional argument, with its help text, annotation and default."""
        self.hints[name.lstrip("-").replace("-", "_")] = hint
        kinds = list(leaves(hint))
        options: dict[str, Any] = {"default": default, "help": text.replace("%", "%%")}
        if hint is bool and default is False:
            options["action"] = "store_true"
        elif name.startswith("-"):
            options["metavar"] = next(filter(None, map(_metavar, kinds)), None)
        if any(get_origin(kind) is tuple for kind in kinds):
            options["nargs"] = "+"
        (group or self.parser).add_argument(name, **options)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse the arguments after the command's name.

        Raises:
            UserError: a wrong argument.
        """
        words, settings = read_files(arguments)
        if unknown := next((name for name in settings if name not in self.hints), None):
            what = (
                "{} belongs on the command line, not in a file"
                if self._is_flag(unknown)
                else "unrecognized arguments: {}"
            )
            self.parser.error(what.format(flag(unknown)))
        self.parser.set_defaults(**settings)
        for action in self.parser._actions:
            if not action.option_strings and action.dest in settings:
                action.nargs = "*" if action.nargs == "+" else "?"
        values = self.parser.parse_args(words)
        for name, hint in self.hints.items():
            called = flag(name) if self._is_flag(name) else name
            setattr(values, name, checked(_meant(getattr(values, name), hint), hint | None, called))
        if getattr(values, "print_config", False):
            shown = {name: getattr(values, name) for name in self.hints if self._is_flag(name)}
            print(yaml.safe_dump(json.loads(json.dumps(shown)), sort_keys=False, allow_unicode=True), end="")
            raise SystemExit(0)
        return values

    def _is_flag(self, name: str) -> bool:
        return flag(name) in self.parser._option_string_actions


def read_files(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The arguments without ``--config FILE``, and the values in these YAML files, as words; later files win.

    Raises:
        UserError: a file cannot be read, or is not a mapping.
    """
    words, settings, rest = list[str](), dict[str, list[str]](), iter(arguments)
    for word in rest:
        name, given, path = word.partition("=")
        if name != "--config":
            words.append(word)
            continue
        if not (path := path if given else next(rest, "")):
            raise UserError("--config names no file: give the path of a YAML file")
        try:
            data = yaml.safe_load(Path(_at_home(path)).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"--config {path} cannot be read: {one_line(error)}") from error
        if not isinstance(data, dict):
            raise UserError(f"--config {path} is not a list of flags with values, such as epochs: 3")
        settings |= {str(key).replace("-", "_"): flag_words("", value, False)[1:] for key, value in data.items()}
    return words, settings


def _metavar(kind: Any) -> str | None:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "N", float: "X", bool: "{true,false}"}.get(kind)


def _meant(given: Any, hint: Any) -> Any:
    """The value of text from the command line; other values are defaults and stay as they are."""
    if isinstance(given, list):
        return [_meant(one, hint) for one in given] if len(given) != 1 else _meant(given[0], hint)
    kinds = list(leaves(hint))
    if not isinstance(given, str) or (str in kinds or any(get_origin(kind) is Literal for kind in kinds)):
        return None if given == "null" and NoneType in kinds else _at_home(given)
    for parse in (json.loads, float):
        try:
            return parse(given)
        except ValueError:
            continue
    return given


def _at_home(value: Any) -> Any:
    """Expand ``~`` at the start of a path, also in a URL."""
    if not isinstance(value, str):
        return value
    return re.sub(r"^(sqlite:///|journal://|)(~[^\n]*)", lambda path: path[1] + os.path.expanduser(path[2]), value)


def config_from(values: Namespace, like: T, **fixed: Any) -> T:
    """`like` with the parsed values, also in nested dataclasses; `fixed` overrides them."""
    found: dict[str, Any] = {}
    for field in fields(cast(Any, like)):
        value = getattr(like, field.name)
        if isinstance(value, ModelConfig):
            found[field.name] = config_from(values, value.flags()).config()
        elif is_dataclass(value):
            found[field.name] = config_from(values, value)
        elif field.name in values:
            found[field.name] = getattr(values, field.name)
    return replace(cast(Any, like), **{**found, **fixed})


def with_recipe(
    command: str,
    description: str,
    defaults: Callable[[Any], T],
    arguments: Sequence[str],
    recipes: Mapping[str, Callable[[], Schedule]] = RECIPES,
    apart: Sequence[str] = (),
) -> T:
    """Parse the flags of a command whose defaults depend on its flag --recipe; if that is auto, print which it is.

    Args:
        command: its name.
        description: what it does, with an example.
        defaults: a recipe -> the settings.
        arguments: of the command line.
        recipes: by name; a classifier's also have auto, which is then the default, else the first one is.
        apart: names of fields that do not become flags.

    Raises:
        UserError: a wrong argument.
    """
    names = [AUTO, *recipes] if recipes is RECIPES else list(recipes)
    name, epochs, side = _asked_recipe(arguments, names[0])
    known = name if name in names else names[0]  # the parser refuses others
    config = defaults(recipe_named(known, epochs, side) if recipes is RECIPES else recipes[known]())
    flags = Flags(command, description, *vars(config).values(), apart=apart)
    fits = "auto takes the one that fits --epochs and the size of the images; it " if AUTO in names else ""
    flags.add("--recipe", f"{fits}gives the defaults of the training", Literal[tuple(names)], name)
    values = flags.parse(arguments)
    if known == AUTO and os.environ.get("RANK", "0") == "0":  # with several processes, only the first prints
        print(f"recipe    {' for '.join(fitting(epochs, side))} (see --recipe)")
    return config_from(values, config)


def _asked_recipe(arguments: Sequence[str], usual: str) -> tuple[str, int | None, int]:
    """What decides on the defaults, before all flags are parsed: --recipe, --epochs, and the side of the images."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    words, settings = read_files(arguments)
    for flag_name, default in (("recipe", usual), ("epochs", ""), ("data", DataConfig.data), ("img-size", "")):
        given = settings.get(flag_name.replace("-", "_"), [default])
        first.add_argument(f"--{flag_name}", nargs="*", default=given)
    asked = {name: list(map(str, given)) for name, given in vars(first.parse_known_args(words)[0]).items()}
    sides = [int(text) for text in asked["img_size"] if text.isdecimal()]
    epochs = next((int(text) for text in asked["epochs"] if text.isdecimal()), None)
    return " ".join(asked["recipe"]), epochs, max(sides) if sides else usual_side(" ".join(asked["data"]))


@dataclass(frozen=True)
class SplitFlags(Config):
    """The validation split.

    Args:
        validation: fraction of each class in the validation split; by default as in the training.
        seed: seed of the validation split, and of the choice of images if only some are used; by default as in the
            training.
        split_seed: seed of the validation split only; by default as in the training.
    """

    validation: Fraction | None = None
    seed: Seed | None = None
    split_seed: Seed | None = None

    def filled(self, trained: DataConfig | None) -> dict[str, Any]:
        """These values; missing ones come from the training, or are defaults if it is unknown."""
        default = trained or DataConfig()
        return {name: getattr(default, name) if value is None else value for name, value in vars(self).items()}
