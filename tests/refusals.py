"""Wrong values, each refused in one line by the rule that it breaks."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from psvit import UserError


def refuses(call: Callable[[Any], object], cases: Iterable[tuple[Any, str]], kind: type[Exception] = UserError) -> None:
    """`call` refuses what stands first in each case in words that match what stands second, in one line."""
    for given, words in cases:
        try:
            call(given)
        except kind as refusal:
            said = str(refusal)
            assert re.search(words, said), f"{given!r} is refused by: {said}"
            assert "\n" not in said, f"{given!r} is refused in several lines"
        else:
            pytest.fail(f"{given!r} is not refused")


def refusal_of(call: Callable[..., object], *given: Any, **config: Any) -> str:
    """The one line by which `call` refuses its arguments."""
    with pytest.raises(UserError) as error:
        call(*given, **config)
    assert "\n" not in str(error.value)
    return str(error.value)
