"""The wheel, installed where no checkout is: whole, and it runs."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from small_pages import ROOT
from tiny import MACHINE, SPACE_FLAGS

import psvit
from psvit.studies.study_file import STUDIES

pytestmark = pytest.mark.slow


def copied(folder: Path) -> Path:
    """What the wheel is built from; building writes beside it."""
    folder.mkdir()
    for path in (path for path in (ROOT / "psvit").rglob("*") if path.is_file() and path.suffix != ".pyc"):
        (folder / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(ROOT))  # not its mode: the checkout may be read-only
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("setuptools", "77", reason="the wheel is built without a download, by the setuptools here")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*pip, "-w", folder, copied(folder / "checkout")], check=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {psvit.__version__}\n" in archive.read(metadata).decode()
    files = (path for path in (ROOT / "psvit").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert held == {path.relative_to(ROOT).as_posix() for path in files}


def test_installed_elsewhere_it_runs(wheel: Path, tmp_path: Path) -> None:
    place, here = tmp_path / "installed", tmp_path / "empty"
    here.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", place, wheel]
    subprocess.run(pip, check=True, cwd=here)
    # -S leaves out the files that put a checkout on the path; the packages' folder is put there instead.
    paths = [str(place), *dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def python(*words: str) -> str:
        command = [sys.executable, "-S", *words]
        process = subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
        return process.stdout

    assert python("-c", "import psvit; print(psvit.__file__)") == f"{place / 'psvit' / '__init__.py'}\n"
    assert python(str(place / "bin" / "psvit"), "--version").split() == ["psvit", psvit.__version__]
    for study in STUDIES.glob("*.yaml"):
        assert python("-m", "psvit", "study", study.stem, "--print") == study.read_text(encoding="utf-8")
    told = python("-m", "psvit", "run", "--data", "digits", "--epochs", "1", "--limit", "64", *SPACE_FLAGS, *MACHINE)
    assert (here / "runs" / "run" / "report.html").is_file(), told
