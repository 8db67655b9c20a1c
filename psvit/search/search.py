"""The search: data + budget -> Arch, in a folder that a killed search goes on from."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from psvit.arch.arch import ATTEND, POOL, Arch
from psvit.data.datasets import Data, open_data
from psvit.data.image_list import IMAGES, check_unchanged, read_image_list
from psvit.engine.accelerator import by_the_first, open_machine
from psvit.engine.interrupts import interrupts
from psvit.engine.optimizer import make_optimizer
from psvit.engine.resuming import begun, record_of
from psvit.engine.run_folder import read_log
from psvit.engine.train_config import RunConfig, TrainConfig
from psvit.errors import StoppedError, UserError, one_line
from psvit.files import sole_writer, write_json
from psvit.latency.parts import measure_networks, open_table
from psvit.latency.table import LatencyTable
from psvit.models.build import check_tokens
from psvit.search.around import space_for
from psvit.search.budget import Budget, Prices, readable
from psvit.search.evolution import evolve
from psvit.search.feasible_set import FeasibleSet
from psvit.search.front import Ranked, rank, write_front
from psvit.search.scores import Score
from psvit.search.scoring import Scorer, Slices, batch_bytes, rank_all
from psvit.search.search_config import EvolutionConfig, SearchConfig, shown
from psvit.search.search_folder import (
    ARCH,
    FRONT,
    JOURNAL,
    LATENCY,
    SECONDS,
    SUPERNET,
    WIDTHS,
    begin,
    check_folder,
    kept_widths,
    read_arch,
)
from psvit.search.search_page import REPORT, search_page
from psvit.search.space import Space, bounds
from psvit.search.storage import Storage
from psvit.search.supernet import Supernet
from psvit.search.supernet_training import strata, supernet_training, train_supernet

MEASURED = 4
"""Networks whose latency is measured at a time."""

LISTED = 20_000
"""``--method auto`` scores every member of a region that is no larger."""

EVOLUTION_SLICE = 1024
"""Images of the validation split on which evolution scores each member."""

SLACK = 1.02
"""A network that was measured so little above its latency budget is within it: measurements differ by as much."""


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Args:
        arch: the chosen network.
        region: the members within the budget.
        data: the images, opened.
        folder: of the run.
    """

    arch: Arch
    feasible: FeasibleSet
    data: Data
    folder: Path


def search(
    config: SearchConfig, say: Callable[[str], None] = print, on_begin: Callable[[], None] = lambda: None
) -> Found:
    """Find the network of the least validation loss within the budget, as the supernet ranks them.

    The supernet learns from the training split; members are scored on the validation split that is cut from it. The
    test split
    is not read. A search that is finished is not done again when it is resumed.

    Args:
        config: everything that the search depends on.
        say: takes lines for the user.
        on_begin: called by the first process once nothing of the user's can be wrong any more.

    Raises:
        UserError: an infeasible budget, too small a validation split, a folder that holds another run.
        InterruptedTrainingError, InterruptedSearchError: Ctrl-C; the message says how to resume.
    """
    accelerator = open_machine(config.machine)
    say = say if accelerator.is_main_process else _silent
    folder, record = Path(config.search.output), record_of(shown(config), accelerator)
    if config.search.resume and not begun(folder, True, accelerator):
        config = replace(config, search=replace(config.search, resume=False))
    check_folder(folder, config, record)
    kept = read_image_list(folder / IMAGES) if config.search.resume else None
    data = open_data(config.data, kept)
    images = data.files.images if data.files is not None and kept is not None else None
    accept = config.data.accept_changes or (folder / FRONT).is_file()  # a finished search reads no more of them
    for line in check_unchanged(kept, images, accept, folder):
        say(f"note      {line}")
    with sole_writer(folder, f"--output {folder}") if accelerator.is_main_process else nullcontext():
        return _search(config, record, data, accelerator, say, on_begin)


