"""What psvit does on a machine without a home, and where Ctrl-C is ignored."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from psvit.data.sources import cache_folder
from psvit.engine.interrupts import interrupts


def test_the_cache_is_where_the_user_has_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == Path(os.environ["XDG_CACHE_HOME"]) / "psvit"
    for other in ("relative", "", None):  # to be passed over, says the XDG specification
        if other is None:
            monkeypatch.delenv("XDG_CACHE_HOME")
        else:
            monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert cache_folder() == tmp_path / ".cache" / "psvit"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where HOME is unset and nobody has this uid
    assert cache_folder() == Path(tempfile.gettempdir()) / "psvit"


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    def ignored() -> bool:
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts() as interrupt:
            assert ignored()
            signal.raise_signal(signal.SIGINT)
            assert interrupt.asked is None
            signal.raise_signal(signal.SIGTERM)
            assert interrupt.asked is not None
        assert ignored()
    finally:
        signal.signal(signal.SIGINT, before)
