"""The plan of a study: its searches, trainings and measurements, checked before any training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from psvit.arch.arch import Arch
from psvit.arch.model_config import ModelConfig
from psvit.arch.quantities import parse_macs
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, open_data
from psvit.engine.hardware import machine_info, resolve_device
from psvit.engine.learning_rates import with_learning_rate
from psvit.engine.open_model import open_model
from psvit.engine.optimizer import check_optimizer
from psvit.engine.train_config import Machine, RunConfig, TrainConfig
from psvit.errors import UserError, one_line
from psvit.files import write_json
from psvit.latency.benchmark_config import LatencyConfig
from psvit.latency.measure import measure_networks
from psvit.pipeline.baselines import baseline
from psvit.search.search_config import SearchConfig
from psvit.studies.definition import SEARCHED, Group, Network, Study, check_slugs, slug
from psvit.studies.known import NOTHING, Known
from psvit.studies.results import Kept, results
from psvit.studies.study_file import search_config
from psvit.studies.study_folder import LATENCY, kept_latencies
from psvit.studies.trials import Search, Trial

Milliseconds = Mapping[tuple[str, str], float | None]
"""Latency of a batch in milliseconds, by group and label."""


class Plan:
    """The searches, trainings and measurements of a study, checked before any training.

    Args:
        study: the study to run.
        folder: of the study.
        machine: of each training.
        known: networks that need no training.

    Raises:
        UserError: MACs that a network cannot reach, names that would share a folder, a validation split of 0, or an
            unknown optimizer.
    """

    def __init__(self, study: Study, folder: Path, machine: Machine, known: Known = NOTHING) -> None:
        self.study, self.folder, self.machine, self.known = study, folder, machine, known
        self.opened: dict[DataConfig, Data] = {}
        check_slugs([group.name for group in study.groups], "groups")
        for group in study.groups:
            own = ["search"] if group.searches else []  # a folder beside the networks'
            check_slugs([*own, *(network.label for network in group.networks)], "networks")
            if group.data.validation == 0:
                raise UserError(
                    f"group {group.name} has validation 0: the best epoch is chosen on a validation split, give 0.1"
                )
            try:
                check_optimizer(group.recipe)
            except UserError as error:
                raise UserError(f"recipe of group {group.name}: {error}") from error
        self.models = {
            (group.name, network.label): self._model(group, network)
            for group in study.groups
            for network in group.networks
            if network.network != SEARCHED
        }
        self.searches = [
            self._search(group)
            for group in study.groups
            if any(one.network == SEARCHED and (group.name, one.label) not in known.rows for one in group.networks)
        ]

        if known.rows:
            self._check_known()

    def _check_known(self) -> None:
        """Refuse known networks whose images, Arch or learning rate differ in spite of equal settings."""
        shapes, images = self.shapes(), self.train_images()
        recipes = {group.name: group.recipe for group in self.study.groups}
        for (group, label), row in self.known.rows.items():
            told, model = self.known.data[group], self.models.get((group, label))
            facts: list[tuple[Any, Any]] = [
                (f"{told['train_images']} training images", f"{images[group]} training images"),
                (f"images of the shape {told['shape']}", f"images of the shape {shapes[group]}"),
            ]
            if model is not None and row.get("lr") is not None:
                now = with_learning_rate(TrainConfig(model=model, recipe=recipes[group])).recipe.scaled_lr(1)
                facts.append((f"learning rate {row['lr']:g}", f"learning rate {now:g}"))
            if model is not None and (arch := arch_of(model)) is not None:  # older results hold only its name
                facts.append((row.get("arch") or row["network"], arch.to_dict() if row.get("arch") else str(arch)))
            for then, here in facts:
                if then != here:
                    raise UserError(
                        f"network {label} of group {group} was trained with {then}, and here it would be with {here}: "
                        "leave out --known"
                    )

    def trials(self, archs: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
        """The trainings: the first seed of all networks, then the second, and so on.

        Args:
            archs: results of the searches, by group; networks still to be searched are left out.
        """
        models = self.networks(archs)
        found = [
            (turn, self._trial(group, network, seed, models[group.name, network.label]))
            for group in self.study.groups
            for network in group.networks
            if (group.name, network.label) in models and (group.name, network.label) not in self.known.rows
            for turn, seed in enumerate(network.seeds)
        ]
        return [trial for _, trial in sorted(found, key=lambda pair: pair[0])]

    def networks(self, archs: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], ModelConfig]:
        """The networks by group and label; `archs` as in `trials`."""
        return self.models | {
            (group.name, network.label): ModelConfig(Arch.from_dict(dict(archs[group.name])))
            for group in self.study.groups
            for network in group.networks
            if network.network == SEARCHED and group.name in archs
        }

    def tell(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Print the searches and trainings; returns no results."""
        for search in self.searches:
            say(f"{search.title}: {' '.join(search.config.search.budget)}")
        for group in self.study.groups:
            images = len(self._data(group).train)
            say(f"{group.name}: {group.data.data}, {images} images, {group.recipe.epochs} epochs")
            for network in group.networks:
                where = group.name, network.label
                what = "known" if where in self.known.rows else "what the search finds"
                if where in self.models and where not in self.known.rows:
                    model = self.models[where]
                    changes = [f"{name} {value}" for name, value in model.model_args.items()]
                    what = " ".join([str(arch_of(model) or model.name), *changes])
                say(f"  {network.label}: {what}, seeds {' '.join(map(str, network.seeds))}")
        return {}

    def results(self, kept: Kept, archs: Mapping[str, Any], milliseconds: Milliseconds) -> dict[str, Any]:
        """The results of the study, from its trainings, searches and latencies.

        Returns:
            See `psvit.studies.results.results`; in addition each row has ``latency_ms`` (None if it could not be
            measured, settings in ``latency``), and groups with a search have ``search_seconds`` (training of the
            supernet and scoring; None if it was interrupted).
        """
        searched = {**self.known.searched, **archs}
        found = results(self.study, kept, searched, self.shapes(), self.train_images(), self.known)
        took = dict(self.known.search_seconds) | {search.group: search.seconds() for search in self.searches}
        for entry, group in zip(found["groups"], self.study.groups, strict=True):
            for row in entry["rows"]:
                row["latency_ms"] = milliseconds.get((group.name, row["label"]))
            if group.searches:
                entry["search_seconds"] = took.get(group.name)
        return {**found, "latency": asdict(LatencyConfig())}

    def latencies(self, archs: Mapping[str, Any], say: Callable[[str], None]) -> Milliseconds:
        """Milliseconds of a batch through each network, also known ones, on this machine.

        They are measured once and kept. If a network is added or the machine changes, all are measured again: only
        latencies measured in turns are comparable.
        """
        config, device, shapes = LatencyConfig(), resolve_device(self.machine.device), self.shapes()
        models = self.networks({**self.known.searched, **archs})
        keys = {where: json.dumps([asdict(model.flags()), shapes[where[0]]]) for where, model in models.items()}
        info = machine_info(device)
        measured = {name: info[name] for name in ("torch", "device", "device_name", "cpu")}
        measured |= {"threads": self.machine.threads or info["threads"], **asdict(config)}
        kept = kept_latencies(self.folder / LATENCY, measured)
        if not kept.keys() >= set(keys.values()):
            different = {key: partial(open_model, models[where], **shapes[where[0]]) for where, key in keys.items()}
            say(f"measuring the latency of {len(different)} networks")
            seconds = measure_networks(different, config, device, self.machine.threads, skip=True)
            kept = {key: round(1000 * seconds[key], 4) if key in seconds else None for key in different}
            write_json(self.folder / LATENCY, {**measured, "milliseconds": kept})
        return {where: kept[key] for where, key in keys.items()}

    def shapes(self) -> dict[str, dict[str, Any]]:
        """Image size, channels and classes of each group."""
        opened = {group.name: self._data(group) for group in self.study.groups}
        return {
            name: {"img_size": list(data.img_size), "in_chans": data.in_chans, "num_classes": len(data.classes)}
            for name, data in opened.items()
        }

    def train_images(self) -> dict[str, int]:
        """The number of training images of each group."""
        return {group.name: len(self._data(group).train) for group in self.study.groups}

    def image_lists(self) -> dict[str, str]:
        """Fingerprints of the images of each group that is trained on a folder."""
        files = {group.name: self._data(group).files for group in self.study.groups}
        return {name: found.images.fingerprint for name, found in files.items() if found is not None}

    def _data(self, group: Group) -> Data:
        if group.data not in self.opened:
            self.opened[group.data] = open_data(group.data)
        return self.opened[group.data]

    def _model(self, group: Group, network: Network) -> ModelConfig:
        data, changes = self._data(group), dict(network.changes)
        try:
            macs = parse_macs(group.macs) if group.macs is not None and network.scaled else None
            return baseline(network.network, data, macs, changes)
        except UserError as error:
            raise UserError(f"network {network.label} of group {group.name}: {error}") from error

    def _trial(self, group: Group, network: Network, seed: int, model: ModelConfig) -> Trial:
        folder = self.folder / slug(group.name) / slug(network.label) / f"seed-{seed}"
        data, run = replace(group.data, seed=seed).cached_in(self.folder), RunConfig(str(folder))
        config = with_learning_rate(
            TrainConfig(model=model, data=data, recipe=group.recipe, machine=self.machine, run=run)
        )
        source = self.study.source or self.study.name
        return Trial(group.name, network.label, seed, self.study.reads, config, source, group.macs)

    def _search(self, group: Group) -> Search:
        what = f"search of group {group.name}"
        parts = search_config(dict(group.search), what)
        output = str(self.folder / slug(group.name) / "search")
        try:
            folder = replace(parts.pop("search"), budget=(str(group.macs),), output=output)
            data = group.data.cached_in(self.folder)
            config = SearchConfig(search=folder, **parts, data=data, recipe=group.recipe, machine=self.machine)
        except UserError as error:
            raise UserError(f"{what}: {one_line(error)}") from error
        return Search(group.name, config)


def arch_of(model: ModelConfig) -> Arch | None:
    """The Arch of a network; None for a model of timm."""
    return model.network if isinstance(model.network, Arch) else None
