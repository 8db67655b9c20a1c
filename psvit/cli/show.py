"""``psvit show``: layers and cost of a network."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from psvit.arch import cost
from psvit.arch.arch import Arch, image_sides
from psvit.arch.model_config import CHECKPOINT_CONFIG, Checkpoint, ModelFlags, TimmModel, arch_file, is_psvit, read_arch
from psvit.arch.quantities import format_count
from psvit.arch.variants import VARIANTS, find_arch
from psvit.cli.flags import Flags, config_from
from psvit.config import Count, ImageSize, Whole
from psvit.errors import UserError, flag
from psvit.report.tables import Table, print_table

DESCRIPTION = """Layers, tokens, widths, MACs and parameters of a variant, a genotype or a checkpoint, and a diagram.
Example: psvit show ASAS-ASSA-AS --widths 192 256 384"""

SHAPE = {"img_size": 224, "in_chans": 3, "num_classes": 1000}
"""Defaults if neither a flag nor a checkpoint gives them."""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags and print."""
    flags = Flags("show NETWORK", DESCRIPTION, ModelFlags(), apart=("model", "model_args", "pretrained"))
    flags.add("network", "a psvit variant, a genotype, a checkpoint folder, or the folder of a run or search")
    flags.add("--img-size", "pixels: the side, or height and width (default 224)", ImageSize)
    flags.add("--in-chans", "image channels (default 3)", Count)
    flags.add("--num-classes", "classes (default 1000)", Whole)
    flags.add("--json", "print JSON", bool, False)
    values = flags.parse(arguments)
    network = Path(values.network)
    places = () if is_psvit(values.network) else (network, network / "search")
    folder = next((place for place in places if (place / "front.json").is_file()), None)
    if folder is not None:
        given = [name for name in (*SHAPE, *vars(ModelFlags())) if getattr(values, name, None) is not None]
        if given:
            found = f"{network} holds a search, of which psvit show lists what it found"
            raise UserError(f"{found}: leave out {', '.join(map(flag, given))}")
        _show_search(folder, values.json)
        return 0
    arch, shape = _find(values)
    layers = cost.layer_costs(arch, **shape)
    if values.json:
        total = {"macs": sum(layer.macs for layer in layers), "params": sum(layer.params for layer in layers)}
        print(json.dumps({"arch": arch.to_dict(), **total, "layers": [asdict(layer) for layer in layers]}))
    else:
        _print(arch, layers, image_sides(shape["img_size"]), plain_macs=cost.macs(arch.plain(), **shape))
    return 0


def _show_search(folder: Path, as_json: bool) -> None:
    """Print the front of a search and the chosen network."""
    from psvit.search.budget import readable
    from psvit.search.front import front_table, read_front

    data = read_front(folder)
    if as_json:
        print(json.dumps(data))
        return
    arch = read_arch(folder / "arch.json")
    limits = ", ".join(readable(kind, limit) for kind, limit in data["budget"].items())
    print(f"search in {folder}: {data['data']}, budget {limits}; {data['members']:,} networks scored\n")
    print_table(front_table(data))
    print(f"\nchosen    {arch}\nreport    {folder / 'report.html'}\nnext      psvit show {folder / 'arch.json'}")


def _find(values: Namespace) -> tuple[Arch, dict[str, Any]]:
    """The Arch, and the size, channels and classes of its images."""
    name: str = values.network
    config = config_from(values, ModelFlags(), model=name).config()
    shape = dict(SHAPE)
    if isinstance(config.network, TimmModel):
        if name.isupper():
            find_arch(name)  # probably a genotype: its parser gives a better message
        raise UserError(f"{name!r} is no variant ({', '.join(VARIANTS)}), no genotype and no checkpoint folder")
    if isinstance(config.network, Checkpoint):
        arch, own = _read_checkpoint(Path(name))
        shape |= own
    elif not is_psvit(name) and (path := arch_file(name)) is not None:
        shape |= _searched_shape(path.parent)
    shape |= {part: value for part in SHAPE if (value := getattr(values, part)) is not None}
    if not isinstance(config.network, Checkpoint):
        arch = config.arch(**shape)  # type: ignore[assignment]  # not None: checked above
    return arch, shape


