"""Is a search or run that is killed again and again the same as one that never was? Or whose disk is full?

    python benchmarks/kills.py --kills 20 --output docs/results/search-kills.json -- search --data digits --epochs 2 ...
    mount -t tmpfs -o size=160m tmpfs /mnt/small
    python benchmarks/kills.py --disk /mnt/small --output docs/results/full-disk.json -- train --data digits ...

Runs `psvit` with the words behind ``--`` once to its end (a search with ``--ties macs``, since measured times differ),
then kills it with SIGKILL at random moments and resumes it, anew whenever it has come to its end, until it was killed
as often as asked. With ``--disk`` the disk of its folder is filled at those moments instead: it has to end by itself,
in one line and with exit code 2, and has room again when it is resumed. Compares what the runs left: the
front, the chosen network, the results, the weights. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import errno
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
from psvit.engine.memory import keep_freed_memory
from psvit.files import write_json

FREE = {"output", "resume", "overwrite", "results", "checkpoint", "images_per_second", "threads", "latency_ms"}
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


def start(words: list[str], folder: Path, said: Path = Path(os.devnull)) -> int:
    """A child that runs the command, or goes on with it; its process number. `said` takes what it refuses."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(os.devnull, "w") as nowhere, said.open("w") as errors:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            code = command([*words, "--output", str(folder), "--resume"])
    finally:
        os._exit(code)


def whole(words: list[str], folder: Path) -> float:
    """Run the command to its end; its seconds."""
    began = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(start(words, folder), 0)[1])
    if code:
        sys.exit(f"psvit {' '.join(words)} ended with {code}")
    return time.monotonic() - began


def kill(child: int) -> bool:
    """End the child at once."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def fill(child: int, disk: Path, spare: int, said: Path) -> bool:
    """Leave `spare` bytes of the disk until the child has ended; whether it ended for that reason."""
    status = (0, 0)
    with (disk / "filler").open("wb", buffering=0) as file:
        while not status[0]:
            try:
                while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > spare:
                    file.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            time.sleep(0.005)
            status = os.waitpid(child, os.WNOHANG)
    (disk / "filler").unlink()
    code, line = os.waitstatus_to_exitcode(status[1]), said.read_text()
    if code and (code != 2 or "is full" not in line or line.count("\n") != 1):
        sys.exit(f"it ended with {code} and said: {line}")
    return code == 2


def main() -> None:
    """Parse the command line, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disk", type=Path, help="a small file system to fill, instead of killing")
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
            folder, said = (arguments.disk or Path(place)) / "killed", Path(place) / "said"
            while True:
                child, wait = start(arguments.words, folder, said), rng.uniform(0.02, 0.6) * seconds
                deadline, status = time.monotonic() + wait, (0, 0)
                while not status[0] and (time.monotonic() < deadline or len(moments) == arguments.kills):
                    time.sleep(0.005)
                    status = os.waitpid(child, os.WNOHANG)
                if status[0]:
                    if os.waitstatus_to_exitcode(status[1]):
                        sys.exit(f"a resumed run failed: {said.read_text()}")
                    break
                spare = rng.randrange(2**17)
                if not (fill(child, arguments.disk, spare, said) if arguments.disk else kill(child)):
                    break  # it had nothing more to write
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
        kind = "full" if arguments.disk else "killed"
        known = json.loads(arguments.output.read_text())[kind] if arguments.output.exists() else []
        others = [row for row in known if row["command"] != result["command"]]
        write_json(arguments.output, {kind: [*others, result]})
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
