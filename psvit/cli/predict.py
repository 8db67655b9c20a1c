"""``psvit predict``: the classes of images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from psvit.cli.flags import Flags, settings_from
from psvit.errors import UserError
from psvit.training.recipes import Machine

DESCRIPTION = """The likeliest classes of image files, and of all images in folders, with their probabilities.
Example: psvit predict runs/train/best photo.jpg more-photos --top 3"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags, predict and print one line an image."""
    flags = Flags("predict CHECKPOINT IMAGE [IMAGE ...]", DESCRIPTION, Machine())
    flags.add("checkpoint", help="checkpoint folder, for example runs/train/best")
    flags.add("images", nargs="+", help="image files, or folders of them")
    flags.add("--top", type=int, default=5, help="classes of each image")
    flags.add("--batch-size", type=int, default=64, help="images at a time")
    flags.add("--json", action="store_true", help="print one JSON object a line")
    values = flags.parse(arguments)
    paths = find_images(values.images)

    from psvit.measure.machine import keep_freed_memory

    keep_freed_memory()
    from psvit.training.evaluate import predict

    width, read = max(len(str(path)) for path in paths), 0
    for found in predict(values.checkpoint, paths, settings_from(values, Machine()), values.top, values.batch_size):
        if isinstance(found, UserError):
            print(f"psvit: {found}", file=sys.stderr)
            continue
        read += 1
        ranking = list(zip(found.labels, found.probabilities, strict=True))
        if values.json:
            classes = [{"label": label, "probability": round(p, 6)} for label, p in ranking]
            print(json.dumps({"image": found.image, "classes": classes}, ensure_ascii=False))
        else:
            print(f"{found.image:<{width}}  " + "  ".join(f"{label} {100 * p:.1f} %" for label, p in ranking))
    if not read:
        raise UserError(f"none of {len(paths)} images can be read")
    return 0


def find_images(names: Sequence[str]) -> list[Path]:
    """The files named, and all images below the folders named, sorted.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    from PIL import Image

    suffixes = {suffix.lower() for suffix in Image.registered_extensions()}
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not inside:
                raise UserError(f"the folder {path} holds no images")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no file or folder {path}: check the path")
    return found
