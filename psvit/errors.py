"""The one error for a user's mistake, and the words that messages share."""


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
