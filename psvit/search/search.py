"""The search: data + budget -> Arch, in a folder that a killed search goes on from."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import floor
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from psvit import cost
from psvit.arch import ATTEND, Arch
from psvit.errors import UserError
from psvit.files import recover, write_json
from psvit.search.budget import Budget, Prices, readable
from psvit.search.evolution import evolve
from psvit.search.front import Ranked, rank, write_front
from psvit.search.latency import LatencyTable, measure_networks, open_table
from psvit.search.learning import supernet_training, train_supernet
from psvit.search.region import Region
from psvit.search.scores import Score
from psvit.search.scoring import Scorer, Slices, batch_bytes, rank_all
from psvit.search.settings import SearchSettings
from psvit.search.space import Space, bounds
from psvit.search.supernet import Supernet
from psvit.training.data import Data, open_data
from psvit.training.machine import interrupts, open_machine
from psvit.training.recipes import RunSettings, TrainSettings
from psvit.training.run_folder import SETTINGS, check_same, record_of
from psvit.variants import SMALL, default_arch

ARCH, JOURNAL, SUPERNET, FRONT = "arch.json", "journal.jsonl", "supernet", "front.json"
LATENCY = "latency.json"

LISTED = 20_000
"""``--method auto`` scores every member of a region that is no larger."""

EVOLUTION_SLICE = 1024
"""Images of the hold-out on which evolution scores each member."""

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
    region: Region
    data: Data
    folder: Path


def search(settings: SearchSettings, say: Callable[[str], None] = print) -> Found:
    """Find the network of the least hold-out loss within the budget, as the supernet ranks them.

    The supernet learns from the training split; members are scored on the hold-out that is cut from it. The test split
    is not read.

    Args:
        settings: everything that the search depends on.
        say: takes lines for the user.

    Raises:
        UserError: an infeasible budget, too small a hold-out, a folder that holds another run.
        InterruptedTrainingError, InterruptedSearchError: Ctrl-C; the message says how to resume.
    """
    accelerator = open_machine(settings.machine)
    say = say if accelerator.is_main_process else _silent
    folder, record = Path(settings.search.output), record_of(settings, accelerator)
    _check_folder(folder, settings, record)
    data = open_data(settings.data)
    slices = Slices(data, settings.data.seed, settings.scoring.score_batch, settings.data.strict)
    space, budget = space_for(settings, data)
    table = _table(space, budget, settings, accelerator, say)
    region = space.feasible(budget, _prices(space, table), settings.space.least)
    _begin(folder, settings, record, accelerator)
    if table is not None and accelerator.is_main_process and not (folder / LATENCY).exists():
        write_json(folder / LATENCY, table.to_dict())
    _tell(region, budget, settings, say)
    started = time.perf_counter()
    training = supernet_training(_train_settings(settings), settings.supernet, space, budget.given)
    supernet, accelerator = train_supernet(region, training, data, say)
    trained = time.perf_counter()
    slices.batch_size = _batch_that_fits(space, settings, say)
    scores = _score(region, supernet, slices, accelerator, settings, say)
    seconds = {"supernet_seconds": trained - started, "scoring_seconds": time.perf_counter() - trained}
    ranked = rank(scores, space, region.prices)
    chosen, measured = choose(ranked, region, settings, accelerator, say)
    if accelerator.is_main_process:
        facts: dict[str, Any] = {
            "data": data.name,
            "shape": {
                "img_size": list(data.img_size),
                "in_chans": data.in_chans,
                "num_classes": len(data.classes),
            },
            "budget": budget.given,
            "members": len(ranked),
            "space": space.count(),
            "chosen": {"genotype": chosen.arch.genotype, "widths": list(chosen.arch.widths)},
            "measured_ms": None if measured is None else 1000 * measured,
            "latency_table": None if table is None or table.validation is None else table.validation.to_dict(),
            **record,
        }
        write_front(folder, ranked, facts)
        write_json(folder / ARCH, chosen.arch.to_dict())
        write_json(folder / "seconds.json", seconds)  # apart: all else is equal when a search is done again
    costs = [readable("macs", chosen.macs), readable("params", chosen.params)]
    costs += [f"{1000 * measured:.3g} ms measured"] if measured else []
    say(f"chosen    {chosen.arch}: loss {chosen.score.loss:.4f}, {', '.join(costs)}")
    accelerator.wait_for_everyone()
    return Found(chosen.arch, region, data, folder)


class InterruptedSearchError(UserError):
    """The user stopped a search; its journal holds what was scored."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"stopped while scoring, all scores are kept in {folder}: go on with --resume")


