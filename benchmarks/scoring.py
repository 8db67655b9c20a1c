"""How much does the prefix tree save? All members of the 12-layer set scored on it, a sample of them scored alone.

    python benchmarks/scoring.py --output docs/results/search-scoring.json

Fashion-MNIST's validation split through an untrained supernet: the time does not depend on the weights. Members alone
run through the same modules, one after the other; their time is that of the sample, scaled up to all.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from psvit.arch.arch import Arch
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.engine.hardware import machine_info
from psvit.engine.memory import keep_freed_memory
from psvit.files import write_json
from psvit.search.journal import Score
from psvit.search.scoring import Scorer, Slices, batch_bytes, prefix_tree
from psvit.search.space import Space
from psvit.search.supernet import Supernet


def main() -> None:
    """Parse the command line, score, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3, help="parts of the sample; they take turns with the tree's")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    like = Arch("A", widths=(48,), head_dim=16, patch_size=4)
    space = Space(12, 3, 2, widths=((48,), (80,), (160,)), like=like, img_size=28, in_chans=1, num_classes=10)
    supernet = Supernet(space)
    members = list(space.enumerate())
    batches = list(Slices(open_data(DataConfig("fashion-mnist")), 0, arguments.images).batches(arguments.images))
    sample = random.Random(0).sample(members, arguments.sample)
    tree_seconds = alone_seconds = 0.0
    tree, alone = Scorer(supernet, Accelerator(cpu=True)), Scorer(supernet, Accelerator(cpu=True))
    tree.score(members[:50], batches)  # warm up
    tree.layers = 0
    scores: dict[Arch, Score] = {}
    equal = compared = 0
    for turn in range(arguments.rounds):
        part = members[len(members) * turn // arguments.rounds : len(members) * (turn + 1) // arguments.rounds]
        start = time.perf_counter()
        scores |= dict(zip(part, tree.score(part, batches), strict=True))
        tree_seconds += time.perf_counter() - start
        start = time.perf_counter()
        singly = {arch: alone.score([arch], batches)[0] for arch in sample[turn :: arguments.rounds]}
        alone_seconds += time.perf_counter() - start
        equal += sum(score == scores[arch] for arch, score in singly.items() if arch in scores)
        compared += sum(arch in scores for arch in singly)
    result = {
        "members": len(members), "images": arguments.images, "tree_layers": prefix_tree(members).layers(),
        "alone_layers": sum(arch.depth for arch in members), "tree_seconds": tree_seconds,
        "sample": len(sample), "sample_seconds": alone_seconds,
        "alone_seconds": alone_seconds * len(members) / len(sample),
        "times_faster": alone_seconds * len(members) / len(sample) / tree_seconds,
        "compared": compared, "equal": equal, "memory_bound_mib": batch_bytes(space, arguments.images) / 2**20,
        "machine": machine_info(torch.device("cpu")),
    }  # fmt: skip
    print(result)
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
