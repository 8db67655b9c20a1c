"""Problems in a user's files, and what was done about them: counted and named. No torch here."""

from __future__ import annotations

from psvit.data.sources import printable, quoted
from psvit.errors import UserError


class Findings:
    """Kinds of problems met while a file or folder is read, each with the names of the files or entries.

    Args:
        where: the file or folder, as a message calls it.
        strict: an image that cannot be used is an error.
    """

    def __init__(self, where: str = "", strict: bool = False) -> None:
        self.where, self.strict = where, strict
        self.names: dict[str, list[str]] = {}

    def add(self, what: str, *names: str) -> None:
        """Note files or entries; `what` says what is wrong with them, and what was done."""
        if names:
            self.names.setdefault(what, []).extend(map(printable, names))

    def skip(self, what: str, name: str) -> None:
        """Note an image that is skipped.

        Raises:
            UserError: the set is read strictly.
        """
        if self.strict:
            raise UserError(f"{self.where}: {what}: {printable(name)!r}; mend it, or leave out --strict to skip it")
        self.add(f"{what}, skipped", name)

    def all_names(self) -> frozenset[str]:
        """All names that the lines count."""
        return frozenset(name for names in self.names.values() for name in names)

    def lines(self) -> list[str]:
        """A line for each kind: how many, and the first names."""
        return [f"{what}: {len(names)} ({quoted(names)})" for what, names in self.names.items()]

    def notes(self) -> tuple[str, ...]:
        """The lines, each behind the name of the file or folder."""
        return tuple(f"{self.where}: {line}" for line in self.lines())

    def in_brackets(self) -> str:
        """The kinds with names, for the end of a message; empty without any."""
        told = "; ".join(f"{what}: {quoted(names)}" for what, names in self.names.items())
        return f" ({told})" if told else ""
