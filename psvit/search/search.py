"""The search: data + budget -> Arch, in a folder from which it can be resumed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from psvit.arch.arch import ATTEND, POOL, Arch
from psvit.data.datasets import Data, open_data
from psvit.data.image_cache import remove_cache
from psvit.data.image_list import IMAGES, check_unchanged, read_image_list
from psvit.engine.accelerator import by_the_first, open_machine
from psvit.engine.optimizer import check_optimizer
from psvit.engine.resuming import begun, record_of
from psvit.engine.run_folder import read_log
from psvit.engine.train_config import RunConfig, TrainConfig
from psvit.errors import UserError
from psvit.files import sole_writer, write_json
from psvit.latency.table import LatencyTable
from psvit.models.build import check_tokens
from psvit.search.budget import Budget, Prices, readable
from psvit.search.build_space import build_space, default_member
from psvit.search.choice import SLACK, Choice, choose, keep_choice, kept_choice
from psvit.search.feasible_set import FeasibleSet
from psvit.search.front import Ranked, rank, write_front
from psvit.search.measured import latency_table, member_seconds
from psvit.search.pilot import Pilot, run_pilot, the_default
from psvit.search.score_members import LISTED, score_members, use_tree
from psvit.search.scoring import Scorer, Slices, batch_bytes
from psvit.search.search_config import SearchConfig, shown
from psvit.search.search_folder import (
    ARCH,
    FRONT,
    LATENCY,
    PILOTS,
    SECONDS,
    SUPERNET,
    TOO_SLOW,
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
from psvit.search.supernet_training import supernet_training, train_supernet

CHANGING = ("resume", "overwrite", "output")
"""Settings that do not affect the result of a search."""


@dataclass(frozen=True)
class Found:
    """The network that a search found.

    Args:
        arch: the chosen network.
        feasible: the networks within the budget.
        data: the images, opened.
        folder: of the run.
    """

    arch: Arch
    feasible: FeasibleSet
    data: Data
    folder: Path

    @property
    def supernet(self) -> Path:
        """The folder of the weights that hold the network: of the supernet, or of a pilot where none was trained."""
        own = self.folder / SUPERNET
        return own if own.is_dir() else self.folder / PILOTS[0]


def search(
    config: SearchConfig, say: Callable[[str], None] = print, on_begin: Callable[[], None] = lambda: None
) -> Found:
    """Find the fastest network within the budget of those that no other beats under the supernet.

    Where a pilot says that no search can pay, the default network is taken.

    The supernet learns from the training split; networks are scored on the validation split that is cut from it. The
    test split is not read. Resuming a finished search returns its result.

    Args:
        config: everything that the search depends on.
        say: takes lines for the user.
        on_begin: called by the first process once all settings and data are checked.

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
    data = open_data(config.data.cached_in(folder), kept)
    images = data.files.images if data.files is not None and kept is not None else None
    accept = config.data.accept_changes or (folder / FRONT).is_file()  # a finished search reads no more of them
    for line in check_unchanged(kept, images, accept, folder):
        say(f"note      {line}")
    with sole_writer(folder, f"--output {folder}") if accelerator.is_main_process else nullcontext():
        found = _search(config, record, data, accelerator, say, on_begin)
        if accelerator.is_main_process and config.data.image_cache_dir is None:
            remove_cache(folder)
        return found


def _search(
    config: SearchConfig,
    record: dict[str, Any],
    data: Data,
    accelerator: Accelerator,
    say: Callable[[str], None],
    on_begin: Callable[[], None],
) -> Found:
    """Run all steps; the folder is locked by the caller."""
    folder = Path(config.search.output)
    slices = Slices(data, config.data.seed, config.scoring.score_batch, config.data.strict)
    space, budget = build_space(config, data, accelerator, kept_widths(folder, config))
    _check_tokens(space)
    table = None if budget.latency is None else latency_table(space, config, accelerator, say)
    feasible = _feasible_set(space, budget, space.prices(table), config.space.least, say)
    if config.search.resume and (folder / FRONT).is_file():
        say(f"search    {folder} is finished: its network is taken")
        return Found(read_arch(folder), feasible, data, folder)
    _check(feasible, config, accelerator)
    begin(folder, config, record, accelerator, on_begin)
    if accelerator.is_main_process:
        _write_first(folder, data, space, table)
    _describe(feasible, config, say)
    slices.batch_size = _batch_that_fits(space, config, say)
    ranked, choice, pilot, seconds = _ranked(feasible, config, data, slices, accelerator, say)
    chosen = ranked[choice.rank - 1]
    say(f"choice    {choice.why}")
    if accelerator.is_main_process:
        if not config.search.resume:  # only of an uninterrupted search
            write_json(folder / SECONDS, seconds)
        write_json(folder / ARCH, chosen.arch.to_dict())
        facts = _facts(data, feasible, ranked, choice, pilot, record)
        search_page(folder, ranked, facts, shown(config), read_log(folder / SUPERNET)).write(folder / REPORT)
        write_front(folder, ranked, facts)  # its front.json, written last, says that the search is finished
    costs = [readable("macs", chosen.macs), readable("params", chosen.params)]
    costs += [f"{choice.ms:.3g} ms measured"] if choice.ms else []
    say(f"chosen    {chosen.arch}: loss {chosen.score.loss:.4f}, {', '.join(costs)}")
    accelerator.wait_for_everyone()
    return Found(chosen.arch, feasible, data, folder)


