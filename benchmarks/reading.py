"""How fast is a folder of images read again? Epochs through the batches of a training, the first of which decodes.

    python benchmarks/reading.py --output docs/results/reading.json
    python benchmarks/reading.py --photographs 40 --drawings 100

Photographs: JPEG of 12 megapixels, for 224 pixels. Drawings: PNG of at most 60 kB, for 64 pixels. They are made of
shapes and noise, in a temporary folder; of the photographs one in ten differs from all others. Some 15 minutes.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw

from psvit.data.augment import train_split
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data
from psvit.data.image_cache import NAME
from psvit.data.loading import train_batches
from psvit.engine.hardware import machine_info
from psvit.engine.recipes import RECIPES
from psvit.files import write_json

MOST = 64
"""Images in a batch, at most; each epoch reads all images once."""


def drawing(rng: np.random.Generator, width: int, height: int, shapes: int) -> Image.Image:
    """Ellipses on a ground that changes slowly."""
    ground = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = ground.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(shapes):
        x, y, r = rng.integers(0, (width, height, width // 6))
        draw.ellipse([x - r, y - r, x + r, y + r], fill=tuple(map(int, rng.integers(0, 256, 3))))
    return image


def photograph(path: Path, rng: np.random.Generator, noise: Image.Image) -> None:
    """A JPEG of shapes and a camera's noise."""
    image = drawing(rng, *noise.size, shapes=60)
    moved = ImageChops.offset(noise, *map(int, rng.integers(0, noise.size)))
    ImageChops.add(image, moved, offset=-128).save(path, quality=90)


def fill(folder: Path, count: int, distinct: int, make: Callable[[Path], None], ending: str) -> dict[str, Any]:
    """Write training images of two classes, those behind the first `distinct` as copies; returns facts on them."""
    paths = [folder / "train" / ("a", "b")[number % 2] / f"{number}{ending}" for number in range(count)]
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (folder / name).mkdir(parents=True)
    for number, path in enumerate(paths):
        if number < distinct:
            make(path)
        else:
            shutil.copyfile(paths[number % distinct], path)
    for number in (0, 1):
        shutil.copy(paths[number], folder / "test" / "ab"[number])
    with Image.open(paths[0]) as image:
        size = image.size
    return {"files": count, "width": size[0], "height": size[1],
            "mean_kb": sum(path.stat().st_size for path in paths) / count / 1000}  # fmt: skip


def cpu_seconds() -> float:
    """Processor time of this process and of its loading processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def read(folder: Path, img_size: int, recipe: str, workers: int) -> dict[str, Any]:
    """Read all images in two epochs, before the first of which the cache is empty."""
    with TemporaryDirectory() as cache:
        data = open_data(DataConfig(str(folder), img_size=img_size, validation=0, image_cache_dir=cache))
        split = train_split(data, RECIPES[recipe]().augment)
        batch = max(size for size in range(1, MOST + 1) if len(split) % size == 0)
        seconds, processor = [], []
        for epoch in range(2):
            start, used = time.perf_counter(), cpu_seconds()
            batches = train_batches(
                split, batch_size=batch, batches=len(split) // batch, epoch=epoch, seed=0, workers=workers
            )
            images = sum(len(batch.labels) for batch in batches)
            seconds.append(time.perf_counter() - start)
            processor.append(cpu_seconds() - used)
        with closing(sqlite3.connect(Path(cache) / NAME)) as file:
            ((held,),) = file.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
    return {"recipe": recipe, "img_size": img_size, "workers": workers, "images": images, "seconds": seconds,
            "cpu_seconds": processor, "images_per_second": [images / one for one in seconds],
            "times_faster": seconds[0] / seconds[1], "times_less_cpu": processor[0] / processor[1],
            "cache_kb_per_image": held / images / 1000}  # fmt: skip


def main() -> None:
    """Parse the command line, make the images, read them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--drawings", type=int, default=1276)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.normal(128, 9, (3000, 4000, 3)).astype(np.uint8))
    sets: list[dict[str, Any]] = []
    with TemporaryDirectory() as place:
        for name, count, distinct, img_size, recipes, ending, make in (
            ("photographs", arguments.photographs, -(-arguments.photographs // 10), 224, ("photos", "deit"), ".jpg",
             lambda path: photograph(path, rng, noise)),
            ("drawings", arguments.drawings, arguments.drawings, 64, ("light",), ".png",
             lambda path: drawing(rng, 500, 375, shapes=12).quantize(64).save(path)),
        ):  # fmt: skip
            folder = Path(place) / name
            facts = {"name": name, **fill(folder, count, distinct, make, ending), "read": []}
            sets.append(facts)
            print(name, {key: value for key, value in facts.items() if key not in ("name", "read")}, flush=True)
            for recipe in recipes:
                for workers in (0, 2):
                    facts["read"].append(read(folder, img_size, recipe, workers))
                    print(facts["read"][-1], flush=True)
            shutil.rmtree(folder)
    if arguments.output:
        write_json(arguments.output, {"sets": sets, "machine": machine_info(torch.device("cpu"))})


if __name__ == "__main__":
    main()
