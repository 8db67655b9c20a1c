"""Parts of pages that need no measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rich.text import Text

from psvit import cost
from psvit.arch.arch import Arch
from psvit.arch.variants import VARIANTS
from psvit.cli.show import diagram
from psvit.report.tables import Table, to_markdown

PLAIN = Arch("AAAAAAAAAA", widths=(192,), pooling="1d")
"""The plain twin of `NETWORK`, as wide as DeiT-Tiny."""

NETWORK = Arch("ASAS-ASSA-AS", widths=(192, 192, 192))
"""The network of the concepts' page, before savings are reinvested."""


def variants_table() -> str:
    """The named variants with their exact cost at 224 pixels and 1,000 classes."""
    lines = []
    for name, arch in VARIANTS.items():
        grids = ", ".join("×".join(map(str, grid)) for grid in arch.grids(224))
        widths = "-".join(map(str, arch.widths))
        macs, params = f"{cost.macs(arch) / 1e9:.2f}", f"{cost.params(arch) / 1e6:.1f}"
        lines.append((f"`{name}`", f"`{arch.genotype}`", widths, str(arch.stride), grids, macs, params))
    headings = ("variant", "genotype", "widths", "stride", "token grids", "G MACs", "M params")
    return to_markdown(Table(headings, lines, 2))


def show_diagram() -> str:
    """The diagram that ``psvit show ASAS-ASSA-AS`` ends with."""
    arch = Arch("ASAS-ASSA-AS")
    lines = [Text.from_markup(line).plain for line in diagram(arch, cost.layer_costs(arch))]
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(["```text", *(line[indent:] for line in lines), "```"])


def reinvested_table() -> str:
    """What the two mechanisms save at fixed widths, and which widths the savings buy."""
    archs = {
        "neither": PLAIN,
        "sharing": replace(NETWORK, genotype="ASASASSAAS", widths=(192,)),
        "pooling": replace(NETWORK, genotype="AAAA-AAAA-AA"),
        "both": NETWORK,
    }
    lines, target = [], cost.macs(PLAIN)
    for name, arch in archs.items():
        wide = cost.scale_to(replace(arch, widths=(192, 256, 384)[: len(arch.widths)]), target)
        saved = f"{cost.macs(arch) / 1e9:.2f}", f"{cost.params(arch) / 1e6:.1f}"
        bought = "-".join(map(str, wide.widths)), f"{cost.macs(wide) / 1e9:.2f}", f"{cost.params(wide) / 1e6:.1f}"
        lines.append((name, f"`{arch.genotype}`", *saved, *bought))
    headings = ("", "genotype", "G MACs, 192 wide", "M params", "then widened to", "G MACs", "M params")
    return to_markdown(Table(headings, lines, 2))


FROM_CODE: dict[str, Callable[[], str]] = {
    "variants": variants_table,
    "diagram": show_diagram,
    "reinvested": reinvested_table,
}
"""Parts of pages by their names."""