def _ranked(
    feasible: FeasibleSet,
    config: SearchConfig,
    data: Data,
    slices: Slices,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> tuple[list[Ranked], Choice, Pilot | None, dict[str, float]]:
    """Ask whether a search can pay, then search: the ranking, the choice, the pilot, and the seconds of each part."""
    folder, pilot, started = Path(config.search.output), None, time.perf_counter()
    training = supernet_training(_train_config(config), config.supernet, feasible.space, feasible.budget.given)
    seconds = {}
    if not config.search.insist:
        pilot = run_pilot(feasible, training, data, slices, accelerator, folder, say)
        say(f"pilot     {pilot.why}")
        seconds["pilot_seconds"] = time.perf_counter() - started
        if not pilot.pays:
            ranked = rank(pilot.scores, feasible.space, feasible.prices)
            choice = by_the_first(accelerator, lambda: _default(pilot, ranked, feasible, config, accelerator))
            if choice is not None:
                return ranked, choice, pilot, seconds
            say(f"pilot     {pilot.rival} does not keep the limit when it is measured: the search goes on")
    started = time.perf_counter()
    supernet, accelerator = train_supernet(feasible, training, data, say)
    trained = time.perf_counter()
    scores = score_members(feasible, supernet, slices, accelerator, config, say)
    seconds |= {"supernet_seconds": trained - started, "scoring_seconds": time.perf_counter() - trained}
    ranked = rank(scores, feasible.space, feasible.prices)
    choice = by_the_first(accelerator, lambda: _choose(ranked, feasible, supernet, slices, config, accelerator))
    return ranked, choice, pilot, seconds


def _default(
    pilot: Pilot, ranked: list[Ranked], feasible: FeasibleSet, config: SearchConfig, accelerator: Accelerator
) -> Choice | None:
    """The default network as the choice; None if it does not keep the limit of latency when it is measured."""
    folder, limit = Path(config.search.output), feasible.budget.latency
    if (kept := kept_choice(folder, ranked)) is not None or (folder / TOO_SLOW).is_file():  # resumed: goes the same way
        return kept
    choice = the_default(pilot, ranked)
    if limit is not None:
        arch = ranked[choice.rank - 1].arch
        (seconds,) = member_seconds([arch], feasible.space.shape, config, accelerator)
        if seconds > SLACK * limit:
            write_json(folder / TOO_SLOW, {"ms": 1000 * seconds})
            return None
        choice = replace(choice, ms=1000 * seconds)
    keep_choice(folder, choice, ranked)
    return choice


def _choose(
    ranked: list[Ranked],
    feasible: FeasibleSet,
    supernet: Supernet,
    slices: Slices,
    config: SearchConfig,
    accelerator: Accelerator,
) -> Choice:
    """The choice in the folder, or a new one, which is kept there."""
    folder = Path(config.search.output)
    if (kept := kept_choice(folder, ranked)) is not None:
        return kept
    choice = choose(
        ranked,
        lambda archs: Scorer(supernet, accelerator).measure(archs, slices.batches(ranked[0].score.images))[0],
        lambda archs: member_seconds(archs, feasible.space.shape, config, accelerator),
        feasible.budget.latency,
        config.scoring.ties,
    )
    keep_choice(folder, choice, ranked)
    return choice


def _write_first(folder: Path, data: Data, space: Space, table: LatencyTable | None) -> None:
    """Write the list of images, and the measurements, which a resumed search must not repeat."""
    if data.files is not None:
        data.files.images.write(folder / IMAGES)
    if table is not None:
        for name, kept in ((LATENCY, table.to_dict()), (WIDTHS, space.widths)):
            if not (folder / name).exists():
                write_json(folder / name, kept)


def _facts(
    data: Data,
    feasible: FeasibleSet,
    ranked: list[Ranked],
    choice: Choice,
    pilot: Pilot | None,
    record: dict[str, Any],
) -> dict[str, Any]:
    """The facts in front.json and on the page; the same for an interrupted search."""
    search = {key: value for key, value in record["config"]["search"].items() if key not in CHANGING}
    validation = feasible.prices.seconds and feasible.prices.seconds.validation
    return {
        "data": data.name,
        "shape": {"img_size": list(data.img_size), "in_chans": data.in_chans, "num_classes": len(data.classes)},
        "budget": feasible.budget.given,
        "members": len(ranked),
        "space": feasible.space.count(),
        "chosen": ranked[choice.rank - 1].score.name._asdict(),
        "choice": choice.to_dict(ranked),
        "measured_ms": choice.ms,
        "pilot": pilot and pilot.to_dict(),
        "latency_table": validation and validation.to_dict(),
        **record,
        "config": {**record["config"], "search": search},
    }


def _feasible_set(
    space: Space, budget: Budget, prices: Prices, least: float, say: Callable[[str], None]
) -> FeasibleSet:
    """The networks that use at least `least` of the budget; if there is none, all within it."""
    feasible = FeasibleSet(space, budget, prices, least)
    if not feasible.count(at_most=1):
        feasible = FeasibleSet(space, budget, prices)
        most = budget.text_of(feasible.costs(feasible.nearest()), prices)
        say(
            f"note      no network of the space uses {least:.0%} of {budget.text(prices)}, the largest "
            f"{most}: all are searched; larger --stage-widths or more --depth would use more"
        )
    return feasible


def _check_tokens(space: Space) -> None:
    """Refuse images that are too small for the poolings of the space."""
    widest = tuple(choices[-1] for choices in space.widths)
    check_tokens(replace(space.like, genotype=POOL.join(ATTEND * len(widest)), widths=widest), space.img_size)


def _check(feasible: FeasibleSet, config: SearchConfig, accelerator: Accelerator) -> None:
    """Fail now rather than after training; raises the UserError of the first wrong setting."""
    check_optimizer(config.recipe)
    if not use_tree(feasible, config):
        if accelerator.num_processes > 1:
            raise UserError(
                f"evolution runs in one process, not in {accelerator.num_processes}: start several searches with one "
                "--storage and an --output each instead"
            )
        if config.evolution.storage:
            Storage(config.evolution.storage, "psvit")
    if not config.search.resume and (config.scoring.ties == "latency" or feasible.budget.latency is not None):
        like = default_member(feasible)
        by_the_first(accelerator, lambda: member_seconds([like], feasible.space.shape, config, accelerator))


def _train_config(config: SearchConfig) -> TrainConfig:
    own, folder = config.search, Path(config.search.output) / SUPERNET
    recipe = replace(config.recipe, epochs=own.supernet_epochs or ceil(1.5 * config.recipe.epochs), drop_path=0.0)
    run = RunConfig(str(folder), resume=own.resume, overwrite=not own.resume, save_every=own.save_every)
    return TrainConfig(data=config.data, recipe=recipe, machine=config.machine, run=run)


def _batch_that_fits(space: Space, config: SearchConfig, say: Callable[[str], None]) -> int:
    limit = config.scoring.score_memory * 2**30
    images = min(config.scoring.score_batch, max(1, int(limit / batch_bytes(space, 1))))
    say(f"scoring   batches of {images}: at most {batch_bytes(space, images) / 2**30:.2f} GiB of layers at a time")
    return images


def _describe(feasible: FeasibleSet, config: SearchConfig, say: Callable[[str], None]) -> None:
    space = feasible.space
    (low, high), (few, many), count = bounds(space.depth), bounds(space.stages), feasible.count(at_most=LISTED + 1)
    widths = "; ".join(",".join(map(str, choice)) for choice in space.widths)
    say(f"space     {space.count():,} networks of {low} to {high} layers in {few} to {many} stages, widths {widths}")
    number = f"{count:,}" if count <= LISTED else f"more than {LISTED:,}"
    how = "each is scored" if use_tree(feasible, config) else "searched by evolution"
    limits = feasible.budget.text(feasible.prices)
    say(f"budget    {limits}: {number} of them use {feasible.least:.0%} of it or more; {how}")


def random_member(found: Found, macs: float, seed: int) -> Arch:
    """Draw a network of about this many MACs; if there is none, any network of the feasible set."""
    feasible, rng = found.feasible, random.Random(f"random member {seed}")
    try:
        alike = FeasibleSet(feasible.space, Budget(macs=1.02 * macs), feasible.space.prices(), least=0.96)
    except UserError:
        return feasible.sample(rng)
    drawn = (alike.sample(rng) for _ in range(1000) if alike.count(at_most=1))
    return next((arch for arch in drawn if arch in feasible), None) or feasible.sample(rng)


def _silent(line: str) -> None:
    """Nothing is said."""
