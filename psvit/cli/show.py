"""``psvit show``: what a network is made of and what it costs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from psvit.arch import cost
from psvit.arch.arch import ARCH_FIELDS, Arch
from psvit.arch.model_config import read_arch
from psvit.arch.quantities import format_count
from psvit.arch.variants import FAMILIES, VARIANTS, find_arch
from psvit.cli.flags import Flags
from psvit.errors import UserError, flag

DESCRIPTION = """Layers, tokens, widths, MACs and parameters of a variant, a genotype or a checkpoint, and a diagram.
Example: psvit show ASAS-ASSA-AS --widths 192 256 384"""


def main(arguments: Sequence[str]) -> int:
    """Parse the flags and print."""
    values = _flags().parse(arguments)
    given = vars(values)
    is_name = values.network in VARIANTS or set(values.network) <= set("AS-")
    folder = None if is_name else search_folder(Path(values.network))
    changes = {field: given[field] for field in ARCH_FIELDS if field in given}
    if folder is not None:
        sizes = {name: given[name] for name in ("img_size", "in_chans", "num_classes")}
        _refuse({**sizes, **changes}, f"{values.network} holds a search, of which psvit show lists what it found")
        return _show_search(folder, values.json)
    arch, shape = _find(values.network, changes)
    img_size = values.img_size or shape.get("img_size", [224])
    in_chans, classes = (
        given if given is not None else shape.get(name, default)
        for name, given, default in (("in_chans", values.in_chans, 3), ("num_classes", values.num_classes, 1000))
    )
    sides = tuple(img_size) if len(img_size) > 1 else (img_size[0], img_size[0])
    layers = cost.layer_costs(arch, sides, in_chans, classes)
    if values.json:
        total = {"macs": sum(layer.macs for layer in layers), "params": sum(layer.params for layer in layers)}
        print(json.dumps({"arch": arch.to_dict(), **total, "layers": [asdict(layer) for layer in layers]}))
        return 0
    _print(arch, layers, sides, plain_macs=cost.macs(arch.plain(), sides, in_chans, classes))
    return 0


def _flags() -> Flags:
    flags = Flags("show NETWORK", DESCRIPTION)
    flags.add("network", "a psvit variant, a genotype, a checkpoint folder, or the folder of a run or search")
    flags.add("--img-size", "pixels: the side, or height and width (default 224)", tuple[int, ...])
    flags.add("--in-chans", "image channels (default 3)", int)
    flags.add("--num-classes", "classes (default 1000)", int)
    flags.add("--widths", "channels of each stage (default 192 256 384 512)", tuple[int, ...])
    flags.add("--pooling", "pool the sequence or the grid (default 2d)", Literal["1d", "2d"])
    flags.add("--head-dim", "channels of one attention head (default 64)", int)
    flags.add("--mlp-ratio", "hidden channels of the MLP over the width (default 4)", float)
    flags.add("--patch-size", "side of a patch in pixels (default 16)", int)
    flags.add("--stride", "pixels from patch to patch (default: the patch size)", int)
    flags.add("--windows", "tokens on a side of each stage's windows, 0: none (default none)", tuple[int, ...])
    flags.add("--stem", "patches, or convolutions of stride 2 (default patch)", Literal["patch", "conv"])
    flags.add("--json", "print JSON", bool, False)
    return flags


def search_folder(path: Path) -> Path | None:
    """The folder of a search: this one, or the one in a run's; None if there is neither."""
    return next((folder for folder in (path, path / "search") if (folder / "front.json").is_file()), None)


def _show_search(folder: Path, as_json: bool) -> int:
    """Print the front that a search found, and the network that it chose."""
    from psvit.report.tables import print_table
    from psvit.search.budget import readable
    from psvit.search.front import front_table, read_front

    data = read_front(folder)
    if as_json:
        print(json.dumps(data))
        return 0
    arch = read_arch(folder / "arch.json")
    limits = ", ".join(readable(kind, limit) for kind, limit in data["budget"].items())
    print(f"search in {folder}: {data['data']}, budget {limits}; {data['members']:,} networks scored\n")
    print_table(front_table(data))
    print(f"\nchosen    {arch}\nreport    {folder / 'report.html'}\nnext      psvit show {folder / 'arch.json'}")
    return 0


