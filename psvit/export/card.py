"""The model card of a classifier: README.md as the Hub shows it, from the template card.md."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader

import psvit
from psvit.arch import cost
from psvit.data.timm_sets import PREFIXES
from psvit.engine.checkpoints import read_metrics
from psvit.engine.open_model import load_checkpoint
from psvit.engine.trained_on import trained_on
from psvit.models.macs import count_macs
from psvit.models.psvit import PSViT
from psvit.tasks.classification.evaluate import Classifier

PUBLIC = {"digits": "digits", "fashion-mnist": "zalando-datasets/fashion_mnist", "mnist-5k": "mnist-5k"}
"""Public names of psvit's own sets: owner/name if the same images are on the Hub."""


def model_card(classifier: Classifier, name: str | None, license: str | None, place: Path) -> str:
    """The text of README.md: front matter for the Hub, metrics, usage, licence.

    Args:
        classifier: see `psvit.tasks.classification.evaluate.open_checkpoint`; the MACs are those at its size.
        name: the repository on the Hub; None if there is none.
        license: of the weights, as the Hub spells it; None if it is not stated.
        place: the folder; the card shows only the name of an absolute path.
    """
    model, metrics = classifier.model, read_metrics(classifier.source)
    channels, *sides = model.pretrained_cfg["input_size"]
    if isinstance(model, PSViT):
        network, genotype = str(model.arch), model.arch.genotype
        macs = cost.macs(model.arch, (sides[0], sides[1]), channels, model.num_classes)
    else:
        network, genotype = model.pretrained_cfg["architecture"], None
        macs = count_macs(lambda: load_checkpoint(classifier.source), (channels, *sides))
    trained = trained_on(metrics)
    data = public_name(trained.data) if trained is not None else None
    top1 = metrics.get("top1")
    result = EvalResult(
        task_type="image-classification", dataset_type=data or "other",
        dataset_name=data or "images that are not public", dataset_split="validation split",
        metric_type="accuracy", metric_name="top-1 accuracy", metric_value=round(top1 / 100, 6),
    ) if isinstance(top1, (int, float)) else None  # fmt: skip
    front = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", license=license, metrics=["accuracy"],
        tags=["image-classification", "timm", "vision-transformer", *(["psvit"] if genotype else [])],
        datasets=[data] if data and "/" in data else None, model_name=name or place.name,
        eval_results=[result] if result is not None else None,
    )  # fmt: skip
    folder = "" if name else place.name if place.is_absolute() else place.as_posix()
    template = Environment(  # Markdown, not HTML
        loader=PackageLoader("psvit.export"), trim_blocks=True, keep_trailing_newline=True
    ).get_template("card.md")
    return template.render(
        front=front.to_yaml(), name=name or place.name, network=network, genotype=genotype, channels=channels,
        height=sides[0], width=sides[1], classes=classifier.classes, macs=macs, data=data, metrics=metrics,
        params=sum(parameter.numel() for parameter in model.parameters()), license=license, folder=folder,
        quoted=shlex.quote(folder), version=psvit.__version__,
    )  # fmt: skip


def public_name(data: str) -> str | None:
    """The public name of a set, from `psvit.engine.trained_on.set_name`; None for files of the user."""
    prefix, _, name = data.partition("/")
    if prefix.lower() in PREFIXES and prefix.lower() != "wds":  # wds names local files
        return name if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) else None
    return PUBLIC.get(data)
