"""What every test shares: steady numbers, and the attention that can be counted."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from timm.layers import set_fused_attn
from tiny import Cli

settings.register_profile("psvit", deadline=None, derandomize=True)
settings.load_profile("psvit")

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _steady_numbers() -> None:
    torch.manual_seed(0)


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