def _find(name: str, changes: dict[str, Any]) -> tuple[Arch, dict[str, Any]]:
    """The Arch, and the image size, channels and classes that a checkpoint was made for."""
    folder = Path(name)
    named = name in VARIANTS or name in FAMILIES
    if named or set(name) <= set("AS-") or not ("/" in name or folder.exists()):
        if not named and name != name.upper():  # else a genotype, whose parser names what is wrong
            raise UserError(f"{name!r} is no variant ({', '.join(VARIANTS)}), no genotype and no checkpoint folder")
        return find_arch(name, **changes), {}
    described = folder.suffix == ".json" and folder.is_file()
    what = "describes a network already" if described else "is a checkpoint, whose network is fixed"
    _refuse(changes, f"{name} {what}")
    if described:
        return read_arch(folder), _searched_shape(folder.parent)
    if folder.is_file():
        raise UserError(f"{name} is a file; a checkpoint is a folder with config.json and model.safetensors")
    if not (folder / "config.json").is_file():
        inside = next((n for n in ("best", "last") if (folder / n / "config.json").is_file()), None)
        raise UserError(f"{name} is no checkpoint folder" + (f"; did you mean {folder / inside}?" if inside else ""))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        arch = Arch.from_dict(config["psvit"]["arch"])
        channels, *sides = config["pretrained_cfg"]["input_size"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is not the config of a psvit network: {error!r}") from error
    return arch, {"img_size": sides, "in_chans": channels, "num_classes": config["num_classes"]}


def _refuse(given: Mapping[str, Any], why: str) -> None:
    """Refuse flags that would change nothing; those that are None were not given."""
    if flags := [flag(name) for name, value in given.items() if value is not None]:
        raise UserError(f"{why}: leave out {', '.join(flags)}")


def _searched_shape(folder: Path) -> dict[str, Any]:
    """The image size, channels and classes of the search that left an Arch in `folder`; else empty."""
    try:
        shape: dict[str, Any] = json.loads((folder / "front.json").read_text(encoding="utf-8"))["shape"]
    except (OSError, ValueError, KeyError):
        return {}
    return shape


def _print(arch: Arch, layers: list[cost.LayerCost], sides: tuple[int, ...], plain_macs: int) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    total = sum(layer.macs for layer in layers)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("part", "kind", "grid", "tokens", "width", "M MACs", "%", "k params"):
        table.add_column(heading, justify="left" if heading in ("part", "kind") else "right")
    for layer in layers:
        grid = "x".join(map(str, layer.grid))
        share = 100 * layer.macs / total
        table.add_row(layer.name, layer.kind, grid, str(layer.tokens), str(layer.width), f"{layer.macs / 1e6:,.2f}",
                      f"{share:.1f}", f"{layer.params / 1e3:,.1f}")  # fmt: skip
    console.print(f"[bold]{arch}[/bold] for {sides[0]}x{sides[1]} pixels, head_dim {arch.head_dim}\n")
    console.print(table)
    console.print()
    for line in diagram(arch, layers):
        console.print(line, highlight=False)
    params = sum(layer.params for layer in layers)
    plain = arch.plain()
    twin = "" if arch == plain else (
        f"; {plain.genotype}, {plain.widths[0]} wide throughout, would take {format_count(plain_macs)} MACs"
    )  # fmt: skip
    console.print(f"\n[bold]{format_count(total)} MACs, {format_count(params)} parameters[/bold]{twin}")


def diagram(arch: Arch, layers: Sequence[cost.LayerCost]) -> list[str]:
    """One line a stage: its grid, its layers, and a bar as wide as it has tokens."""
    lines = []
    for stage, kinds in enumerate(arch.stages):
        first = next(layer for layer in layers if layer.stage == stage and layer.kind in "AS")
        bar = "█" * max(1, round(40 * first.tokens / layers[0].tokens))
        pooled = "" if stage == 0 else "pool > "
        letters = "".join(f"[cyan]{k}[/cyan]" if k == "A" else f"[green]{k}[/green]" for k in kinds)
        label = f"{pooled}{'x'.join(map(str, first.grid))}"
        lines.append(f"{label:>14}  {letters}{' ' * (max(map(len, arch.stages)) - len(kinds))}  {bar}")
    return [*lines, f"{'':>14}  [cyan]A[/cyan] attends, [green]S[/green] shares the map of the layer before"]
