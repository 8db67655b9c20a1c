"""``psvit study``: many trainings that answer a question."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from psvit.cli.flags import Flags, config_from
from psvit.engine.train_config import Machine
from psvit.studies.study_config import StudyConfig
from psvit.studies.study_file import names, read_study, study_file

DESCRIPTION = f"""Train networks side by side with several seeds, and test claims about them with confidence intervals.
The studies: {", ".join(names())}, or a YAML file like theirs.
Example:             psvit study claims --quick
To change a setting: psvit study claims --print > mine.yaml, edit it, psvit study mine.yaml"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and print what came out."""
    flags = Flags("study NAME", DESCRIPTION, StudyConfig(), Machine())
    flags.add("name", f"{', '.join(names())}, or a YAML file")
    flags.add("--print", "print the study's YAML file, to change it", bool, False)
    values = flags.parse(arguments)
    if values.print:
        print(study_file(values.name).read_text(encoding="utf-8"), end="")
        return 0
    config, machine = config_from(values, StudyConfig()), config_from(values, Machine())
    study = read_study(values.name, config.quick)

    from psvit.studies.study import run_study

    data = run_study(study, config, machine, lambda line: print(line, flush=True))
    if data:
        _print(data)
    return 0


def _print(data: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from psvit.studies.tables import claims_table, group_table

    console = Console(width=None if sys.stdout.isatty() else 160)
    tables = [(group["name"], group_table(group, data["reads"])) for group in data["groups"]]
    tables += [("claims", claims_table(data))] if data["claims"] else []
    for title, (headings, rows, left) in tables:
        style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "title_style": "bold"}
        shown = Table(title=escape(title), pad_edge=False, **style)
        for number, heading in enumerate(headings):
            shown.add_column(heading, justify="left" if number < left else "right")
        for row in rows:
            shown.add_row(*(escape(cell.replace("**", "").replace("`", "")) for cell in row))
        console.print(shown)
