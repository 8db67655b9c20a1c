"""What every test shares: steady numbers, and the attention that can be counted."""

import os
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import fresh_machine  # noqa: F401  # first
import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from image_sources import write_idx
from small_exports import checkpoint
from small_studies import STUDY, in_turn, made
from timm.layers import set_fused_attn
from tiny import RUN, Cli, config

from psvit.cli import main
from psvit.data import datasets as data
from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, open_data
from psvit.errors import one_line
from psvit.tasks.classification.classify import train

hypothesis_settings.register_profile("psvit", deadline=None, derandomize=True)
hypothesis_settings.load_profile("psvit")

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _fashion_mnist(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For Fashion-MNIST a few black images, whether or not it is installed; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    for split, each in (("train", 40), ("t10k", 10)):
        write_idx(folder / f"{split}-images-idx3-ubyte", np.zeros((10 * each, 28, 28)))
        write_idx(folder / f"{split}-labels-idx1-ubyte", np.repeat(np.arange(10), each))
    data.DEBIAN_FASHION_MNIST = folder


@pytest.fixture(autouse=True)
def _steady_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch takes one thread, as the processes that a test starts do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads_kept() -> Iterator[None]:
    """What commands called in this process set torch's threads to ends with the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def compiler() -> None:
    """What torch.compile makes machine code with: a C++ compiler, and Python's headers."""
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {one_line(error)}")


@pytest.fixture
def explicit_attention() -> Iterator[None]:
    """Networks built in this test compute every map explicitly, so that its products can be counted."""
    set_fused_attn(False)
    yield
    set_fused_attn(True)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """``psvit ARGUMENTS`` in this process."""
    return Cli(capfd)


@pytest.fixture(scope="module")
def digits() -> Data:
    """The set of digits."""
    return open_data(DataConfig())


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of digits."""
    folder = tmp_path_factory.mktemp("trained")
    train(config(folder, lr=0.01))
    return folder / "best"


@pytest.fixture(scope="session")
def able(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows the digits: it is right on more than nine of ten images of its validation split."""
    folder = tmp_path_factory.mktemp("able")
    train(config(folder, data=DataConfig("digits"), lr=0.01, epochs=5, batch_size=32))
    return folder / "best"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished ``psvit run`` of a search, with its pages."""
    folder = tmp_path_factory.mktemp("report") / "a run"
    threads = torch.get_num_threads()
    with redirect_stdout(StringIO()) as out:
        assert main([*RUN, "--output", str(folder)]) == 0
    torch.set_num_threads(threads)
    assert f"\nreport    {folder / 'report.html'}\n" in out.getvalue()
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings of a study run in this process, one after the other: it saves the start of others."""
    monkeypatch.setattr("psvit.studies.task_runner.work_all", in_turn)


@pytest.fixture
def briefly(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `here`, without what takes most of a small study's time: its latencies and its page."""
    monkeypatch.setattr("psvit.studies.plan.measure_networks", lambda builds, *_, **__: dict.fromkeys(builds, 0.001))
    monkeypatch.setattr("psvit.studies.study.write_report", lambda folder, *_: [folder / "report.html"])


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """A checkpoint of digits, whose weights are random."""
    return checkpoint(tmp_path / "run" / "best")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, not to be changed."""
    return made(tmp_path_factory.mktemp("finished") / "study", STUDY)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A finished study, to be changed."""
    folder: Path = shutil.copytree(finished, tmp_path / "study", symlinks=True)
    return folder