def _search(
    config: SearchConfig,
    record: dict[str, Any],
    data: Data,
    accelerator: Accelerator,
    say: Callable[[str], None],
    on_begin: Callable[[], None],
) -> Found:
    """All steps, alone in the search's folder."""
    folder = Path(config.search.output)
    slices = Slices(data, config.data.seed, config.scoring.score_batch, config.data.strict)
    space, budget = space_for(config, data, accelerator, kept_widths(folder, config))
    table = _table(space, budget, config, accelerator, say)
    prices = Prices(space.like, len(space.widths), space.img_size, space.in_chans, space.num_classes, table)
    feasible = _region(space, budget, prices, config.space.least, say)
    if config.search.resume and (folder / FRONT).is_file():
        say(f"search    {folder} is finished: its network is taken")
        return Found(read_arch(folder), feasible, data, folder)
    _check(feasible, config, accelerator)
    begin(folder, config, record, accelerator, on_begin)
    if data.files is not None and accelerator.is_main_process:
        data.files.images.write(folder / IMAGES)
    if table is not None and accelerator.is_main_process:  # measured, so a resumed search would measure others
        for name, kept in ((LATENCY, table.to_dict()), (WIDTHS, space.widths)):
            if not (folder / name).exists():
                write_json(folder / name, kept)
    _tell(feasible, config, say)
    started = time.perf_counter()
    training = supernet_training(_train_config(config), config.supernet, space, budget.given)
    supernet, accelerator = train_supernet(feasible, training, data, say)
    trained = time.perf_counter()
    slices.batch_size = _batch_that_fits(space, config, say)
    scores = _score(feasible, supernet, slices, accelerator, config, say)
    seconds = {"supernet_seconds": trained - started, "scoring_seconds": time.perf_counter() - trained}
    ranked = rank(scores, space, feasible.prices)
    place, measured = by_the_first(accelerator, lambda: choose(ranked, feasible, config, accelerator, say))
    chosen = ranked[place]
    if accelerator.is_main_process:
        for name in ("resume", "overwrite", "output"):  # a search that was interrupted has the same results
            del record["config"]["search"][name]
        facts: dict[str, Any] = {
            "data": data.name,
            "shape": {"img_size": list(data.img_size), "in_chans": data.in_chans, "num_classes": len(data.classes)},
            "budget": budget.given,
            "members": len(ranked),
            "space": space.count(),
            "chosen": {"genotype": chosen.arch.genotype, "widths": list(chosen.arch.widths)},
            "measured_ms": None if measured is None else 1000 * measured,
            "latency_table": None if table is None or table.validation is None else table.validation.to_dict(),
            **record,
        }
        if not config.search.resume:  # of a whole search; apart, since all else is equal when it is done again
            write_json(folder / SECONDS, seconds)
        write_json(folder / ARCH, chosen.arch.to_dict())
        search_page(folder, ranked, facts, shown(config), read_log(folder / SUPERNET)).write(folder / REPORT)
        write_front(folder, ranked, facts)  # its front.json, written last, says that the search is finished
    costs = [readable("macs", chosen.macs), readable("params", chosen.params)]
    costs += [f"{1000 * measured:.3g} ms measured"] if measured else []
    say(f"chosen    {chosen.arch}: loss {chosen.score.loss:.4f}, {', '.join(costs)}")
    accelerator.wait_for_everyone()
    return Found(chosen.arch, feasible, data, folder)


class InterruptedSearchError(StoppedError):
    """The user stopped a search while members were scored; what was scored is kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped while scoring, all scores are kept in {folder}: go on with --resume")


def choose(
    ranked: Sequence[Ranked],
    feasible: FeasibleSet,
    config: SearchConfig,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> tuple[int, float | None]:
    """The best-ranked member; where latency is limited, the best that keeps the limit when measured.

    Returns:
        Its place in `ranked`, and its measured seconds for a batch where latency is limited.

    Raises:
        UserError: none keeps it.
    """
    limit = feasible.budget.latency
    if limit is None:
        return 0, None
    final = [one for one in ranked if one.score.images == ranked[0].score.images]
    for start in range(0, len(final), MEASURED):
        group = final[start : start + MEASURED]
        seconds = measure_networks(
            [one.arch for one in group], feasible.space, config.latency, accelerator.device, config.machine.threads
        )
        for place, second in enumerate(seconds, start=start):
            if second <= SLACK * limit:
                return place, second
        say(f"latency   {len(group)} of the best are slower than {1000 * limit:.3g} ms when measured: trying the next")
    raise UserError(
        f"none of the {len(final)} best networks keeps {1000 * limit:.3g} ms when measured: the machine is slower now "
        "than when its latency table was measured; try again with --resume, or search anew with another --budget"
    )


def _score(
    feasible: FeasibleSet,
    supernet: Supernet,
    slices: Slices,
    accelerator: Accelerator,
    config: SearchConfig,
    say: Callable[[str], None],
) -> list[Score]:
    folder = Path(config.search.output)
    with interrupts() as interrupt:

        def stop() -> None:
            if interrupt.requested(accelerator):
                raise InterruptedSearchError(folder)

        if use_tree(feasible, config):
            return rank_all(feasible, supernet, slices, accelerator, folder / JOURNAL, config.scoring, say, stop)
        scorer, images = Scorer(supernet, accelerator), min(len(slices), EVOLUTION_SLICE)

        def evaluate(arch: Arch) -> Score:
            stop()
            return replace(scorer.score([arch], slices.batches(images))[0], images=images)

        return evolve(feasible, evaluate, _evolution(config), folder, config.data.seed, say)


def _evolution(config: SearchConfig) -> EvolutionConfig:
    """Those of the settings; in a shared storage a search's name tells it from those with another supernet."""
    if not config.evolution.storage or config.evolution.study_name:
        return config.evolution
    about = {name: asdict(getattr(config, name)) for name in ("space", "supernet", "data", "recipe", "scoring")}
    for local in ("workers", "data_dir", "accept_changes"):
        del about["data"][local]
    about["search"] = {"budget": config.search.budget, "epochs": config.search.supernet_epochs}
    text = json.dumps([about, config.machine.precision], sort_keys=True)
    name = f"psvit-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return replace(config.evolution, study_name=name)


