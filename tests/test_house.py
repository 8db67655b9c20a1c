"""The house stands as docs/architecture.md shows it: rooms, one direction of imports, what needs no torch."""

import ast
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from psvit.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ORDER = (
    ("errors",),
    ("config", "files"),
    ("arch",),
    ("models", "data", "report"),
    ("engine",),
    ("tasks", "latency"),
    ("search", "export", "analysis"),
    ("pipeline",),
    ("studies",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "psvit").rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(module: str) -> set[str]:
    """The modules of the package that a module imports anywhere in it: at once, in functions, and for types."""
    found = set()
    for node in ast.walk(TREES[module]):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{name}" for name in names]
        found |= {name if name in MODULES else name.rpartition(".")[0] for name in names if name.startswith("psvit.")}
    return found - {"psvit"}


IMPORTS = {name: imports(name) for name in MODULES if name not in ("psvit", "psvit.__main__")}


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_run_one_way() -> None:
    assert {room(name) for name in IMPORTS} == set(RANK)
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(other) != room(name) and RANK[room(other)] >= RANK[room(name)]
    ]
    assert not wrong


def test_no_imports_run_in_a_circle_not_even_for_types() -> None:
    tuple(TopologicalSorter(IMPORTS).static_order())


def test_the_page_shows_the_order_and_the_rooms() -> None:
    assert f"\n{' <- '.join(', '.join(rooms) for rooms in ORDER)}\n" in PAGE
    (picture,) = re.findall(r"^psvit/\n((?:  .*\n)+)", PAGE, re.M)
    assert {line.split()[0].rstrip("/").removesuffix(".py") for line in picture.splitlines()} == set(RANK)


def test_no_module_is_too_long_to_hold_one_idea() -> None:
    files = [path for room in ("psvit", "docs", "benchmarks", "tests") for path in (ROOT / room).rglob("*.py")]
    lengths = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in files}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_two_modules_have_one_name() -> None:
    names = Counter(path.name for path in MODULES.values() if path.parent.name != "cli")
    assert [name for name, count in names.items() if count > 1 and name != "__init__.py"] == []


def test_what_says_no_torch_imports_none_nor_do_help_and_show() -> None:
    """In a fresh interpreter."""
    light = [name for name in MODULES if re.search(r"\bno torch\b", ast.get_docstring(TREES[name]) or "", re.I)]
    assert "psvit.arch.arch" in light
    lines = [f"import {name}" for name in (*light, *(name for name in MODULES if name.startswith("psvit.cli")))]
    for words in (["--version"], ["show", "AS-A"], [], *([command, "--help"] for command in COMMANDS)):
        lines += ["try:", f"    psvit.cli.main({words!r})", "except SystemExit:", "    pass"]
    lines += ["import sys", "found = {'torch', 'timm', 'torchvision', 'sklearn', 'optuna'} & set(sys.modules)"]
    lines += ["assert not found, found"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_benchmarks_find_what_they_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for path in sorted(ROOT.glob("benchmarks/*.py")):
        spec = spec_from_file_location(f"benchmark_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
            assert "__main__" not in path.read_text(encoding="utf-8") or callable(module.main)
        finally:
            del sys.modules[spec.name]
