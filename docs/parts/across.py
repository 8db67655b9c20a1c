"""What all results say together: ``<!-- value:all.processors -->...<!-- /value -->``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

ALL = "all"
"""What stands for the name of a file."""


def values_of_all(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the files name as made on: ``processors``, versions of ``torch``, numbers of ``cores``, each as one text.

    ``seeds``: with how many of them networks were trained, ``least`` and ``most``.
    """
    machines: list[Mapping[str, Any]] = []
    seeds: list[int] = []
    for data in results:
        machines += [machine for machine in _under(data, "machine") if isinstance(machine, Mapping)]
        groups = data["groups"] if "study" in data else ()
        rows = [row for group in groups for row in group["rows"]] + list(data.get("summary", ()))
        seeds += [len(row["seeds"]) for row in rows if row["seeds"]]
    return {
        "processors": _listed(machine.get("device_name") or machine.get("cpu") for machine in machines),
        "torch": _listed((machine.get("torch") or "").partition("+")[0] for machine in machines),
        "cores": _listed(machine.get("cpus") for machine in machines),
        "seeds": {"least": min(seeds, default=0), "most": max(seeds, default=0)},
    }


def _under(node: Any, key: str) -> Iterator[Any]:
    """Everything that stands under `key`, however deep: a training may be taken from another machine's study."""
    inside = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    if isinstance(node, Mapping) and key in node:
        yield node[key]
    for entry in inside:
        yield from _under(entry, key)


def _listed(names: Iterable[Any]) -> str:
    """Each name once, in order; trade marks left out."""
    found = sorted({str(name).replace("(R)", "").replace("(TM)", "") for name in names if name})
    return " and ".join(filter(None, [", ".join(found[:-1]), *found[-1:]])) or "not told"