def space_for(settings: SearchSettings, data: Data) -> tuple[Space, Budget]:
    """The space and the budget that the settings ask for.

    Raises:
        UserError: a budget or a space outside its rule.
    """
    chosen, shape = settings.space, (data.img_size, data.in_chans, len(data.classes))
    small = max(data.img_size) <= SMALL
    like = default_arch(data.img_size)
    given: dict[str, Any] = {"head_dim": chosen.head_dim or (like.head_dim if small else 32)}
    if chosen.patch_size:
        given |= {"patch_size": chosen.patch_size, "stride": chosen.patch_size}
    if chosen.pooling == "1d":
        given |= {"pooling": "1d", "class_token": True}
    widths = tuple(max(1, round(width / given["head_dim"])) * given["head_dim"] for width in like.widths)
    like = replace(like, widths=widths, **given)
    depth = chosen.depth or ((4, 8) if small else (12,))
    plain = like.plain()
    budget = Budget.parse(settings.search.budget, cost.macs(plain, *shape), cost.params(plain, *shape))
    if not settings.search.budget:
        budget = Budget(macs=cost.macs(like, *shape))
    stages = chosen.stages[-1]
    choices = tuple(tuple(map(int, text.split(","))) for text in chosen.stage_widths)
    space = Space(
        _range(depth), _range(chosen.stages), chosen.max_share, chosen.earliest_pool,
        choices or width_choices(like, stages, chosen.width_choices, budget, shape),
        replace(like, genotype=ATTEND, widths=like.widths[:1]), *shape,
    )  # fmt: skip
    return space, budget


def _range(values: Sequence[int]) -> int | tuple[int, int]:
    return values[0] if len(values) == 1 else (values[0], values[-1])


def width_choices(
    like: Arch, stages: int, count: int, budget: Budget, shape: tuple[Any, int, int]
) -> tuple[tuple[int, ...], ...]:
    """For each stage, `count` widths around those of the default network, scaled to the budget's MACs.

    From half to one and a half (to twice in later stages): what pooling and sharing save can buy width.
    """
    reference = like
    if budget.macs is not None:
        try:
            reference = cost.scale_to(replace(like, head_dim=like.head_dim), budget.macs, *shape, tolerance=0.2)
        except UserError:  # so small a budget that heads do not fit: the narrowest widths then
            reference = like
    widths = [*reference.widths, *[reference.widths[-1]] * stages][:stages]
    if count == 1:
        return tuple((_whole(width, like.head_dim),) for width in widths)
    found = []
    for stage, width in enumerate(widths):
        low, high = 0.5 * width, (1.5 if stage == 0 else 2.0) * width
        steps = [low * (high / low) ** (number / (count - 1)) for number in range(count)]
        found.append(tuple(sorted({_whole(step, like.head_dim) for step in steps})))
    return tuple(found)


def _whole(width: float, head_dim: int) -> int:
    return max(1, floor(width / head_dim + 0.5)) * head_dim


