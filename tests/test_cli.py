"""The command line itself: help, Ctrl-C, pipes, and settings from YAML files."""

import os
from pathlib import Path

import pytest
from tiny import TRAIN, Cli, read, start

from psvit import __version__
from psvit.cli import COMMANDS, main

pytestmark = pytest.mark.usefixtures("threads_kept")

TASKS, ACTIONS = ("detect", "segment"), ("train", "evaluate", "predict")


def helped(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What ``--help`` or ``--print-config`` prints."""
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0
    return capsys.readouterr().out


def test_help_and_version(cli: Cli) -> None:
    text = cli.ok("--help")
    assert text == cli.ok() == cli.ok("-h") == cli.ok("help")
    assert all(f"  {name} " in text for name in COMMANDS)
    assert cli.ok("--version") == f"psvit {__version__}\n"


@pytest.mark.parametrize(
    "command", [*(c for c in COMMANDS if c not in TASKS), *(f"{task} {action}" for task in TASKS for action in ACTIONS)]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(capsys, *command.split(), "--help")
    assert text.startswith(f"usage: psvit {command} ")
    assert "\nExample:" in text
    assert "Annotated" not in text
    assert "Literal" not in text


@pytest.mark.parametrize("command", TASKS)
def test_a_command_of_several_actions_lists_them(command: str, cli: Cli) -> None:
    text = cli.ok(command, "--help")
    assert text == cli.ok(command)
    assert all(f"\n  {action} " in text for action in ACTIONS)
    assert "give train, evaluate or predict" in cli.refused(command, "tarin")


@pytest.mark.parametrize(
    ("recipe", "epochs", "scale"), [("auto", 20, "1 1"), ("light", 20, "1 1"), ("deit", 300, "0.08 1")]
)
def test_help_shows_the_recipes_defaults(
    recipe: str, epochs: int, scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(helped(capsys, "train", "--recipe", recipe, "--help").split())
    assert f"passes over the training images (default {epochs})" in text
    assert f"as fractions of the image (default {scale})" in text
    assert f"defaults of the training (default {recipe})" in text


INTERRUPTED = """
import os, signal, sys

class AtImport:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == os.environ["INTERRUPTED_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, AtImport)
"""


@pytest.mark.parametrize(
    ("module", "launcher"),
    [
        ("psvit.cli.train", ("-m", "psvit")),
        ("torch", ("-c", "import sys; from psvit.cli import main; sys.exit(main())")),
    ],
)
def test_ctrl_c_while_it_imports(module: str, launcher: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "INTERRUPTED_AT": module}
    process = start(*TRAIN, "--output", tmp_path / "run", launcher=launcher, env=env)
    assert process.communicate()[1] == "psvit: interrupted\n"
    assert process.returncode == 2
    assert not (tmp_path / "run").exists()


def test_a_reader_who_has_had_enough() -> None:
    code = "import sys; from psvit.cli import main; sys.exit(main(['show', 'A' * 400]))"
    process = start(code, launcher=("-c",), env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() in (0, 1)  # rich leaves with 1


def test_a_yaml_file_gives_any_flag(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        "recipe: deit\nmodel: AS-A\nwidths: [16, 32]\nhead_dim: 8\npatch_size: 2\nlimit: 48\nvalidation: 0.02\n"
        "epochs: 1\nbatch_size: 8\nrepeats: 1\ndevice: cpu\nprecision: float32\nthreads: 1\n"
    )
    said = cli.ok("train", "--config", path, "--batch-size", "16", "--output", tmp_path / "my run")
    assert "batch     16 images globally" in said  # the flag that stands behind it wins
    assert said.splitlines()[-1] == f"next      psvit evaluate '{tmp_path / 'my run' / 'best'}' --data digits"
    kept = read(tmp_path / "my run" / "run_config.json")["config"]
    assert (kept["model"]["widths"], kept["recipe"]["warmup"]) == ([16, 32], 5 / 300)
    assert (kept["recipe"]["mixup"], kept["recipe"]["augment"]["scale"]) == (0.8, [0.08, 1.0])


def test_a_printed_config_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = helped(capsys, *TRAIN, "--recipe", "deit", "--print-config")
    assert "\nwarmup: 0.016666666666666666\n" in printed
    (tmp_path / "it.yaml").write_text(printed)
    assert helped(capsys, "train", "--config", str(tmp_path / "it.yaml"), "--print-config") == printed
    assert "checkpoint" not in helped(capsys, "evaluate", "runs/train/best", "--print-config")
