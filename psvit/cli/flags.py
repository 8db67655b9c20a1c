"""Settings dataclasses -> flags, help and YAML files (through jsonargparse) -> settings."""

from __future__ import annotations

import dataclasses
import re
import types
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from psvit.errors import UserError

T = TypeVar("T")


class Flags:
    """The flags of one command: those of its settings, ``--config FILE.yaml``, and what it adds itself.

    Args:
        command: its name.
        description: what it does, an example.
        settings: instances whose fields become flags and whose values their defaults. A nested dataclass's fields
            become flags of their own.
        apart: names of fields that become no flags.
    """

    def __init__(self, command: str, description: str, *settings: Any, apart: Sequence[str] = ()) -> None:
        self.parser = ArgumentParser(
            prog=f"psvit {command}",
            usage=f"psvit {command} [flags]" if settings else None,
            description=description,
            exit_on_error=False,
        )
        self.apart = set(apart)
        self.seen: set[str] = set()
        for instance in settings:
            self._add(instance)
        if settings:
            self.parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these flags.")

    def _add(self, instance: Any) -> None:
        hints, texts = get_type_hints(type(instance)), _field_texts(type(instance))
        title = (type(instance).__doc__ or "").splitlines()[0].rstrip(".")
        group = self.parser.add_argument_group(title)
        for field in dataclasses.fields(instance):
            default = getattr(instance, field.name)
            if dataclasses.is_dataclass(default):
                self._add(default)
            elif field.name not in self.apart | self.seen:
                self.seen.add(field.name)
                flag = "--" + field.name.replace("_", "-")
                options = _options(hints[field.name], default)
                text = _sentence(texts.get(field.name, ""))
                default = list(default) if isinstance(default, tuple) else default
                group.add_argument(flag, default=default, help=text.replace("%", "%%"), **options)

    def add(self, *names: str, **options: Any) -> None:
        """One more argument, as argparse's add_argument takes it."""
        self.parser.add_argument(*names, **options)

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse the arguments after the command's name.

        Raises:
            UserError: an argument that does not fit.
        """
        try:
            return self.parser.parse_args(list(arguments))
        except (ArgumentError, TypeError, ValueError) as error:
            message = " ".join(str(getattr(error, "message", error)).split())
            raise UserError(f"{message[:300]} (see {self.parser.prog} --help)") from error


def settings_from(values: Namespace, like: T, **fixed: Any) -> T:
    """An instance of `like`'s class with the parsed values; nested dataclasses too."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(like):  # type: ignore[arg-type]
        default = getattr(like, field.name)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            found[field.name] = settings_from(values, default)
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
        return {"nargs": "+", "type": element}
    return {"type": hint}


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


def _field_texts(cls: type) -> dict[str, str]:
    """The lines of the docstring's Args section, by field."""
    section = (cls.__doc__ or "").partition("Args:")[2].partition("\n\n")[0]
    entries = re.split(r"\n {8}(?=\w+: )", section)
    return {name: " ".join(text.split()) for name, _, text in (e.strip().partition(":") for e in entries) if text}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
