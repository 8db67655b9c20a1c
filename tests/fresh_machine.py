"""Imported before all else: what a machine, a shell or earlier work adds is taken away from this process and its own.

A module, so that it is done before psvit is imported, which looks for the cache then.
"""

import atexit
import os
import shutil
import signal
import tempfile
import threading

from hypothesis.configuration import set_hypothesis_home_dir

# nohup's shells, services and many CI runners ignore Ctrl-C, and processes inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# how wide, how coloured, how many processes: rich, argparse, warnings, torchrun and accelerate look there
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "PYTHONWARNINGS",
             "MPLBACKEND", "PYTHONUNBUFFERED", "RANK", "LOCAL_RANK", "WORLD_SIZE", "HF_TOKEN", "HF_HOME"):  # fmt: skip
    os.environ.pop(name, None)

if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers inherit it
    cache = tempfile.mkdtemp(prefix="psvit-tests-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = cache  # data sets, latency tables, matplotlib's fonts, the Hub's files
set_hypothesis_home_dir(os.environ["XDG_CACHE_HOME"])  # by default the folder that pytest was called in
