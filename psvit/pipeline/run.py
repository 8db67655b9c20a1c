"""`run`: images and a budget -> a searched network, trained, evaluated and compared at equal MACs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from psvit.arch import cost
from psvit.arch.model_config import Checkpoint, ModelConfig, to_plain
from psvit.data.augment import preprocessing
from psvit.data.datasets import Data, open_data
from psvit.data.image_cache import remove_cache
from psvit.data.image_list import IMAGES, check_unchanged, list_files, read_image_list
from psvit.engine.accelerator import by_the_first, open_machine
from psvit.engine.checkpoints import save_checkpoint
from psvit.engine.hardware import versions
from psvit.engine.open_model import load_checkpoint
from psvit.engine.resuming import (
    RESULTS,
    differing,
    flat,
)
from psvit.engine.run_folder import clear_run
from psvit.engine.train_config import TrainConfig
from psvit.errors import UserError
from psvit.files import check_writable, recover, sole_writer, write_json
from psvit.latency.measure import measure_networks
from psvit.pipeline.baselines import baselines, deit_of
from psvit.pipeline.compare import best_on_validation, compare, folders_of
from psvit.pipeline.run_config import RunAllConfig
from psvit.pipeline.run_page import run_page, search_data
from psvit.search.batch_norms import calibration_batches, recalibrate
from psvit.search.search import Found, random_member, search
from psvit.search.search_config import shown
from psvit.search.search_folder import INHERITED, LATENCY
from psvit.search.search_page import REPORT
from psvit.search.supernet import Supernet
from psvit.search.supernet_training import load_supernet


def run(config: RunAllConfig, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Search, train the found network and its baselines at equal MACs, and evaluate each once on the test split.

    Finished steps are kept, and a resumed run continues where it stopped.

    Returns:
        The results as plain data: the settings, a row for each network (see `psvit.pipeline.compare.compare`), and the
        name of the ``chosen`` one (see `psvit.pipeline.compare.best_on_validation`).

    Raises:
        UserError: a wrong setting, an infeasible budget, or a folder that already holds a run.
    """
    accelerator = open_machine(config.machine)
    main, chosen, folder = accelerator.is_main_process, config.compare, Path(config.compare.output)
    say = say if main else lambda line: None
    if main:
        check_writable(folder, f"--output {folder}")
    shared = config.data.cached_in(folder)  # by all trainings and evaluations
    searching = replace(config, data=shared).search_config()  # raises if the search's settings are wrong
    folders = folders_of(chosen)
    if chosen.resume and (results := _finished(folder, config)) is not None:
        say(f"finished  {folder}: all networks are trained and compared, there is nothing to resume")
        if main and chosen.results:
            write_json(Path(chosen.results), results)
        return results
    data = _open_data(config, folder, say)
    with sole_writer(folder, f"--output {folder}") if main else nullcontext():
        _check_baselines(config, data)

        def clear() -> None:
            """Remove the files of an earlier run before writing new ones."""
            if main and not chosen.resume:
                for place in folders.values():
                    clear_run(place)
                for path in (*(folder / name for name in (RESULTS, LATENCY, REPORT)), *list_files(folder)):
                    path.unlink(missing_ok=True)
                remove_cache(folder)

        if config.searches:
            networks = _searched(config, search(searching, say, clear), data, accelerator, say)
        else:
            clear()
            networks = baselines(chosen, data, {})
        if data.files is not None and main:
            data.files.images.write(folder / IMAGES)
        accelerator.wait_for_everyone()
        like = TrainConfig(data=shared, recipe=config.recipe, machine=config.machine)
        rows = compare(chosen if chosen.resume else replace(chosen, overwrite=True), networks, like, say)
        rows = by_the_first(accelerator, partial(_timed, folder, rows, config, accelerator, say))
        if main and config.data.image_cache_dir is None:
            remove_cache(folder)
        results = {
            "config": _record(config),
            "data": data.name,
            "rows": rows,
            "chosen": best_on_validation(rows, config.scoring.ties),
        }
        if config.searches:
            results["pilot"] = (search_data(folder) or {}).get("pilot")
        if main:
            _write(folder, results, config, data)
        accelerator.wait_for_everyone()
    return results


def _open_data(config: RunAllConfig, folder: Path, say: Callable[[str], None]) -> Data:
    """The images; on resume they have to be the same as before."""
    chosen = config.compare
    if (folder / REPORT).exists() and not (chosen.resume or chosen.overwrite):
        raise UserError(f"{folder / REPORT} is there already: give --overwrite to replace it, or another --output")
    kept = read_image_list(folder / IMAGES) if chosen.resume else None
    data = open_data(config.data, kept)
    images = data.files.images if data.files is not None and kept is not None else None
    for line in check_unchanged(kept, images, config.data.accept_changes, folder):
        say(f"note      {line}")
    return data


