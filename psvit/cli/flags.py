"""Settings dataclasses -> flags, help and YAML files (through jsonargparse) -> settings."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import types
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    get_loader,
)

from psvit.arch.model_config import ModelConfig
from psvit.data.data_config import DataConfig
from psvit.errors import UserError, flag

T = TypeVar("T")

KINDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "a JSON object", str: "text"}
METAVARS = {int: "N", float: "X"}


class _Help(DefaultHelpFormatter):
    """A description's lines as they are, and a default where there is one; the types stand in the texts."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())

    def _get_help_string(self, action: Action) -> str:
        text, default = action.help or "", action.default
        if default is None or default is False or default in (SUPPRESS, {}, []) or not action.option_strings:
            return text
        values = default if isinstance(default, list) else [default]
        return f"{text} (default {' '.join(f'{x:g}' if isinstance(x, float) else str(x) for x in values)})"


class _ConfigFile(ActionConfigFile):
    """A YAML file in which a list of one may be the value alone, and several values stand as behind the flag."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        values = _at_home(values)
        with suppress(OSError, ValueError, yaml.YAMLError):  # what is wrong with the file is said below
            given = get_loader("yaml")(Path(values).read_text(encoding="utf-8"))
            if isinstance(given, dict):
                values = json.dumps(given | _lists(parser, given), default=str)
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


def _lists(parser: ArgumentParser, given: dict[str, Any]) -> dict[str, list[Any]]:
    """The values of those names in a YAML file that are lists on the command line."""
    found: dict[str, list[Any]] = {}
    for action in parser._actions:
        value = given.get(action.dest)
        if action.nargs == "+" and value is not None:
            parts = value.split() if isinstance(value, str) else value
            found[action.dest] = parts if isinstance(parts, list) else [parts]
    return found


def _at_home(value: Any) -> Any:
    """A path, or a file in a URL, that begins with ``~``, with the folder that this stands for; all else as it is."""
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    if not isinstance(value, str):
        return value
    url, path = re.fullmatch(r"(sqlite:///|journal://|)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
    return url + os.path.expanduser(path) if path.startswith("~") else value


class Flags:
    """The flags of one command: those of its settings, ``--config FILE.yaml``, and what it adds itself.

    Args:
        command: its name.
        description: what it does, an example.
        config: instances whose fields become flags and whose values their defaults. A nested dataclass's fields
            become flags of their own.
        apart: names of fields that become no flags.
    """

    def __init__(self, command: str, description: str, *config: Any, apart: Sequence[str] = ()) -> None:
        self.parser = ArgumentParser(
            prog=f"psvit {command}",
            usage=f"psvit {command} [flags]",
            description=description,
            exit_on_error=False,
            formatter_class=_Help,
            print_config="--print-config",
        )
        self.help = f"psvit {' '.join(takewhile(str.islower, command.split()))} --help"
        self.apart = set(apart)
        self.kinds: dict[str, str] = {}
        for instance in config:
            self._add(instance)
        if config:
            self.parser.add_argument("--config", action=_ConfigFile, help="YAML file with any of these flags")

    def _add(self, instance: Any) -> None:
        instance = instance.flags() if isinstance(instance, ModelConfig) else instance
        hints, texts = get_type_hints(type(instance)), field_texts(type(instance))
        title = (type(instance).__doc__ or "").splitlines()[0].rstrip(".")
        group = self.parser.add_argument_group(title)
        for field in dataclasses.fields(instance):
            default = getattr(instance, field.name)
            if dataclasses.is_dataclass(default):
                self._add(default)
            elif field.name not in self.apart | set(self.kinds):
                hint, text = hints[field.name], texts.get(field.name, "").rstrip(".")
                self.kinds[field.name] = _kind(hint)
                default = list(default) if isinstance(default, tuple) else default
                group.add_argument(flag(field.name), default=default, help=text, **_options(hint, default))

    def add(self, name: str, **options: Any) -> None:
        """One more argument, as argparse's add_argument takes it."""
        kind = options.get("type", str)
        self.kinds[name.lstrip("-").replace("-", "_")] = KINDS[kind]
        if name.startswith("-") and kind in METAVARS:
            options.setdefault("metavar", METAVARS[kind])
        self.parser.add_argument(name, **options)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse the arguments after the command's name.

        Raises:
            UserError: an argument that does not fit.
        """
        try:
            values = self.parser.parse_args(list(arguments))
        except (ArgumentError, TypeError, ValueError) as error:
            raise UserError(f"{self._plainly(error)} (see {self.help})") from error
        for name, value in vars(values).items():
            values[name] = _at_home(value)
        return values

    def _plainly(self, error: Exception) -> str:
        """What jsonargparse and argparse say, in the words of the command line."""
        message = " ".join(str(getattr(error, "message", error)).split())
        wrong = re.match(r'Parser key "(\w+)".*?(?:Got|Given) value: (.*)', message)
        if wrong and wrong[1] in self.kinds:
            known = any(action.dest == wrong[1] and action.option_strings for action in self.parser._actions)
            return f"{flag(wrong[1]) if known else wrong[1]} {wrong[2]!r} is not {self.kinds[wrong[1]]}"
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            is_flag = unknown[1].startswith("-")
            return (
                f"there is no flag {unknown[1]}{self._close(unknown[1])}" if is_flag else f"{unknown[1]!r} is too many"
            )
        if unknown := re.match(r"(?:.*?config.*?: )?Option '(\w+)' is not accepted", message):
            return f"the config file has no setting {unknown[1]!r}{self._close(flag(unknown[1]))}"
        message = re.sub(r'^Parser key "(\w+)"', lambda key: flag(key[1]), message).replace("argument --", "--")
        return message if len(message) <= 300 else message[:299] + "…"

    def _close(self, name: str) -> str:
        options = [option for action in self.parser._actions for option in action.option_strings]
        close = difflib.get_close_matches(name.partition("=")[0], options, n=1, cutoff=0.7)
        return f"; did you mean {close[0]}?" if close else ""


def config_from(values: Namespace, like: T, **fixed: Any) -> T:
    """An instance of `like`'s class with the parsed values; nested dataclasses too."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(like):  # type: ignore[arg-type]
        default = getattr(like, field.name)
        if isinstance(default, ModelConfig):
            found[field.name] = config_from(values, default.flags()).config()
        elif dataclasses.is_dataclass(default) and not isinstance(default, type):
            found[field.name] = config_from(values, default)
        elif field.name in values:
            found[field.name] = _plain(values[field.name], default, get_type_hints(type(like))[field.name])
        else:
            found[field.name] = default
    return type(like)(**{**found, **fixed})


