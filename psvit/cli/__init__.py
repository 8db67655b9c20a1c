"""The command line. Each command is a module here, imported when it is called."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import TextIO

from psvit import __version__
from psvit.engine.memory import keep_freed_memory
from psvit.errors import UserError, one_line
from psvit.files import FullDiskError, full_disk

COMMANDS = {
    "run": "your images and a budget -> a searched network, trained, evaluated and compared at equal MACs",
    "search": "your images and a budget -> where to pool, which maps to share, how wide to be",
    "show": "layers, tokens, widths, MACs and parameters of a genotype, variant or checkpoint",
    "train": "train one network: any PSViT or any model of timm",
    "evaluate": "top-1, top-5, loss and accuracy per class of a checkpoint",
    "predict": "the classes of image files and folders",
    "analyze": "where a vision transformer repeats itself, and so could share maps and pool tokens",
    "study": "train networks with several seeds, and test claims about them",
    "detect": "objects with boxes and masks: detectors on a PSViT or any backbone, trained, evaluated, used",
    "segment": "a class for each pixel: decoders on a PSViT or any backbone, trained, evaluated, used",
    "export": "a checkpoint as ONNX, torch.export, TorchScript, int8 or a Hub folder, checked and timed",
    "benchmark": "images per second of networks side by side, on this machine",
}

INFERENCE = ("evaluate", "predict", "analyze", "export", "benchmark")
"""Commands that do not train."""

HELP = f"""psvit {__version__}: vision transformers that do not waste work

usage: psvit COMMAND [options]        psvit COMMAND --help lists the options

{chr(10).join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())}

try: psvit show ASAS-ASSA-AS --img-size 224
     psvit run --data digits"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names; returns the exit code: 0, or 2 after a user's mistake or Ctrl-C."""
    try:
        for stream in (sys.stdout, sys.stderr):  # labels that a terminal cannot encode; a log shows each line at once
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
        arguments = list(sys.argv[1:] if argv is None else argv)
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(HELP)
            return 0
        if arguments[0] == "--version":
            print(f"psvit {__version__}")
            return 0
        return _dispatch(arguments[0], arguments[1:])
    except UserError as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        return _refused("interrupted")
    except BrokenPipeError:  # the reader, such as head, has ended
        _discard(sys.stdout)
        return 0
    except OSError as error:  # no permission, a full disk
        if reason := full_disk(error):
            return _refused(str(FullDiskError.of(error.filename or "the output", reason)))
        return _refused(one_line(error, kind=not error.strerror, limit=1000))


def _refused(reason: str) -> int:
    """Print the reason on one line; returns the exit code."""
    for stream, text in ((sys.stderr, f"psvit: {reason}\n"), (sys.stdout, "")):
        try:
            stream.write(text)
            stream.flush()
        except OSError:  # output redirected to a full disk
            _discard(stream)
    return 2


def _discard(stream: TextIO) -> None:
    """Discard what could not be written to a stream: Python would try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _dispatch(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UserError(f"there is no command {name!r}" + (f"; did you mean {close[0]}?" if close else ": see --help"))
    keep_freed_memory(largest=name in INFERENCE)
    try:
        code: int = import_module(f"psvit.cli.{name}").main(arguments)
    finally:
        _destroy_process_group()
    return code


def _destroy_process_group() -> None:
    """Leave torchrun's process group: a thread of it that is alive at exit may abort the process."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