def _check_baselines(config: RunAllConfig, data: Data) -> None:
    """Raise errors in one of the networks now, not after the search."""
    for name in config.compare.models:
        if name not in ("searched", "random"):
            # the MACs to reach are known only after the search
            with suppress(cost.UnreachableError) if config.searches else nullcontext():
                macs = None if config.searches else config.compare.macs
                baselines(replace(config.compare, models=(name,), macs=macs), data, {})


def _searched(
    config: RunAllConfig, found: Found, data: Data, accelerator: Accelerator, say: Callable[[str], None]
) -> dict[str, ModelConfig]:
    """The network found and the others at its MACs, without those that cannot reach them."""
    shape = (data.img_size, data.in_chans, len(data.classes))
    macs = cost.macs(found.arch, *shape)
    given = {
        "searched": _inherit(found, config, accelerator) if config.compare.inherit else ModelConfig(found.arch),
        "random": ModelConfig(random_member(found, macs, config.data.seed)),
    }
    twin = found.arch.plain()
    for name, arch in {"plain_twin": twin, "deit": deit_of(twin)}.items():
        with suppress(cost.UnreachableError):  # too few MACs for whole heads: use the default network's twin, or none
            given[name] = ModelConfig(cost.scale_to(arch, macs, *shape))
    networks: dict[str, ModelConfig] = {}
    for name in config.compare.models:
        try:
            made = baselines(replace(config.compare, models=(name,)), data, given, macs)
        except cost.UnreachableError as error:
            say(f"left out  {name}: {error}")
            continue
        if name != "searched" and "searched" in config.compare.models and made[name] == given["searched"]:
            say(f"left out  {name}: it is the network of searched")
        else:
            networks |= made
    return networks


def _write(folder: Path, results: Mapping[str, Any], config: RunAllConfig, data: Data) -> None:
    """Write the page and then the results, which mark the run as finished."""
    for name in (RESULTS, REPORT):
        recover(folder / name)
    shape = (data.img_size, data.in_chans, len(data.classes))
    run_page(folder, results, shown(config), shape, versions()).write(folder / REPORT)
    for path in [folder / RESULTS, *([Path(config.compare.results)] if config.compare.results else [])]:
        write_json(path, results)


def _record(config: RunAllConfig) -> dict[str, Any]:
    """The settings for results.json."""
    record: dict[str, Any] = json.loads(json.dumps(to_plain(shown(config))))
    for name in ("resume", "overwrite"):  # they do not change the results
        del record["compare"][name], record["search"][name]
    return record


def _finished(folder: Path, config: RunAllConfig) -> dict[str, Any] | None:
    """The results if the folder holds a finished run with these settings, else None."""
    try:
        results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        before, now = flat(results["config"]), flat(_record(config))
        _ = results["chosen"]  # missing in results of older versions
        same = set(differing(before, now)) <= {"data.accept_changes", "data.image_cache", "data.image_cache_dir"}
        whole = (folder / REPORT).is_file() and all(Path(row["checkpoint"]).is_dir() for row in results["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return results if same and whole else None


def _timed(
    folder: Path,
    rows: list[dict[str, Any]],
    config: RunAllConfig,
    accelerator: Accelerator,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The rows with the latency of each network, measured once in the same way and then read from the folder."""
    kept, device = folder / LATENCY, str(accelerator.device)
    how = {"networks": [row["network"] for row in rows], "device": device, "threads": config.machine.threads}
    how |= asdict(config.latency)
    recover(kept)
    try:
        before = json.loads(kept.read_text(encoding="utf-8"))
        milliseconds = before.pop("milliseconds") if before.keys() == {"milliseconds", *how} else {}
    except (OSError, ValueError, AttributeError):
        milliseconds = {}
    if not milliseconds or before != how:
        networks = {row["name"]: partial(load_checkpoint, Path(row["checkpoint"])) for row in rows}
        try:
            found = measure_networks(networks, config.latency, accelerator.device, config.machine.threads)
        except UserError as error:
            say(f"note      without latencies: {error}")
            return rows
        milliseconds = {name: 1000 * seconds for name, seconds in found.items()}
        write_json(kept, {"milliseconds": milliseconds, **how})
    return [{**row, "latency_ms": milliseconds[row["name"]]} for row in rows]


def _inherit(found: Found, config: RunAllConfig, accelerator: Accelerator) -> ModelConfig:
    """The chosen network with its weights from the supernet, as a checkpoint to start from."""
    folder = found.folder / INHERITED
    if accelerator.is_main_process:
        recover(folder)
        if not folder.exists():
            supernet = Supernet(found.feasible.space)
            load_supernet(supernet, found.supernet)
            model = supernet.extract(found.arch)
            recalibrate(model, calibration_batches(found.data, config.recipe.batch_size, config.data.seed))
            save_checkpoint(folder, model, model.state_dict(), preprocessing(found.data), found.data.classes, {})
    accelerator.wait_for_everyone()
    return ModelConfig(Checkpoint(str(folder)))