def use_tree(feasible: FeasibleSet, config: SearchConfig) -> bool:
    """Whether all members are scored on the prefix tree.

    Raises:
        UserError: the tree was asked for, but the members cannot be listed.
    """
    if config.search.method != "auto":
        if config.search.method == "tree" and feasible.members is None:
            raise UserError(
                "--method tree lists every network, and these are too many: take evolution, or a smaller space"
            )
        return config.search.method == "tree"
    return feasible.count(at_most=LISTED + 1) <= LISTED


def _region(space: Space, budget: Budget, prices: Prices, least: float, say: Callable[[str], None]) -> FeasibleSet:
    """The members within the budget that use it as far as asked; where none does, all that are within it."""
    feasible = FeasibleSet(space, budget, prices, least)
    if not feasible.count(at_most=1):
        feasible = FeasibleSet(space, budget, prices)
        dearest = feasible.costs(feasible.nearest())
        say(
            f"note      no network of the space uses {least:.0%} of {budget.text(prices)}, the dearest "
            f"{budget.text_of(dearest, prices)}: all are searched; larger --stage-widths or more --depth would use more"
        )
    return feasible


def _check(feasible: FeasibleSet, config: SearchConfig, accelerator: Accelerator) -> None:
    """What could only fail later is tried now, before anything is written or trained.

    Raises:
        UserError: the first thing that is wrong.
    """
    space, deepest = (
        feasible.space,
        [choice[-1] for choice in feasible.space.widths[: bounds(feasible.space.stages)[1]]],
    )
    check_tokens(
        replace(space.like, genotype=POOL.join(ATTEND * len(deepest)), widths=tuple(deepest)), space.img_size
    )  # fmt: skip
    make_optimizer(nn.Linear(1, 1), config.recipe, accelerator.num_processes)
    if config.supernet.sampling == "balanced":
        strata(feasible)
    if not use_tree(feasible, config):
        if accelerator.num_processes > 1:
            raise UserError(
                f"evolution runs in one process, not in {accelerator.num_processes}: start several searches with one "
                "--storage and an --output each instead"
            )
        if config.evolution.storage:
            Storage(config.evolution.storage, "psvit")


def _train_config(config: SearchConfig) -> TrainConfig:
    own, folder = config.search, Path(config.search.output) / SUPERNET
    recipe = replace(config.recipe, epochs=own.supernet_epochs or ceil(1.5 * config.recipe.epochs), drop_path=0.0)
    run = RunConfig(str(folder), resume=own.resume, overwrite=not own.resume, save_every=own.save_every)
    return TrainConfig(data=config.data, recipe=recipe, machine=config.machine, run=run)


def _table(
    space: Space, budget: Budget, config: SearchConfig, accelerator: Accelerator, say: Callable[[str], None]
) -> LatencyTable | None:
    """The table of this device; a resumed search takes up the one that it began with."""
    if budget.latency is None:
        return None
    kept = Path(config.search.output) / LATENCY

    def table() -> dict[str, Any]:
        if config.search.resume and kept.is_file():
            try:
                return dict(json.loads(kept.read_text(encoding="utf-8")))
            except ValueError as error:
                raise UserError(f"{kept} is broken ({one_line(error)}): start anew with --overwrite") from error
        return open_table(space, config.latency, accelerator.device, config.machine.threads, say).to_dict()

    return LatencyTable.from_dict(by_the_first(accelerator, table))


def _batch_that_fits(space: Space, config: SearchConfig, say: Callable[[str], None]) -> int:
    limit = config.scoring.score_memory * 2**30
    images = min(config.scoring.score_batch, max(1, int(limit / batch_bytes(space, 1))))
    say(f"scoring   batches of {images}: at most {batch_bytes(space, images) / 2**30:.2f} GiB of layers at a time")
    return images


def _tell(feasible: FeasibleSet, config: SearchConfig, say: Callable[[str], None]) -> None:
    space = feasible.space
    low, high = bounds(space.depth)
    widths = "; ".join(",".join(map(str, choice)) for choice in space.widths)
    few, many_stages = bounds(space.stages)
    say(
        f"space     {space.count():,} networks of {low} to {high} layers in {few} to {many_stages} stages, "
        f"widths {widths}"
    )
    count = feasible.count(at_most=LISTED + 1)
    many = f"{count:,}" if count <= LISTED else f"more than {LISTED:,}"
    how = "each is scored" if use_tree(feasible, config) else "searched by evolution"
    say(
        f"budget    {feasible.budget.text(feasible.prices)}: {many} of them use {feasible.least:.0%} of it or "
        f"more; {how}"
    )


def random_member(found: Found, macs: float, seed: int) -> Arch:
    """One member drawn by `seed` among those with about as many MACs; where there is none, among all."""
    feasible, rng = found.feasible, random.Random(f"random member {seed}")
    try:
        alike = FeasibleSet(feasible.space, Budget(macs=1.02 * macs), feasible.space.prices(), least=0.96)
    except UserError:
        return feasible.sample(rng)
    drawn = (alike.sample(rng) for _ in range(1000) if alike.count(at_most=1))
    return next((arch for arch in drawn if arch in feasible), None) or feasible.sample(rng)


def _silent(line: str) -> None:
    """Nothing is said."""