def _read_checkpoint(folder: Path) -> tuple[Arch, dict[str, Any]]:
    """The Arch of a checkpoint folder, and the size, channels and classes of its images."""
    file = folder / CHECKPOINT_CONFIG
    if folder.is_file():
        raise UserError(f"{folder} is a file; a checkpoint is a folder with config.json and model.safetensors")
    if not file.is_file():
        inside = next((name for name in ("best", "last") if (folder / name / file.name).is_file()), None)
        raise UserError(f"{folder} is no checkpoint folder" + (f"; did you mean {folder / inside}?" if inside else ""))
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        channels, *sides = config["pretrained_cfg"]["input_size"]
        shape = {"img_size": sides, "in_chans": channels, "num_classes": config["num_classes"]}
        arch = Arch.from_dict(config["psvit"]["arch"]) if "psvit" in config else None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not the config of a psvit network: {error!r}") from error
    if arch is None:
        raise UserError(f"{folder} holds {config.get('architecture')}, not a psvit network: give one of those")
    return arch, shape


def _searched_shape(folder: Path) -> dict[str, Any]:
    """The image size, channels and classes of the search in `folder`; empty if there is none."""
    try:
        shape: dict[str, Any] = json.loads((folder / "front.json").read_text(encoding="utf-8"))["shape"]
    except (OSError, ValueError, KeyError):
        return {}
    return shape


def _print(arch: Arch, layers: list[cost.LayerCost], sides: tuple[int, int], plain_macs: int) -> None:
    from rich import print as print_marked

    macs, params = (sum(getattr(layer, part) for layer in layers) for part in ("macs", "params"))
    headings = ("part", "kind", "grid", "tokens", "width", "M MACs", "%", "k params")
    rows = [(layer.name, layer.kind, "x".join(map(str, layer.grid)), str(layer.tokens), str(layer.width),
             f"{layer.macs / 1e6:,.2f}", f"{100 * layer.macs / macs:.1f}", f"{layer.params / 1e3:,.1f}")
            for layer in layers]  # fmt: skip
    print_marked(f"[bold]{arch}[/bold] for {sides[0]}x{sides[1]} pixels, head_dim {arch.head_dim}\n")
    print_table(Table(headings, rows, left=2))
    print_marked("\n" + "\n".join(diagram(arch, layers)))
    plain = arch.plain()
    twin = "" if arch == plain else (
        f"; {plain.genotype}, {plain.widths[0]} wide throughout, would take {format_count(plain_macs)} MACs"
    )  # fmt: skip
    print_marked(f"\n[bold]{format_count(macs)} MACs, {format_count(params)} parameters[/bold]{twin}")


def diagram(arch: Arch, layers: Sequence[cost.LayerCost]) -> list[str]:
    """One line per stage: its grid, its layers, and a bar as long as its number of tokens."""
    lines = []
    for stage, kinds in enumerate(arch.stages):
        first = next(layer for layer in layers if layer.stage == stage and layer.kind in "AS")
        bar = "█" * max(1, round(40 * first.tokens / layers[0].tokens))
        pooled = "" if stage == 0 else "pool > "
        letters = "".join(f"[cyan]{k}[/cyan]" if k == "A" else f"[green]{k}[/green]" for k in kinds)
        label = f"{pooled}{'x'.join(map(str, first.grid))}"
        lines.append(f"{label:>14}  {letters}{' ' * (max(map(len, arch.stages)) - len(kinds))}  {bar}")
    return [*lines, f"{'':>14}  [cyan]A[/cyan] attends, [green]S[/green] shares the map of the layer before"]
