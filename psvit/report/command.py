"""Settings -> the command line that gives them, without flags at their defaults. No torch here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from psvit.arch.model_config import ModelConfig
from psvit.errors import flag

APART = ("resume", "overwrite")
"""Flags that do not belong to a run's settings."""


def command_line(command: str, config: Any, defaults: Any, always: Sequence[str] = ()) -> str:
    """The command line that gives these settings.

    Args:
        command: the command with its positional arguments.
        config: a dataclass whose fields are flags or dataclasses of flags.
        defaults: an instance with the defaults; equal values are left out.
        always: names of fields to give even if they are equal, first.
    """
    words, usual, asked = shlex.split(command), dict(_flat(defaults)), dict(_flat(config))
    for name in [*always, *(name for name in asked if name not in always and asked[name] != usual[name])]:
        words += [] if name in APART else flag_words(name, asked[name], switch=usual[name] is False)
    return shlex.join(words)


def _flat(config: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of all flags; a name in two groups has the same value in both."""
    for field in fields(config):
        value = getattr(config, field.name)
        value = value.flags() if isinstance(value, ModelConfig) else value
        if is_dataclass(value):
            yield from _flat(value)
        else:
            yield field.name, value


def flag_words(name: str, value: Any, switch: bool) -> list[str]:
    """A flag with its value as words; a `switch` takes no value."""
    if value is True and switch:
        return [flag(name)]
    if isinstance(value, (tuple, list)):
        return [flag(name), *map(str, value)] if value else []
    text = json.dumps(value) if isinstance(value, dict) or value is None or isinstance(value, bool) else str(value)
    return [flag(name), text]
