"""What is wrong with a set's files and what was done about it, counted and named. No torch here."""

from __future__ import annotations

from psvit.data.sources import quoted
from psvit.errors import UserError


class Findings:
    """What was found while a file or folder was read.

    Args:
        where: the file or folder, as a message calls it.
        strict: an image that cannot be used is an error.
    """

    def __init__(self, where: str, strict: bool = False) -> None:
        self.where, self.strict = where, strict
        self.names: dict[str, list[str]] = {}

    def add(self, what: str, name: str) -> None:
        """Take note of one case; `what` says what was done about it."""
        self.names.setdefault(what, []).append(name)

    def skip(self, what: str, name: str) -> None:
        """Take note of an image that is skipped.

        Raises:
            UserError: the set is read strictly.
        """
        if self.strict:
            raise UserError(f"{self.where}: {what}: {name!r}; mend it, or leave out --strict to go on without it")
        self.add(f"{what}, skipped", name)

    def named(self) -> frozenset[str]:
        """All that the notes count."""
        return frozenset(name for names in self.names.values() for name in names)

    def notes(self) -> tuple[str, ...]:
        """A line for each kind of case: how many, and the first names."""
        return tuple(f"{self.where}: {what}: {len(names)} ({quoted(names)})" for what, names in self.names.items())