def choose(
    ranked: Sequence[Ranked],
    region: Region,
    settings: SearchSettings,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> tuple[Ranked, float | None]:
    """The best-ranked member; where latency is limited, the best that keeps the limit when measured.

    Returns:
        The member, and its measured seconds for a batch where latency is limited.
    """
    limit = region.budget.latency
    if limit is None:
        return ranked[0], None
    final = [one for one in ranked if one.score.images == ranked[0].score.images]
    for start in range(0, len(final), 4):
        group = final[start : start + 4]
        seconds = measure_networks(
            [one.arch for one in group], region.space, settings.latency, accelerator.device, settings.machine.threads
        )
        for one, second in zip(group, seconds, strict=True):
            if second <= SLACK * limit:
                return one, second
        say(f"latency   {len(group)} of the best are slower than {1000 * limit:.3g} ms when measured: trying the next")
    raise UserError(
        f"none of the {len(final)} best networks keeps {1000 * limit:.3g} ms when measured: the machine is slower now "
        "than when its latency table was measured; try again, or raise --budget"
    )


def _score(
    region: Region,
    supernet: Supernet,
    slices: Slices,
    accelerator: Accelerator,
    settings: SearchSettings,
    say: Callable[[str], None],
) -> list[Score]:
    folder = Path(settings.search.output)
    with interrupts() as interrupt:

        def stop() -> None:
            if interrupt.requested(accelerator):
                raise InterruptedSearchError(folder)

        if use_tree(region, settings):
            return rank_all(region, supernet, slices, accelerator, folder / JOURNAL, settings.scoring, say, stop)
        scorer = Scorer(supernet, accelerator)
        batches = slices.batches(min(len(slices), EVOLUTION_SLICE))

        def evaluate(arch: Arch) -> Score:
            stop()
            return scorer.score([arch], batches)[0]

        evolution = settings.evolution
        if evolution.storage and not evolution.study_name:  # another supernet's scores must not be taken up
            evolution = replace(evolution, study_name=f"psvit-{_fingerprint(settings)}")
        return evolve(region, evaluate, evolution, folder, settings.data.seed, say)


def _fingerprint(settings: SearchSettings) -> str:
    """Of all that the supernet and its scores depend on."""
    about = [asdict(getattr(settings, name)) for name in ("space", "supernet", "data", "recipe", "scoring")]
    text = json.dumps([about, settings.search.budget, settings.search.supernet_epochs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def use_tree(region: Region, settings: SearchSettings) -> bool:
    """Whether all members are scored on the prefix tree.

    Raises:
        UserError: the tree was asked for, but the members cannot be listed.
    """
    if settings.search.method != "auto":
        if settings.search.method == "tree" and region.members is None:
            raise UserError(
                "--method tree lists every network, and these are too many: take evolution, or a smaller space"
            )
        return settings.search.method == "tree"
    return region.count(at_most=LISTED + 1) <= LISTED


def _check_folder(folder: Path, settings: SearchSettings, record: dict[str, Any]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder as --output")
    if settings.search.resume:
        check_same(folder, record)
    elif not settings.search.overwrite and (folder / SETTINGS).exists():
        raise UserError(
            f"{folder} already holds a run: give --resume to go on, --overwrite to replace it, or another --output"
        )


def _begin(folder: Path, settings: SearchSettings, record: dict[str, Any], accelerator: Accelerator) -> None:
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if not settings.search.resume:
            shutil.rmtree(folder / SUPERNET, ignore_errors=True)
            names = (ARCH, FRONT, "front.csv", "front.html", "seconds.json", LATENCY, SETTINGS)
            shutil.rmtree(folder / "inherited", ignore_errors=True)
            patterns = ("journal*.jsonl", "evolution.*")
            kept = [path for pattern in patterns for path in folder.glob(pattern)]
            for path in [*(folder / name for name in names), *kept]:
                path.unlink(missing_ok=True)
            write_json(folder / SETTINGS, record)
        for name in (ARCH, FRONT, "front.csv", "front.html", SETTINGS):
            recover(folder / name)
    accelerator.wait_for_everyone()


def _train_settings(settings: SearchSettings) -> TrainSettings:
    own, folder = settings.search, Path(settings.search.output) / SUPERNET
    recipe = replace(settings.recipe, epochs=own.supernet_epochs or 2 * settings.recipe.epochs, drop_path=0.0)
    started = own.resume and (folder / SETTINGS).exists()
    run = RunSettings(str(folder), resume=started, overwrite=not started, save_every=own.save_every)
    return TrainSettings(data=settings.data, recipe=recipe, machine=settings.machine, run=run)


def _table(
    space: Space, budget: Budget, settings: SearchSettings, accelerator: Accelerator, say: Callable[[str], None]
) -> LatencyTable | None:
    """The table of this device; a resumed search takes up the one that it began with."""
    if budget.latency is None:
        return None
    kept = Path(settings.search.output) / LATENCY
    if settings.search.resume and kept.is_file():
        return LatencyTable.from_dict(json.loads(kept.read_text(encoding="utf-8")))
    return open_table(space, settings.latency, accelerator.device, settings.machine.threads, say)


def _prices(space: Space, table: LatencyTable | None) -> Prices:
    return Prices(space.like, len(space.widths), space.img_size, space.in_chans, space.num_classes, table)


def _batch_that_fits(space: Space, settings: SearchSettings, say: Callable[[str], None]) -> int:
    limit = settings.scoring.score_memory * 2**30
    images = min(settings.scoring.score_batch, max(1, int(limit / batch_bytes(space, 1))))
    say(f"scoring   batches of {images}: at most {batch_bytes(space, images) / 2**30:.2f} GiB of layers at a time")
    return images


def _tell(region: Region, budget: Budget, settings: SearchSettings, say: Callable[[str], None]) -> None:
    space = region.space
    low, high = bounds(space.depth)
    widths = "; ".join(",".join(map(str, choice)) for choice in space.widths)
    plain = space.plain()
    plain_macs = cost.macs(plain, space.img_size, space.in_chans, space.num_classes)
    few, many_stages = bounds(space.stages)
    say(
        f"space     {space.count():,} networks of {low} to {high} layers in {few} to {many_stages} stages, "
        f"widths {widths}"
    )
    count = region.count(at_most=LISTED + 1)
    many = f"{count:,}" if count <= LISTED else f"more than {LISTED:,}"
    how = "each is scored" if use_tree(region, settings) else "searched by evolution"
    say(f"budget    {budget.text(region.prices)}: {many} of them; {how}; the plain twin has "
        f"{readable('macs', plain_macs)}")  # fmt: skip


def read_arch(folder: Path) -> Arch:
    """The Arch that a finished search chose.

    Raises:
        UserError: the search is not finished, or its file is broken.
    """
    path = folder / ARCH
    if not path.is_file():
        raise UserError(f"{folder} holds no finished search: finish it with --resume")
    return Arch.from_json(path.read_text(encoding="utf-8"))


def random_member(region: Region, seed: int) -> Arch:
    """One member drawn by `seed` among those that use the budget nearly whole."""
    for least in (0.95, 0.9, region.least):
        if region.count(at_most=1) and least >= region.least:
            full = Region(region.space, region.budget, region.prices, least)
            if full.count(at_most=1):
                return full.sample(random.Random(f"random member {seed}"))
    return region.sample(random.Random(f"random member {seed}"))


def _silent(line: str) -> None:
    """Nothing is said."""
