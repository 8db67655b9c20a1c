"""The one error for a user's mistake, and the words that messages share."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class UserError(ValueError):
    """A wrong value, path or file of the user's.

    Its message is one line that names the value, the rule and the way out. The command line prints that line and
    exits with 2, without a traceback; in Python it is an ordinary ValueError.
    """


class StoppedError(UserError):
    """The user (Ctrl-C) or the system (SIGTERM) stopped the work; what was done is kept, and can be resumed."""


def flag(name: str) -> str:
    """A setting as the command line spells it: ``batch_size`` -> ``--batch-size``."""
    return "--" + name.replace("_", "-")


def one_line(error: BaseException, *, kind: bool = False, limit: int = 160) -> str:
    """The message of an exception on one line, after its kind if `kind`; the kind alone if it has no message."""
    name, message = type(error).__name__, " ".join(str(error).split())
    text = (f"{name}: {message}" if kind else message) if message else name
    return text if len(text) <= limit else text[: limit - 1] + "…"


def need(what: str, *names: str, package: str, extra: str) -> ModuleType:
    """The first of these modules that is installed.

    Args:
        what: what needs it, with the verb, for the message.
        names: of modules, the preferred one first.
        package: that holds the preferred one.
        extra: of psvit, that installs it.

    Raises:
        UserError: none is installed.
    """
    for name in names:
        try:
            return import_module(name)
        except ImportError as error:
            missing = error
    raise UserError(f'{what} {package}: pip install "psvit[{extra}]"') from missing
