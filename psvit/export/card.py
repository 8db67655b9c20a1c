"""The model card of a network: README.md as the Hub shows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

import psvit
from psvit.data.timm_sets import PREFIXES

PUBLIC = {"digits": "digits", "fashion-mnist": "zalando-datasets/fashion_mnist", "mnist-5k": "mnist-5k"}
"""What the sets that psvit knows by name are called: as on the Hub, owner/name, where the same images are there."""


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells.

    Args:
        name: of the repository or folder.
        network: what describes the network in one line, such as ``AS-ASS-AS 2d 48-96-144 /4``, or timm's name.
        genotype: where it is a PSViT.
        input_size: channels, height, width.
        classes: class names, by class number.
        params: parameters.
        macs: multiply-accumulates of one image.
        data: public name of the set that it was trained on, see `public_name`; None if that is nobody else's business.
        metrics: of metrics.json: top1 and top5 in percent, on the validation split.
        license: of the weights, as the Hub spells it; None if nobody said.
        folder: its path, of a folder that is not on the Hub; None if `name` is a repository there.
    """

    name: str
    network: str
    genotype: str | None
    input_size: Sequence[int]
    classes: Sequence[str]
    params: int
    macs: int
    data: str | None
    metrics: Mapping[str, Any]
    license: str | None
    folder: str | None = None


def model_card(facts: CardFacts) -> str:
    """The text of README.md: front matter for the Hub, figures, how to use it, licence."""
    tags = ["image-classification", "timm", "vision-transformer", *(["psvit"] if facts.genotype else [])]
    front = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", tags=tags, license=facts.license,
        datasets=[facts.data] if facts.data and "/" in facts.data else None, metrics=["accuracy"],
        model_name=facts.name, eval_results=_results(facts),
    ).to_yaml()  # fmt: skip
    channels, height, width = facts.input_size
    rows = {
        "network": f"`{facts.network}`",
        "genotype": f"`{facts.genotype}`" if facts.genotype else None,
        "parameters": f"{facts.params / 1e6:.4g} M",
        "MACs an image": f"{facts.macs / 1e6:.4g} M",
        "input": f"{height} x {width} pixels, {channels} channel{'s' if channels > 1 else ''}",
        "classes": str(len(facts.classes)),
        "trained on": facts.data,
        "validation top-1": _percent(facts.metrics.get("top1"), facts.metrics.get("images")),
        "validation split top-5": _percent(facts.metrics.get("top5"), None),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    return f"---\n{front}\n---\n\n# {facts.name}\n\n{_what(facts)}\n\n| | |\n| --- | --- |\n{table}\n\n{_use(facts)}"


def public_name(data: str) -> str | None:
    """The public name of a set, by which others find it; None of a folder, or of files of the user's.

    Args:
        data: the set as `psvit.engine.checkpoints.set_name` tells it.
    """
    prefix, _, name = data.partition("/")
    if prefix.lower() in PREFIXES and prefix.lower() != "wds":  # wds are files, wherever they lie
        return name if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) else None
    return PUBLIC.get(data)


def _results(facts: CardFacts) -> list[EvalResult] | None:
    """What metrics.json tells, as the Hub's model-index spells it: accuracies are fractions there."""
    top1 = facts.metrics.get("top1")
    if not isinstance(top1, (int, float)):
        return None
    return [
        EvalResult(
            task_type="image-classification", dataset_type=facts.data or "other",
            dataset_name=facts.data or "images that are not public", dataset_split="validation split",
            metric_type="accuracy", metric_name="top-1 accuracy", metric_value=round(top1 / 100, 6),
        )
    ]  # fmt: skip


def _what(facts: CardFacts) -> str:
    if not facts.genotype:
        return f"An image classifier, `{facts.network}` of timm, trained with psvit {psvit.__version__}."
    return f"""An image classifier, a PSViT: a vision transformer with token pooling and attention sharing, after
[arXiv 2108.03428](https://arxiv.org/abs/2108.03428), trained with psvit {psvit.__version__}. In the genotype, `A` is
a layer that computes its attention map, `S` one that shares the map of the layer before it, `-` a token pooling."""


def _percent(value: object, images: object) -> str | None:
    if not isinstance(value, (int, float)):
        return None
    return f"{value:.2f} %" + (f" of {images} images" if isinstance(images, int) else "")


def _use(facts: CardFacts) -> str:
    classes = ", ".join(facts.classes[:20]) + (f" and {len(facts.classes) - 20} more" if facts.classes[20:] else "")
    licence = (
        f"Licence of the weights: {facts.license}." if facts.license else "The licence of the weights is not stated."
    )
    if facts.folder is None:
        source, place = f"hf-hub:{facts.name}", facts.name
        then = """; or, of a downloaded folder, `timm.create_model("local-dir:FOLDER",
pretrained=True)` and, on a command line, `psvit predict FOLDER image.png`."""
    else:
        source, place = f"local-dir:{facts.folder}", facts.folder
        then = f"""; on a command line, `psvit predict {shlex.quote(facts.folder)} image.png`.
`{facts.folder}` is the path of this folder: give another where it lies elsewhere."""
    return f"""## Use

```sh
pip install psvit
```

```python
import psvit  # registers the network with timm
import timm

model = timm.create_model("{source}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

or `psvit.from_pretrained("{place}")`{then}

## Classes

{classes}

## Licence

{licence}
"""
