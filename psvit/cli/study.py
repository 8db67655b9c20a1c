"""``psvit study``: train networks with several seeds and test claims."""

from __future__ import annotations

from collections.abc import Sequence

from psvit.cli.flags import Flags, config_from
from psvit.engine.train_config import Machine
from psvit.studies.study_config import StudyConfig
from psvit.studies.study_file import names, read_study, study_file

DESCRIPTION = f"""Train networks side by side with several seeds, and test claims about them with confidence intervals.
The studies: {", ".join(names())}, or a YAML file like theirs.
Example:             psvit study claims --quick
To change a setting: psvit study claims --print > mine.yaml, edit it, psvit study mine.yaml"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, train, and print the results."""
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
        from psvit.report.tables import print_table
        from psvit.studies.study_tables import claims_table, group_table

        for group in data["groups"]:
            print_table(group_table(group, data["reads"]), group["name"])
        if data["claims"]:
            print_table(claims_table(data), "claims")
    return 0
