"""Is a search or run that is killed again and again the same as one that never was?

    python benchmarks/kills.py --kills 20 --output docs/results/search-kills.json -- search --data digits --epochs 2 ...

Runs `psvit` with the words behind ``--`` once to its end, then kills it with SIGKILL at random moments and resumes it,
anew whenever it has come to its end, until it was killed as often as asked. Compares what the runs left: the front,
the chosen network, the results, the weights. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from psvit.cli import main as command
from psvit.files import write_json
from psvit.measure.machine import keep_freed_memory

FREE = {"output", "resume", "overwrite", "results", "checkpoint", "images_per_second", "threads"}
"""What may differ: where it is kept, how it was started, how fast it was."""


def without(data: Any) -> Any:
    """Plain data without what may differ."""
    if isinstance(data, dict):
        return {key: without(value) for key, value in data.items() if key not in FREE}
    return [without(value) for value in data] if isinstance(data, list) else data


def left(folder: Path) -> dict[str, Any]:
    """What a run left, by file: plain data for JSON, else a hash."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("front.json", "results.json", "arch.json", "metrics.json"):
            found[name] = without(json.loads(path.read_text()))
        elif path.name in ("front.csv", "model.safetensors", "supernet.safetensors"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def start(words: list[str], folder: Path) -> int:
    """A child that runs the command; its process number."""
    resume = ["--resume"] if any(folder.rglob("settings.json")) else []
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            code = command([*words, "--output", str(folder), *resume])
    finally:
        os._exit(code)


def whole(words: list[str], folder: Path) -> float:
    """Run the command to its end; its seconds."""
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(start(words, folder), 0)[1])
    if code:
        sys.exit(f"psvit {' '.join(words)} ended with {code}")
    return time.monotonic() - began


def main() -> None:
    """Parse the command line, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("words", nargs="+", help="the command, behind --")
    arguments = parser.parse_args()
    keep_freed_memory()
    rng, ends = random.Random(arguments.seed), 0
    moments: list[float] = []
    differing: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        seconds = whole(arguments.words, Path(place) / "whole")
        expected = left(Path(place) / "whole")
        while len(moments) < arguments.kills:
            folder = Path(place) / "killed"
            while True:
                child, wait = start(arguments.words, folder), rng.uniform(0.02, 0.6) * seconds
                deadline, status = time.monotonic() + wait, (0, 0)
                while not status[0] and (time.monotonic() < deadline or len(moments) == arguments.kills):
                    time.sleep(0.005)
                    status = os.waitpid(child, os.WNOHANG)
                if status[0]:
                    if os.waitstatus_to_exitcode(status[1]):
                        sys.exit("a resumed run failed")
                    break
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                moments.append(round(wait, 2))
            ends += 1
            found = left(folder)
            differing += [name for name in {*expected, *found} if expected.get(name) != found.get(name)]
            shutil.rmtree(folder)
    result = {
        "command": "psvit " + " ".join(arguments.words), "seconds": round(seconds, 1), "kills": len(moments),
        "moments": moments, "ends": ends, "compared": sorted(expected), "differing": sorted(set(differing)),
    }  # fmt: skip
    print(json.dumps(result))
    if arguments.output:  # beside what other commands came to
        known = json.loads(arguments.output.read_text())["killed"] if arguments.output.exists() else []
        others = [row for row in known if row["command"] != result["command"]]
        write_json(arguments.output, {"killed": [*others, result]})
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
