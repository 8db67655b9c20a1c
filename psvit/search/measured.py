"""Latency in a search: the latency table of the space, and measurements of networks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from psvit.arch.arch import Arch
from psvit.engine.accelerator import by_the_first
from psvit.errors import UserError, one_line
from psvit.latency.measure import measure_networks
from psvit.latency.parts import WHOLE, Family, open_table
from psvit.latency.table import LatencyTable
from psvit.models.build import build_arch
from psvit.search.search_config import SearchConfig
from psvit.search.search_folder import LATENCY
from psvit.search.space import Shape, Space


def member_seconds(archs: Sequence[Arch], shape: Shape, config: SearchConfig, accelerator: Accelerator) -> list[float]:
    """Measure the seconds for a batch of each network, for images of this shape."""
    img_size, in_chans, num_classes = shape
    builds = {arch: partial(build_arch, arch, img_size, in_chans=in_chans, num_classes=num_classes) for arch in archs}
    seconds = measure_networks(builds, config.latency, accelerator.device, config.machine.threads)
    return [seconds[arch] for arch in archs]


def latency_table(
    space: Space, config: SearchConfig, accelerator: Accelerator, say: Callable[[str], None]
) -> LatencyTable:
    """The latency table of this device; a resumed search keeps its own."""
    kept = Path(config.search.output) / LATENCY

    def table() -> dict[str, Any]:
        if config.search.resume and kept.is_file():
            try:
                return LatencyTable.from_dict(json.loads(kept.read_text(encoding="utf-8"))).to_dict()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{kept} is broken ({one_line(error, kind=True)}): start anew with --overwrite"
                ) from error
        family = Family(space.like, space.widths, space.max_share > 0, *space.shape, space.elements)
        networks = space.different(WHOLE, random.Random(0))
        return open_table(family, networks, config.latency, accelerator.device, config.machine.threads, say).to_dict()

    return LatencyTable.from_dict(by_the_first(accelerator, table))