def _options(hint: Any, default: Any) -> dict[str, Any]:
    if hint is bool and default is False:
        return {"action": "store_true"}
    element = _sequence_element(hint)
    if element is not None:
        return {"nargs": "+", "type": element, **_metavar(element)}
    return {"type": hint, **_metavar(hint)}


def _metavar(hint: Any) -> dict[str, str]:
    plain = [kind for kind in (*get_args(hint), hint) if kind in METAVARS]
    return {"metavar": METAVARS[plain[0]]} if plain else {}


def _kind(hint: Any) -> str:
    """What a value has to be, for a message."""
    kind = _sequence_element(hint) or hint
    if get_origin(kind) in (Union, types.UnionType):
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return KINDS.get(get_origin(kind) or kind, "what it has to be")


def _sequence_element(hint: Any) -> Any:
    """The element type of a tuple or list among the alternatives of `hint`, or None."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for alternative in alternatives:
        if get_origin(alternative) in (tuple, list):
            return get_args(alternative)[0]
    return None


def _plain(value: Any, default: Any, hint: Any) -> Any:
    if isinstance(value, Namespace):
        return value.as_dict()
    if isinstance(value, list) and _sequence_element(hint) is not None:
        scalar_too = get_origin(hint) in (Union, types.UnionType) and _sequence_element(hint) in get_args(hint)
        return value[0] if scalar_too and len(value) == 1 else tuple(value)
    return value


def field_texts(cls: type) -> dict[str, str]:
    """The lines of the docstring's Args section, by field; those of base classes where the class says nothing new."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        section = (base.__doc__ or "").partition("Args:")[2].partition("\n\n")[0]
        entries = re.split(r"\n {8}(?=\w+: )", section)
        found = (entry.strip().partition(":") for entry in entries)
        texts |= {name: " ".join(text.split()) for name, _, text in found if text}
    return texts


CUT_FLAGS = {
    "validation": (float, "fraction of each class that is the validation split"),
    "seed": (int, "of the validation split, and of the choice of images where only some are taken"),
    "split_seed": (int, "of the validation split alone"),
}
"""Flags that say which images are the validation split."""


def add_cut_flags(flags: Flags) -> None:
    """Add the flags that say which images are the validation split; where they are not given, the training's
    validation split is.
    """
    for name, (kind, text) in CUT_FLAGS.items():
        flags.add(flag(name), type=kind, default=None, help=f"{text}; by default as in the training")


def cut_from(values: Namespace, trained: DataConfig | None) -> dict[str, Any]:
    """The values of these flags; of those that are not given, the training's, or `DataConfig`'s if nothing tells."""
    default = trained or DataConfig()
    return {name: getattr(default, name) if values[name] is None else values[name] for name in CUT_FLAGS}
