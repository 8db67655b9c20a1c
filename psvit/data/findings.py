"""Problems found in the user's files, with counts and names. No torch here."""

from __future__ import annotations

from psvit.data.sources import printable, quoted
from psvit.errors import UserError


class Findings:
    """Problems found while a file or folder is read, by kind, with the names of files or entries.

    Args:
        where: the file or folder, for messages.
        strict: raise an error for an image that cannot be used.
    """

    def __init__(self, where: str = "", strict: bool = False) -> None:
        self.where, self.strict = where, strict
        self.names: dict[str, list[str]] = {}

    def add(self, what: str, *names: str) -> None:
        """Add files or entries; `what` is the problem and what was done."""
        if names:
            self.names.setdefault(what, []).extend(map(printable, names))

    def skip(self, what: str, name: str) -> None:
        """Add an image that is skipped.

        Raises:
            UserError: `strict` is set.
        """
        if self.strict:
            raise UserError(f"{self.where}: {what}: {printable(name)!r}; mend it, or leave out --strict to skip it")
        self.add(f"{what}, skipped", name)

    def all_names(self) -> frozenset[str]:
        """The names of all problems."""
        return frozenset(name for names in self.names.values() for name in names)

    def lines(self) -> list[str]:
        """A line for each kind: count and first names."""
        return [f"{what}: {len(names)} ({quoted(names)})" for what, names in self.names.items()]

    def notes(self) -> tuple[str, ...]:
        """The lines, each with the name of the file or folder in front."""
        return tuple(f"{self.where}: {line}" for line in self.lines())

    def in_brackets(self) -> str:
        """The kinds with names in brackets, for the end of a message; empty if there are none."""
        told = "; ".join(f"{what}: {quoted(names)}" for what, names in self.names.items())
        return f" ({told})" if told else ""
