"""The error for a user's mistake, and helpers for its messages."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class UserError(ValueError):
    """A wrong value, path or file given by the user.

    The message is one line with the value, the rule and the fix. The command line prints it and exits with 2, without
    a traceback; in Python it is an ordinary ValueError.
    """


class StoppedError(UserError):
    """Ctrl-C or SIGTERM stopped the work; finished work is kept and can be resumed."""


def flag(name: str) -> str:
    """The flag of a setting: ``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def one_line(error: BaseException, *, kind: bool = False, limit: int = 160) -> str:
    """The message of an exception on one line, after its type if `kind`; only the type if it has no message."""
    name, message = type(error).__name__, " ".join(str(error).split())
    text = (f"{name}: {message}" if kind else message) if message else name
    return text if len(text) <= limit else text[: limit - 1] + "…"


def need(what: str, *names: str, package: str, extra: str) -> ModuleType:
    """Import and return the first installed module of `names`.

    Args:
        what: subject and verb of the error message, for example "ONNX export needs".
        names: names of modules, preferred first.
        package: package of the preferred module.
        extra: extra of psvit that installs it.

    Raises:
        UserError: none is installed.
    """
    for name in names:
        try:
            return import_module(name)
        except ImportError as error:
            missing = error
    raise UserError(f'{what} {package}: pip install "psvit[{extra}]"') from missing
