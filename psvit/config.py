"""The base of all settings: frozen dataclasses that check values against their annotations. No torch here.

``epochs: Count = 300`` accepts whole numbers from 1 on, whether from a flag, a YAML file or Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from math import inf, isfinite
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from psvit.errors import UserError, flag

KINDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "a JSON object", str: "text"}


class Rule(NamedTuple):
    """A condition on a value besides its type, as metadata of ``Annotated``.

    Args:
        text: the rest of the message "--flag VALUE is not ...".
        holds: returns whether a value of the right type is allowed.
    """

    text: str
    holds: Callable[[Any], object] = lambda value: True


def at_least(least: int) -> Rule:
    """Rule: a whole number of at least `least`."""
    return Rule(f"a whole number of at least {least}", lambda value: value >= least)


def between(least: float, most: float) -> Rule:
    """Rule: a number from `least` to `most`, both included."""
    return Rule(f"a number from {least:g} to {most:g}", lambda value: least <= value <= most)


Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
Seed = Annotated[int, Rule("a whole number from 0 to 10^18", lambda value: 0 <= value <= 10**18)]
Fraction = Annotated[float, Rule("a fraction: give 0 or more, less than 1", lambda value: 0 <= value < 1)]
Positive = Annotated[float, Rule("a positive number", lambda value: 0 < value < inf)]
NotNegative = Annotated[float, Rule("a number of at least 0", lambda value: 0 <= value < inf)]
Probability = Annotated[float, between(0, 1)]
Range = Annotated[
    tuple[float, float],
    Rule("a range: give two positive numbers, the lower first, as 0.5 1.0", lambda pair: 0 < pair[0] <= pair[1]),
]
ImageSize = Annotated[Count | tuple[Count, Count], Rule("a positive whole number, or two: height and width")]
Text = Annotated[str, Rule("a name or a path: give one, or leave it out", str.strip)]


@dataclass(frozen=True)
class Config:
    """Settings checked against their annotations; a subclass with more checks calls ``super().__post_init__()`` first.

    Raises:
        UserError: a value is not allowed for its field.
    """

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        for field in fields(self):
            value = checked(getattr(self, field.name), hints[field.name], flag(field.name))
            object.__setattr__(self, field.name, value)


def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of a dataclass, with their rules."""
    return get_type_hints(cls, include_extras=True)


def checked(value: object, hint: Any, name: str) -> Any:
    """`value` if it fits `hint`; lists become tuples, and a single value a tuple where the hint is a tuple.

    Raises:
        UserError: it does not fit; the message begins with `name`.
    """
    try:
        return _fitted(value, hint)
    except _MisfitError as misfit:
        given = misfit.value
        shown = " ".join(map(str, given)) if isinstance(given, (tuple, list)) and given else repr(given)
        raise UserError(f"{name} {shown} is not {misfit.text}") from None


class _MisfitError(Exception):
    def __init__(self, value: object, text: str) -> None:
        self.value, self.text = value, text


def _fitted(value: Any, hint: Any) -> Any:
    """Like `checked`, for any part of a value."""
    kind, rules, options = _parts(hint)
    if rules:
        try:
            value = _fitted(value, kind)
        except _MisfitError as misfit:  # for a tuple, name the wrong element
            raise misfit if get_origin(kind) is tuple else _MisfitError(misfit.value, rules[-1].text) from None
        if broken := next((rule for rule in rules if not rule.holds(value)), None):
            raise _MisfitError(value, broken.text)
        return value
    if options:
        for option in options:
            with suppress(_MisfitError):
                return _fitted(value, option)
        several = [option for option in options if option is not NoneType]
        return _fitted(value, several[0]) if len(several) == 1 else _refuse(value, hint)
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is tuple:
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        kinds = args[:1] * len(values) if args[-1] is Ellipsis else args
        return tuple(map(_fitted, values, kinds)) if len(values) == len(kinds) else _refuse(value, hint)
    if origin is Literal:
        fits = value in args
    elif origin is Any:
        fits = True
    else:
        fits = isinstance(value, (int, float) if origin is float else origin)
        fits = fits and not (isinstance(value, bool) and origin in (int, float))
        fits = fits and (origin is not float or isfinite(value))
    if not fits:
        return _refuse(value, hint)
    return float(value) if origin is float else value


def _parts(hint: Any) -> tuple[Any, tuple[Rule, ...], tuple[Any, ...]]:
    """The type of an annotation without rules, its rules, and its alternatives if it is a union."""
    if get_origin(hint) is Annotated:
        kind, *rules = get_args(hint)
        return kind, tuple(rules), ()
    return hint, (), get_args(hint) if get_origin(hint) in (Union, UnionType) else ()


def _refuse(value: object, hint: Any) -> Any:
    raise _MisfitError(value, _text(hint))


def _text(hint: Any) -> str:
    kind, rules, options = _parts(hint)
    if rules:
        return rules[-1].text
    if options:
        return " or ".join(_text(option) for option in options if option is not NoneType)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        one, *more = get_args(kind)
        return _text(one) if Ellipsis in more else f"{1 + len(more)} values, each {_text(one)}"
    return KINDS.get(get_origin(kind) or kind, f"of type {getattr(kind, '__name__', kind)}")


def leaves(hint: Any) -> Iterator[Any]:
    """The types that an annotation allows, without rules; for a tuple also the types of its first element."""
    kind, rules, options = _parts(hint)
    for option in options or ((kind,) if rules else ()):
        yield from leaves(option)
    if not options and not rules:
        yield kind
        if get_origin(kind) is tuple:
            yield from leaves(get_args(kind)[0])
