"""Is a search worth it? The searched network beside the default one, both of the same measured latency.

    python benchmarks/search_worth.py search    time the default network, ask the pilot, search
    python benchmarks/search_worth.py train     train both alone, with every --seeds; resumes; --worker 0 --workers 2
    python benchmarks/search_worth.py report    the gain; --output docs/results/search-worth.json

The budget of the search is the latency of the default network. Where the pilot says that no search can pay, the space
is searched all the same, to see whether it was right. All three take the same --limit, --epochs and --macs.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stand_alone import SHAPE, Setting, train_share

from psvit import cost
from psvit.arch.arch import Arch
from psvit.arch.variants import default_arch
from psvit.data.datasets import open_data
from psvit.engine.accelerator import open_machine
from psvit.engine.memory import keep_freed_memory
from psvit.files import write_json
from psvit.latency.benchmark_config import LatencyConfig
from psvit.search.measured import member_seconds
from psvit.search.search import search
from psvit.search.search_config import SearchConfig
from psvit.search.search_folder import SECONDS, read_arch

LATENCY = LatencyConfig(latency_batch=16, latency_rounds=25)


def default(setting: Setting) -> Arch:
    """The default network at the MACs of the setting."""
    return cost.scale_to(default_arch(SHAPE[0]), setting.macs, *SHAPE)


def milliseconds(setting: Setting, archs: list[Arch]) -> list[float]:
    """Measured in turns, for a batch."""
    config = SearchConfig(latency=LATENCY, machine=setting.machine())
    return [1000 * second for second in member_seconds(archs, SHAPE, config, open_machine(config.machine))]


def folders(setting: Setting) -> tuple[Path, Path]:
    """Of the search as it is, and of the one that insists."""
    return setting.folder / "search", setting.folder / "search-insisting"


def find(setting: Setting) -> None:
    """Search within the latency of the default network, measured once."""
    kept = setting.folder / "default.json"
    if not kept.is_file():
        [ms] = milliseconds(setting, [default(setting)])
        write_json(kept, {"ms": ms})
    ms = json.loads(kept.read_text(encoding="utf-8"))["ms"]
    for folder, insist in zip(folders(setting), (False, True), strict=True):
        config = replace(setting.search(folder), latency=LATENCY)
        search(replace(config, search=replace(config.search, budget=(f"latency={ms}ms",), insist=insist)))
        if pays(setting):
            break


def pays(setting: Setting) -> bool:
    """What the pilot said."""
    return bool(verdict(setting)["pays"])


def verdict(setting: Setting) -> dict[str, Any]:
    """The pilot's figures."""
    pilot: dict[str, Any] = json.loads((folders(setting)[0] / "front.json").read_text(encoding="utf-8"))["pilot"]
    return pilot


def networks(setting: Setting) -> dict[str, Arch]:
    """The searched network, insisted on if need be, and the default."""
    return {"searched": read_arch(folders(setting)[0 if pays(setting) else 1]), "default": default(setting)}


def report(setting: Setting, seeds: list[int]) -> dict[str, Any]:
    """Both networks: cost, latency measured in turns, accuracy with every seed; and what the pilot had said."""
    archs = networks(setting)
    rows = []
    for (name, arch), ms in zip(archs.items(), milliseconds(setting, list(archs.values())), strict=True):
        top1 = [setting.result(arch, seed)["top1"] for seed in seeds]
        costs = {"macs": cost.macs(arch, *SHAPE), "params": cost.params(arch, *SHAPE), "ms": ms}
        rows.append({"name": name, "arch": arch.to_dict(), **costs, "top1": top1, "mean": statistics.mean(top1)})
    noise = math.sqrt(statistics.mean(statistics.variance(row["top1"]) for row in rows)) if len(seeds) > 1 else None
    gain = rows[0]["mean"] - rows[1]["mean"]
    timed = folders(setting)[0 if pays(setting) else 1] / SECONDS  # missing if the search was interrupted
    seconds = sum(json.loads(timed.read_text(encoding="utf-8")).values()) if timed.is_file() else None
    return {
        "setting": asdict(setting), "seeds": seeds, "latency": asdict(LATENCY), "rows": rows, "pilot": verdict(setting),
        "gain": gain, "seed_noise": noise, "gain_in_seed_noises": gain / noise if noise else None,
        "search_seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "train", "report"])
    setting, given = Setting.from_flags(parser)
    keep_freed_memory()
    if given.what == "search":
        find(setting)
    elif given.what == "train":
        train_share(setting, list(networks(setting).values()), given)
    else:
        open_data(setting.data(0))  # raises now if there are no images
        figures = report(setting, given.seeds)
        print(json.dumps(figures, indent=1))
        if given.output:
            write_json(given.output, figures)


if __name__ == "__main__":
    main()
