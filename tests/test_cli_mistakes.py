"""What a user may get wrong on the command line: one line, exit code 2, nothing lost."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny import MACHINE, NETWORK, TRAIN, Cli, image_folder

from psvit.errors import UserError
from psvit.files import check_writable

pytestmark = pytest.mark.usefixtures("threads_kept")


Refused = Callable[..., None]


@pytest.fixture
def refused(cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Checks that each of some commands is refused by a line that holds a message, and leaves no file."""
    monkeypatch.chdir(tmp_path)

    def check(*rows: tuple[list[str], str]) -> None:
        before = sorted(Path().rglob("*"))
        for arguments, message in rows:
            assert message in cli.refused(*[str(trained) if word == "CHECKPOINT" else word for word in arguments])
            assert sorted(Path().rglob("*")) == before, arguments

    return check


def test_words_that_the_command_line_does_not_know(refused: Refused) -> None:
    refused(
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["frobnicate"], "there is no command 'frobnicate': see --help"),
        (["show"], "the following arguments are required: network (see psvit show --help)"),
        (["show", "AS-A", "AS"], "'AS' is too many"),
        (["train", "--epoochs", "3"], "there is no flag --epoochs; did you mean --epochs?"),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["run", "--models"], "--models: expected at least one argument"),
        (["train", "--epochs", "x"], "--epochs 'x' is not a whole number"),
        (["train", "--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1"),
        (["train", "--class-token", "maybe"], "--class-token 'maybe' is not true or false"),
        (["train", "--precision", "fp16"], "--precision 'fp16' is not one of auto, float32, bfloat16, float16"),
        (["train", "--recipe", "heavy"], "--recipe 'heavy' is not one of auto, light, photos, deit"),
        (["train", "--model-args", "3"], "--model-args 3 is not a JSON object"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["train", "--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
        (["detect", "predict", "x"], "(see psvit detect predict --help)"),
        (["predict", "CHECKPOINT", "x.png", "--top", "0"], "--top 0 is not a whole number of at least 1"),
    )


def test_what_cannot_be_trained(refused: Refused) -> None:
    refused(
        (["train", "--model", "ASXA"], "no model is called 'ASXA'"),
        (["train", "--model", "AS-A", "--widths", "16"], "give one width per stage"),
        (["train", "--model", "AS-A", "--widths", "16", "30", "--head-dim", "8"], "width 30 of stage 2"),
        (["train", "--model", "vit_tiny_patch_224"], "did you mean vit_tiny_patch16_224"),
        (["train", "--model", "vit_tiny_patch16_224.nothing"], "Invalid pretrained tag"),
        (["train", "--model", "vit_tiny_patch16_224"], "cannot take images of 8 x 8 pixels"),
        (["train", "--model", "test_resnet", "--macs", "2M", "--stem", "conv"], ": --macs, --stem belong to psvit"),
        (["train", "--model", "test_resnet", "--model-args", '{"x": 1}'], "test_resnet takes no argument 'x'"),
        (["train", "--model", "psvit_2d_tiny"],
         "8 x 8 pixels with patch size 16 leave a 1 x 1 grid, too small for 3 stages: give --patch-size 3 or less"),
        (["train", *NETWORK, "--macs", "lots"], "--macs 'lots' is not a positive number such as 25M"),
        (["train", "--data", "nowhere"], "--data 'nowhere' is neither a folder nor a known set"),
        (["train", "--limit", "3"], "--limit 3 is below the 10 classes"),
        (["train", "--batch-size", "7", "--mixup", "0.8"], "--batch-size 7 is odd: mixup and cutmix pair images"),
        (["train", "--device", "cuda:99"], "--device cuda:99 is not on this machine"),
        (["train", "--device", "cpu", "--precision", "float16"], "--precision float16 works on CUDA only"),
        (["train", *NETWORK, "--opt", "adam2"], "--opt 'adam2' is not to be had"),
        (["train", *NETWORK, "--auto-augment", "magic"], "--auto-augment 'magic' is not a policy of timm's"),
        (["train", *NETWORK, "--teacher", "runs/none"], "there is no checkpoint folder runs/none"),
        (["train", *NETWORK, "--output", __file__], "is a file: give a folder as --output"),
    )  # fmt: skip


def test_checkpoints_that_cannot_be_used_so(refused: Refused) -> None:
    image_folder(Path("TWO"))
    Path("EMPTY").mkdir()
    Path("TIMM").mkdir()
    Path("TIMM/config.json").write_text(
        '{"architecture": "resnet18", "num_classes": 2, "pretrained_cfg": {"input_size": [1, 8, 8]}}'
    )
    refused(
        (["show", "TIMM"], "TIMM holds resnet18, not a psvit network"),
        (["predict", "CHECKPOINT", ""], "images '' is not a name or a path"),
        (["evaluate", "nowhere"], "there is no checkpoint folder nowhere: check the path"),
        (["show", "no/where"], "no/where is no checkpoint folder"),
        (["show", "ASXA"], "genotype 'ASXA', position 3: 'X' is not A (attend), S (share) or - (pool)"),
        (["show", "psvit_2d_tinny"], "'psvit_2d_tinny' is no variant (psvit_1d_tiny, "),
        (["show", "CHECKPOINT", "--widths", "8", "8"], "is a checkpoint, whose network is fixed"),
        (["evaluate", "CHECKPOINT", "--split", "validation", "--validation", "0"], "leave these flags and --seed out"),
        (["evaluate", "CHECKPOINT", "--data", "TWO"], "knows 10 classes, TWO has 2: it is another set's"),
        (["evaluate", "CHECKPOINT", "--img-size", "2"], "for 2 stages: the least side for this network is 3 pixels\n"),
        (["train", "--model", "CHECKPOINT", "--img-size", "1"], "the least side for this network is 3 pixels\n"),
        (["predict", "CHECKPOINT", "nowhere.png"], "there is no file or folder nowhere.png: check the path"),
        (["predict", "CHECKPOINT", "EMPTY"], "holds no images"),
    )


def test_a_place_that_cannot_be_written_is_refused_before_the_work(cli: Cli, trained: Path, tmp_path: Path) -> None:
    """Of all commands that write: each is given an input that it would refuse later."""
    image, place = tmp_path / "image.png", f"{__file__}/x"
    Image.new("L", (8, 8)).save(image)
    for command in (
        ["train", "--data", "nowhere", "--output", place],
        ["run", "--data", "nowhere", "--output", place],
        ["search", "--data", "nowhere", "--output", place],
        ["export", "nowhere", "--output", f"{place}.onnx"],
        ["export", "nowhere", "--format", "timm", "--output", place],
        ["predict", trained, image, "--explain", place],
        ["detect", "train", "--data", "nowhere", "--output", place],
        ["detect", "predict", "nowhere", image, "--output", place],
        ["segment", "predict", "nowhere", image, "--output", place],
        ["analyze", "nowhere", "--output", place],
        ["benchmark", "AS-A", "--output", place],
        ["study", "claims", "--output", place],
    ):
        flag, given = command[-2:]
        assert f"psvit: {flag} {given} cannot be written ({__file__} is a file)" in cli.refused(*command)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no folder that nobody can write in")
def test_a_folder_that_nobody_can_write_in() -> None:
    with pytest.raises(UserError, match=r"^--output /proc/x cannot be written \(no file can be made in /proc: "):
        check_writable(Path("/proc/x"), "--output /proc/x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(cli: Cli, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in cli.refused(*TRAIN, "--output", tmp_path / "run")


def test_a_run_is_not_lost(cli: Cli, tmp_path: Path) -> None:
    run = ["--output", tmp_path / "run", "--keep-state"]
    cli.ok(*TRAIN, *run)

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    before = content()
    for more, message in (
        ([], "already holds a run: give --resume to go on, --overwrite to replace it, or another --output"),
        (["--resume", "--epochs", "3"], "was trained with --epochs 2, not 3: resume with the same settings"),
        (["--resume", "--widths", "16", "40"], "was trained with --widths 16 32, not 16 40"),
        (["--overwrite", "--data", "nowhere"], "is neither a folder nor a known set"),
        (["--overwrite", "--patch-size", "8"], "give --patch-size"),
        (["--overwrite", "--opt", "adam2"], "--opt 'adam2' is not to be had"),
        (["--overwrite", "--auto-augment", "magic"], "is not a policy"),
        (["--overwrite", "--teacher", "runs/none"], "there is no checkpoint folder runs/none"),
    ):
        assert message in cli.refused(*TRAIN, *run, *more)
        assert content() == before
    (tmp_path / "run" / "mine.txt").write_text("a note")
    assert "output" in cli.ok(*TRAIN, *run, "--overwrite")
    assert (tmp_path / "run" / "mine.txt").read_text() == "a note"
    (tmp_path / "run" / "run_config.json").write_text("{")
    assert "run_config.json is broken" in cli.refused(*TRAIN, *run, "--resume")


def test_training_images_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "test"):
        image_folder(data / split, each=10)
    for i in range(3):  # two of them at the least are not in the validation split
        (data / "train" / "ant" / f"{i}.png").write_bytes(b"none")
    flags = ["--data", data, "--img-size", "8", "--workers", "0", *NETWORK, *MACHINE, "--epochs", "3"]
    said = cli.ok("train", *flags, "--batch-size", "8", "--output", tmp_path / "run")
    assert re.search(r"skipped [23] unreadable images: .*ant/[012]\.png", said)
    for path in data.rglob("*.png"):
        path.write_bytes(b"none")
    assert "images in a row cannot be read" in cli.refused("train", *flags, "--output", tmp_path / "none")
