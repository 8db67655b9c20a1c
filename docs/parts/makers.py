"""What makes each file of docs/results: the command that a missing one needs."""

from __future__ import annotations

BENCHMARKS = "python benchmarks/"
ANALYZE = "psvit analyze {} --data fashion-mnist --validation 0.05 --output runs/{}"

MADE_BY = {
    **{name: f"psvit study {name}" for name in ("ablation", "claims", "transfer", "tuning")},
    "digits": (
        "psvit run --data digits --budget 3M --epochs 40 --supernet-epochs 12 --hflip 0 --output runs/quickstart"
    ),
    "benchmark-plus": "psvit benchmark deit_tiny_patch16_224 psvit_plus_tiny psvit_2d_tiny psvit_1d_tiny --rounds 21",
    "benchmark-train": "psvit benchmark auto resnet18 --train --data fashion-mnist --batch-size 128 --threads 1",
    "benchmark-tiny": (
        "psvit benchmark deit_tiny_patch16_224 psvit_2d_tiny psvit_1d_tiny --dtype float32 bfloat16 --rounds 21"
    ),
    "redundancy-deit": ANALYZE.format("runs/study/claims/6-m-macs-4-epochs/deit/seed-0/best", "redundancy-deit"),
    "detection": f"{BENCHMARKS}dense.py detect",
    "detection-choice": f"{BENCHMARKS}dense.py detect --split validation --seeds 0",
    "segmentation": f"{BENCHMARKS}dense.py segment",
    "equal-accuracy": f"{BENCHMARKS}equal_accuracy.py runs/study/claims --batch-size 1 16",
    "export": f"{BENCHMARKS}export.py runs/fashion/best runs/fashion-wide/best",
    "full-disk": f"{BENCHMARKS}kills.py --disk FOLDER",
    "memory": f"{BENCHMARKS}memory.py",
    "reading": f"{BENCHMARKS}reading.py",
    "search-kills": f"{BENCHMARKS}kills.py --kills 20",
    "search-latency": f"{BENCHMARKS}latency.py",
    "search-ranking": f"{BENCHMARKS}ranking.py report",
    "search-scoring": f"{BENCHMARKS}scoring.py",
    "search-worth": f"{BENCHMARKS}search_worth.py report",
    "sharing": f"{BENCHMARKS}sharing.py",
    "speedup": f"{BENCHMARKS}speedup.py",
}
"""The command of each file by its name, without the flag that names the file. Pages tell what comes before it."""


def how_to_make(name: str) -> str:
    """One line on a file that is missing: which, and what makes it."""
    place = f"docs/results/{name}.json"
    command = MADE_BY.get(name)
    if command is None:
        return f"{place} is missing: no command is known that makes it"
    if "analyze" in command:
        return f"{place} is missing: make it with {command}, and copy {command.split()[-1]}/redundancy.json there"
    flag = "--results" if command.startswith(("psvit study", "psvit run", f"{BENCHMARKS}dense.py")) else "--output"
    return f"{place} is missing: make it with {command} {flag} {place}"
