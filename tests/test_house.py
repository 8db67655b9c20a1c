"""The house stands as docs/architecture.md shows it: its modules, the order of imports, what needs no torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from psvit.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "psvit"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")

RANKS = (
    ("errors",),
    ("files",),
    ("arch",),
    ("cost", "variants"),
    ("model", "measure", "report"),
    ("training",),
    ("search", "dense", "export"),
    ("study",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
DENSE_RANKS = (("data",), ("dense",), ("detection", "segmentation"))
"""The order of the rooms within dense; the middle one is what lies in dense itself."""
DENSE_RANK = {room: rank for rank, rooms in enumerate(DENSE_RANKS) for room in rooms}
ROOT_READS = {"cost", "arch", "errors", "variants"}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, whole: bool = True) -> Iterator[str]:
    """Modules of the package that a module imports; with `whole` those in functions and for types too."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            deferred = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.If))
            if whole or not deferred:
                yield child
                yield from walk(child)

    for node in walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "psvit":  # a name in a module stands for the module
                yield name if name in MODULES else name.rpartition(".")[0]


def room(module: str) -> str:
    return module.split(".")[1]


def room_of_dense(module: str) -> str:
    """data, detection or segmentation; dense for a module that lies in dense itself."""
    return MODULES[module].parent.name


def test_imports_run_one_way() -> None:
    wrong = []
    for name, path in MODULES.items():
        if name in ("psvit", "psvit.__main__"):
            continue
        for other in imports(path):
            if other == "psvit":  # the root: its version
                continue
            inside = room(other) == room(name) and (PACKAGE / room(name)).is_dir()
            if not inside and RANK[room(other)] >= RANK[room(name)]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_imports_within_dense_run_one_way() -> None:
    wrong = []
    inside = [name for name in MODULES if name.startswith("psvit.dense.")]
    for name in inside:
        for other in imports(MODULES[name]):
            if room(other) != "dense" or room_of_dense(other) == room_of_dense(name):
                continue
            if DENSE_RANK[room_of_dense(other)] >= DENSE_RANK[room_of_dense(name)]:
                wrong.append(f"{name} imports {other}")
    assert {room_of_dense(name) for name in inside} == set(DENSE_RANK)
    assert not wrong


def test_every_room_has_its_place() -> None:
    assert {room(name) for name in MODULES if name not in ("psvit", "psvit.__main__")} == set(RANK)


def test_the_root_reads_little_at_once() -> None:
    assert {room(name) for name in imports(MODULES["psvit"], whole=False)} == ROOT_READS


def test_no_cycle_of_imports() -> None:
    graph = {
        name: {other for other in imports(path, whole=False) if other != "psvit"} for name, path in MODULES.items()
    }
    tuple(TopologicalSorter(graph).static_order())


def test_the_order_is_the_pages() -> None:
    order = " <- ".join(", ".join(rooms) for rooms in RANKS)
    assert f"\n{order}\n" in PAGE


def test_the_pages_picture_is_the_house() -> None:
    picture = next(block for block in re.findall(r"```text\n(.*?)```", PAGE, re.S) if block.startswith("psvit/\n"))
    shown, folders = set(), [PACKAGE]
    for line in picture.splitlines()[1:]:
        name = line.split()[0]
        assert len(line.split()) > 1, f"{line}: a line on what it is"
        if not line.startswith(" "):
            assert (ROOT / name).is_dir(), name
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        del folders[depth:]
        if name.endswith("/"):
            folders.append(folders[-1] / name)
            assert folders[-1].is_dir(), name
        else:
            shown.add(folders[-1] / name)
    empty = {path for path in PACKAGE.rglob("*/__init__.py") if path.parent.name not in ("psvit", "cli")}
    assert shown | empty | {PACKAGE / "cli" / "__init__.py"} == set(MODULES.values())


def test_what_says_no_torch_imports_none_and_show_and_help_neither() -> None:
    """In a fresh interpreter."""
    says = {
        name for name, path in MODULES.items() if re.search(r"\bno torch\b", ast.get_docstring(tree(path)) or "", re.I)
    }
    assert {"psvit.arch.arch", "psvit.arch.cost", "psvit.arch.variants"} <= says
    light = says | {name for name in MODULES if name.startswith("psvit.cli")}
    lines = [*(f"import {name}" for name in sorted(light)), "from psvit.cli import main", "main(['show', 'AS-A'])"]
    for command in ([], *([command, "--help"] for command in COMMANDS)):
        lines += ["try:", f"    main({command!r})", "except SystemExit:", "    pass"]
    lines += ["import sys", "assert not {'torch', 'timm'} & set(sys.modules)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_benchmarks_find_what_they_import() -> None:
    for path in sorted(ROOT.glob("benchmarks/*.py")):
        spec = spec_from_file_location(f"benchmark_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
            assert callable(module.main)
        finally:
            del sys.modules[spec.name]
