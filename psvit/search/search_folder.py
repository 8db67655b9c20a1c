"""The folder of a search: its files, checks before writing, and recovery after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from psvit.arch.arch import Arch
from psvit.data.image_cache import remove_cache
from psvit.data.image_list import IMAGES, list_files
from psvit.engine.resuming import (
    LOG,
    RUN_CONFIG,
    STATE,
    check_same,
)
from psvit.errors import UserError, one_line
from psvit.files import check_writable, recover, write_json
from psvit.search.choice import CHOICE
from psvit.search.evolution import DATABASE, WORKER
from psvit.search.search_config import SearchConfig
from psvit.search.search_page import REPORT

ARCH, JOURNAL, SUPERNET, FRONT = "arch.json", "journal.jsonl", "supernet", "front.json"
LATENCY, WIDTHS, SECONDS, INHERITED = "latency.json", "widths.json", "seconds.json", "inherited"
PILOT, PILOTS = "pilot.json", ("pilot-1", "pilot-2")
"""The pilot's result, and the folders of its supernets."""
TOO_SLOW = "default.json"
"""The measured milliseconds of the default network, where the pilot chose it and it does not keep the limit."""
OWN = (RUN_CONFIG, IMAGES, ARCH, FRONT, "front.csv", REPORT, SECONDS, LATENCY, WIDTHS, CHOICE, PILOT, TOO_SLOW)
"""Files that a search writes, without journals, files of evolution and folders."""


def kept_widths(folder: Path, config: SearchConfig) -> tuple[tuple[int, ...], ...]:
    """The widths of a resumed search that were scaled by measurements; empty if the settings determine them."""
    kept = folder / WIDTHS
    if not config.search.resume or not kept.is_file():
        return ()
    try:
        return tuple(tuple(map(int, choice)) for choice in json.loads(kept.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{kept} is broken ({one_line(error)}): start anew with --overwrite") from error


def journals_of(folder: Path) -> list[Path]:
    """The journals and the files of evolution."""
    patterns = (JOURNAL, "journal.[0-9]*.jsonl", f"{DATABASE}*", WORKER)
    return [path for pattern in patterns for path in folder.glob(pattern)]


def clear_search(folder: Path) -> None:
    """Remove the files of a search; other files in the folder stay."""
    for place in (SUPERNET, INHERITED, *PILOTS):
        shutil.rmtree(folder / place, ignore_errors=True)
    for path in [*journals_of(folder), *list_files(folder), *(folder / name for name in reversed(OWN))]:
        path.unlink(missing_ok=True)
    remove_cache(folder)


def check_folder(folder: Path, config: SearchConfig, record: dict[str, Any]) -> None:
    """Check that a search can write to a folder.

    Raises:
        UserError: it is a file, holds another run or a search with other settings, or is not writable.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder as --output")
    check_writable(folder, f"--output {folder}")
    if any((folder / name).exists() for name in (STATE, LOG, "best")):
        raise UserError(f"{folder} holds the training of a network: give another --output")
    if config.search.resume:
        check_same(folder, record)
        return
    left = any((folder / name).exists() for name in (*OWN, SUPERNET, INHERITED, *PILOTS)) or journals_of(folder)
    if left and not config.search.overwrite:
        raise UserError(
            f"{folder} already holds a run: give --resume to go on, --overwrite to replace it, or another --output"
        )


def begin(
    folder: Path,
    config: SearchConfig,
    record: dict[str, Any],
    accelerator: Accelerator,
    on_begin: Callable[[], None],
) -> None:
    """Replace the files of an earlier search by the settings of this one, or recover those of a resumed search."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if not config.search.resume:
            on_begin()
            clear_search(folder)
            write_json(folder / RUN_CONFIG, record)
        for name in (*OWN, WORKER):
            recover(folder / name)
    accelerator.wait_for_everyone()


def read_arch(folder: Path) -> Arch:
    """The Arch that a finished search chose.

    Raises:
        UserError: the search is not finished, or its file is broken.
    """
    path = folder / ARCH
    if not path.is_file():
        raise UserError(f"{folder} holds no finished search: finish it with --resume")
    return Arch.from_json(path.read_text(encoding="utf-8"))
