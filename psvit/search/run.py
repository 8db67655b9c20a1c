"""The main job: data + budget -> a searched network, trained, evaluated, and compared at equal MACs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from psvit import cost
from psvit.errors import UserError
from psvit.files import recover, write_json
from psvit.search.learning import load_supernet
from psvit.search.search import SUPERNET, Found, random_member, search
from psvit.search.settings import RunAllSettings
from psvit.search.supernet import Supernet
from psvit.training.augment import preprocessing
from psvit.training.checkpoints import save_checkpoint
from psvit.training.compare import compare, contenders, folders_of, model_settings
from psvit.training.data import open_data
from psvit.training.recipes import ModelSettings, TrainSettings
from psvit.training.run_folder import RESULTS, SETTINGS

INHERITED = "inherited"


def run(settings: RunAllSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Search, train the winner and what it is compared with at equal MACs, evaluate each once on the test split.

    Every step that is finished is kept, and a resumed run goes on where it stopped.

    Returns:
        The results as plain data: the settings, and a row for each network; see `psvit.training.compare.compare`.

    Raises:
        UserError: a wrong setting, an infeasible budget, or a folder that already holds a run.
    """
    chosen, folder = settings.compare, Path(settings.compare.output)
    folders = folders_of(chosen)
    places = [*folders.values(), *([folder / "search"] if settings.searches else [])]
    if chosen.resume and not any((place / SETTINGS).exists() for place in places):
        raise UserError(f"{folder} holds no run to resume: leave out --resume, or check --output")
    given: dict[str, ModelSettings] = {}
    macs = None
    if settings.searches:
        wanted = settings.search_settings()
        if chosen.resume and not (folder / "search" / SETTINGS).exists():
            wanted = replace(wanted, search=replace(wanted.search, resume=False, overwrite=True))
        found = search(wanted, say)
        shape = (found.data.img_size, found.data.in_chans, len(found.data.classes))
        macs = cost.macs(found.arch, *shape)
        given["searched"] = inherit(found, settings) if chosen.inherit else model_settings(found.arch)
        if "random" in chosen.models:
            given["random"] = model_settings(random_member(found.region, settings.data.seed))
    if not chosen.resume:
        (folder / RESULTS).unlink(missing_ok=True)
    like = TrainSettings(data=settings.data, recipe=settings.recipe, machine=settings.machine)
    data = open_data(settings.data)
    rows = compare(chosen, contenders(chosen, data, given, macs), like, say)
    record = json.loads(json.dumps(asdict(settings)))
    for name in ("resume", "overwrite"):  # a run that was interrupted has the same results
        del record["compare"][name], record["search"][name]
    results = {"settings": record, "data": data.name, "rows": rows}
    write_json(folder / RESULTS, results)
    if chosen.results:
        write_json(Path(chosen.results), results)
    return results


def inherit(found: Found, settings: RunAllSettings) -> ModelSettings:
    """The chosen network with its weights in the supernet, as a checkpoint to start from."""
    folder = found.folder / INHERITED
    recover(folder)
    if not folder.exists():
        supernet = Supernet(found.region.space, settings.supernet.entangle)
        load_supernet(supernet, found.folder / SUPERNET)
        model = supernet.extract(found.arch)
        save_checkpoint(folder, model, model.state_dict(), preprocessing(found.data), found.data.classes, {})
    return ModelSettings(str(folder))
