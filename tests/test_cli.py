"""The command line: exact figures, odd images, and one clear line for whatever a user may get wrong."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tiny import CPU, DATA, MACHINE, NETWORK, TRAIN, Cli, image_folder, read, settings, start

from psvit import VARIANTS, __version__
from psvit.cli import COMMANDS
from psvit.training.loop import train
from psvit.training.settings import DataSettings

TINY = ["AS-A", *NETWORK[2:]]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of digits."""
    folder = tmp_path_factory.mktemp("trained")
    train(settings(folder, lr=0.01))
    return folder / "best"


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a folder of RGB images whose class names are not plain."""
    root = tmp_path_factory.mktemp("colour")
    image_folder(root / "data", ("grüner Käfer", "a b,c"))
    data = DataSettings(str(root / "data"), img_size=8, workers=0)
    train(settings(root / "run", data=data, epochs=1))
    return root / "run" / "best"


# ---- psvit, and what every command has


def test_help_and_version(cli: Cli) -> None:
    text = cli.ok("--help")
    assert text == cli.ok() == cli.ok("-h") == cli.ok("help")
    assert all(f"  {name} " in text for name in COMMANDS)
    assert cli.ok("--version") == f"psvit {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from psvit.cli import main

    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: psvit {command} ")
    assert "\nExample:" in text
    assert "null, default" not in text
    assert "Literal" not in text


@pytest.mark.parametrize(("recipe", "epochs", "scale"), [("light", 20, "0.7 1"), ("deit", 300, "0.08 1")])
def test_help_shows_the_recipes_defaults(
    recipe: str, epochs: int, scale: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from psvit.cli import main

    for command in ("train", "run"):
        with pytest.raises(SystemExit):
            main([command, "--recipe", recipe, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"every training image is seen (default {epochs})" in text
        assert f"as fractions of the image's (default {scale})" in text
        assert f"come from (default {recipe})" in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["show", "ASAS-ASSA-AS"], ["train", "--help"]])
def test_light_commands_import_neither_torch_nor_timm(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom psvit.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'torchvision', 'accelerate', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    process = start(code, launcher=("-c",))
    _, err = process.communicate()
    assert process.returncode == 0, err


def test_a_reader_who_has_had_enough() -> None:
    code = "import sys; from psvit.cli import main; sys.exit(main(['show', 'A' * 400]))"
    process = start(code, launcher=("-c",), env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() in (0, 1)  # rich leaves with 1


# ---- show


def test_show_counts_exactly(cli: Cli) -> None:
    shown = json.loads(cli.ok("show", *TINY, "--img-size", 8, "--in-chans", 1, "--num-classes", 10, "--json"))
    assert shown["arch"]["genotype"] == "AS-A"
    parts = {
        layer["name"]: (layer["kind"], layer["tokens"], layer["width"], layer["macs"]) for layer in shown["layers"]
    }
    embedding = 16 * (2 * 2 * 1) * 16
    attends = 16 * 16 * 48 + 2 * 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 64  # qkv, QK^T and AV, projection, MLP
    shares = 16 * 16 * 16 + 16 * 16 * 16 + 16 * 16 * 16 + 2 * 16 * 16 * 64  # v, AV, projection, MLP
    pool = 16 * 9 * 16 * 32
    last = 4 * 32 * 96 + 2 * 4 * 4 * 32 + 4 * 32 * 32 + 2 * 4 * 32 * 128
    macs = [embedding, attends, shares, pool, last, 32 * 10]
    assert [figures[3] for figures in parts.values() if figures[3]] == macs
    assert [figures[1] for figures in parts.values() if figures[0] in "AS"] == [16, 16, 4]
    assert shown["macs"] == sum(macs) == 227648
    assert shown["params"] == sum(layer["params"] for layer in shown["layers"]) == 24090


def test_show_prints_a_table_and_a_diagram(cli: Cli) -> None:
    text = cli.ok("show", *TINY, "--img-size", 8, "--in-chans", 1, "--num-classes", 10)
    assert "AS-A 2d 16-32 /2 for 8x8 pixels, head_dim 8" in text
    assert "227.6 k MACs, 24.09 k parameters" in text
    assert "pool > 2x2" in text


@pytest.mark.parametrize("name", VARIANTS)
def test_show_knows_the_variants(name: str, cli: Cli) -> None:
    shown = json.loads(cli.ok("show", name, "--json"))
    deit = {"tiny": 1_253_683_200, "small": 4_598_882_304, "base": 17_563_828_224}[name.rpartition("_")[2]]
    assert shown["macs"] == pytest.approx(deit, rel=0.02)
    assert shown["arch"] == VARIANTS[name].to_dict()


def test_show_of_a_checkpoint_is_the_network_it_holds(cli: Cli, trained: Path) -> None:
    shown = json.loads(cli.ok("show", trained, "--json"))
    assert (shown["macs"], shown["params"]) == (227648, 24090)
    metrics = read(trained / "metrics.json")
    assert (metrics["macs"], metrics["params"]) == (227648, 24090)
    assert json.loads(cli.ok("show", trained, "--img-size", 16, "--json"))["macs"] > 4 * 200_000


# ---- evaluate


def pixels_of_the_test_split() -> tuple[torch.Tensor, torch.Tensor]:
    from psvit.training.data import open_data

    test = open_data(DataSettings("digits")).test
    images = np.stack([np.asarray(test.image(i)) for i in range(len(test))])  # type: ignore[union-attr]
    return torch.from_numpy(images).float(), torch.tensor(test.labels())


def test_evaluate_by_hand(cli: Cli, trained: Path) -> None:
    pixels, labels = pixels_of_the_test_split()
    model = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
    logits = model((pixels[:, None] / 255 - 0.3055) / 0.3759).detach().double()
    shown = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json"))
    own = logits.gather(1, labels[:, None])
    rank = (logits > own).sum(dim=1)
    right = rank == 0
    assert shown["images"] == len(labels) == 359
    assert shown["top1"] == pytest.approx(100 * right.double().mean().item(), abs=1e-4)
    assert shown["top5"] == pytest.approx(100 * (rank < 5).double().mean().item(), abs=1e-4)
    assert shown["loss"] == pytest.approx((logits.logsumexp(dim=1) - own[:, 0]).mean().item(), rel=1e-5)
    for digit in range(10):
        of_it = right[labels == digit].double().mean().item()
        assert shown["per_class"][str(digit)] == pytest.approx(100 * of_it)
    text = cli.ok("evaluate", trained, *MACHINE, "--batch-size", 7)
    assert "digits, test split, 359 images" in text
    assert f"top-1 {shown['top1']:.2f} %   top-5 {shown['top5']:.2f} %   loss {shown['loss']:.4f}" in text
    assert text.count(" % of 3") == 10
    assert load_digits().images.shape == (1797, 8, 8)


def test_evaluate_takes_other_splits_and_sizes(cli: Cli, trained: Path) -> None:
    for split, images in (("holdout", 144), ("train", 1294)):
        shown = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json", "--split", split, "--holdout", "0.1"))
        assert shown["images"] == pytest.approx(images, abs=5)
    other = json.loads(cli.ok("evaluate", trained, *MACHINE, "--json", "--img-size", 16))
    assert other["images"] == 359


def test_evaluate_names_unreadable_images(cli: Cli, colour: Path, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data", ("grüner Käfer", "a b,c"))
    (data / "a b,c" / "kaputt.png").write_bytes(b"none")
    arguments = ["evaluate", colour, "--data", data, "--workers", "0", "--split", "train", "--holdout", "0", *MACHINE]
    result = cli(*arguments)
    assert result.code == 0
    assert "skipped 1 unreadable images: " in result.err
    assert "kaputt.png" in result.err
    assert "grüner Käfer" in result.out
    assert "kaputt.png" in cli.refused(*arguments, "--strict")


# ---- predict


def test_predict_by_hand(cli: Cli, trained: Path, tmp_path: Path) -> None:
    pixels, _ = pixels_of_the_test_split()
    for i in range(3):
        Image.fromarray(pixels[i].numpy().astype(np.uint8)).save(tmp_path / f"{i}.png")
    model = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
    expected = model((pixels[:3, None] / 255 - 0.3055) / 0.3759).softmax(dim=1).detach()
    lines = cli.ok("predict", trained, tmp_path, *MACHINE, "--json", "--top", 3, "--batch-size", 2).splitlines()
    for i, line in enumerate(lines):
        found = json.loads(line)
        assert found["image"] == str(tmp_path / f"{i}.png")
        values, indices = expected[i].topk(3)
        assert [entry["label"] for entry in found["classes"]] == [str(int(index)) for index in indices]
        assert [entry["probability"] for entry in found["classes"]] == pytest.approx(values.tolist(), abs=2e-6)
    text = cli.ok("predict", trained, tmp_path / "0.png", *MACHINE, "--top", 1)
    assert text == f"{tmp_path / '0.png'}  {int(expected[0].argmax())} {100 * expected[0].max():.1f} %\n"
    full = json.loads(cli.ok("predict", trained, tmp_path / "0.png", *MACHINE, "--top", 99, "--json"))
    assert sum(entry["probability"] for entry in full["classes"]) == pytest.approx(1, abs=1e-4)


def test_predict_takes_odd_images(cli: Cli, colour: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(*shape: int, top: int = 256, dtype: Any = np.uint8) -> Image.Image:
        return Image.fromarray(rng.integers(0, top, shape, dtype=dtype))

    folder = tmp_path / "sehr schöne Bilder"
    (folder / "deeper").mkdir(parents=True)
    noise(12, 10).save(folder / "grey.png")
    noise(12, 10, 4).save(folder / "rgba.png")
    noise(12, 10, 3).convert("P").save(folder / "palette.png")
    noise(12, 10, 3).convert("P").save(folder / "transparent.gif", transparency=3)
    noise(12, 10, top=65536, dtype=np.uint16).save(folder / "16 bit.png")
    noise(12, 10, 2).save(folder / "grey and alpha.png")
    noise(12, 10).convert("1").save(folder / "two.bmp")
    noise(12, 10, 3).convert("CMYK").save(folder / "cmyk.jpg")
    noise(1, 1, 3).save(folder / "one pixel.png")
    noise(20, 5000, 3).save(folder / "wide.png")
    noise(5000, 20, 3).save(folder / "deeper" / "tall.JPEG")
    (folder / "notes.txt").write_text("no image")
    lines = cli.ok("predict", colour, folder, *MACHINE, "--json").splitlines()
    found = [json.loads(line) for line in lines]
    assert [Path(line["image"]).name for line in found] == sorted(
        [path.name for path in folder.iterdir() if path.suffix not in ("", ".txt")] + ["tall.JPEG"],
        key=lambda name: str(folder / ("deeper/" if name == "tall.JPEG" else "") / name),
    )
    for line in found:
        assert {entry["label"] for entry in line["classes"]} == {"grüner Käfer", "a b,c"}
        assert sum(entry["probability"] for entry in line["classes"]) == pytest.approx(1, abs=1e-5)
    assert "grüner Käfer" in cli.ok("predict", colour, folder / "one pixel.png", *MACHINE)


def test_predict_goes_on_after_an_unreadable_image(cli: Cli, colour: Path, tmp_path: Path) -> None:
    image_folder(tmp_path, ("x",), each=2)
    bad = tmp_path / "x" / "0b.png"
    bad.write_bytes((tmp_path / "x" / "0.png").read_bytes()[:60])
    result = cli("predict", colour, tmp_path, *MACHINE, "--json")
    assert result.code == 0
    assert [Path(json.loads(line)["image"]).name for line in result.out.splitlines()] == ["0.png", "1.png"]
    assert result.err.startswith(f"psvit: image {bad} cannot be read: ")
    assert result.err.count(str(bad)) == 1
    assert result.err.count("\n") == 1
    text = tmp_path / "text.txt"
    text.write_text("no image")
    result = cli("predict", colour, text, *MACHINE)
    assert result.code == 2
    assert result.err == (
        f"psvit: image {text} cannot be read: it is of no format that Pillow knows\n"
        "psvit: none of 1 images can be read\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "there is no file or folder nowhere.png: check the path"),
        (["EMPTY"], "holds no images"),
        (["x.png", "--top", "0"], "--top 0 is not a whole number of at least 1"),
        (["x.png", "--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1"),
        ([], "the following arguments are required: images"),
    ],
)
def test_predict_refuses(
    arguments: list[str], message: str, cli: Cli, colour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Image.new("RGB", (8, 8)).save("x.png")
    assert message in cli.refused("predict", colour, *arguments)


def test_labels_that_a_terminal_cannot_show(colour: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "ö.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    process = start("predict", colour, tmp_path / "ö.png", *MACHINE, env=environment)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "gr\\xfcner K\\xe4fer" in out


# ---- what a user may get wrong: one line, exit code 2, nothing lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean train?"),
        (["frobnicate"], "there is no command 'frobnicate': see --help"),
        (["show"], "the following arguments are required: network (see psvit show --help)"),
        (["show", "ASXA"], "genotype 'ASXA', position 3: 'X' is not A (attend), S (share) or - (pool)"),
        (["show", "S-A"], "position 1: a stage starts with A, because there is no map to share yet"),
        (["show", "A-S"], "position 3: a stage starts with A, because a map cannot cross a pooling"),
        (["show", "AS-"], "'-' stands between two layers"),
        (["show", "psvit_2d_tinny"], "'psvit_2d_tinny' is no variant (psvit_1d_tiny, "),
        (["show", "no/where"], "no/where is no checkpoint folder"),
        (["show", "AS-A", "--widths", "16"], "give one width per stage"),
        (["show", "AS-A", "--widths", "16", "30", "--head-dim", "8"], "width 30 of stage 2 is not a multiple of"),
        (["show", "AS-A", "--widths", "x"], "--widths 'x' is not a whole number (see psvit show --help)"),
        (["show", "AS-A", "--img-size", "0"], "is not a positive side"),
        (["show", "AS-A", "--pooling", "3d"], "invalid choice: '3d'"),
        (["show", "AS-A", "AS"], "'AS' is too many"),
        (["train", "--model", "ASXA"], "no model is called 'ASXA'"),
        (["train", "--model", "AA-SA"], "position 4: a stage starts with A"),
        (["train", "--model", "AS-A", "--widths", "16"], "give one width per stage"),
        (["train", "--model", "AS-A", "--widths", "16", "30", "--head-dim", "8"], "width 30 of stage 2"),
        (["train", "--model", "AS-A", "--genotype", "AS"], "AS-A is a genotype already: leave out --genotype"),
        (["train", "--model", "vit_tiny_patch_224"], "did you mean vit_tiny_patch16_224"),
        (["train", "--model", "psvit_2d_tny"], "did you mean psvit_2d_tiny"),
        (["train", "--model", "vit_tiny_patch16_224.nothing"], "Invalid pretrained tag"),
        (["train", "--model", "vit_tiny_patch16_224"], "cannot take images of 8 x 8 pixels"),
        (["train", "--model", "test_resnet", "--genotype", "AS"], "belongs to psvit networks, but 'test_resnet'"),
        (["train", "--model", "test_resnet", "--macs", "2M"], "--macs belongs to psvit networks"),
        (["train", "--model", "test_resnet", "--model-args", '{"x": 1}'], "test_resnet takes no argument 'x'"),
        (["train", "--model-args", "3"], "--model-args '3' is not a JSON object"),
        (["train", "--model", "psvit_2d_tiny", "--pretrained"], "there are no pretrained weights of psvit_2d_tiny"),
        (["train", "--model", "psvit_2d_tiny"],
         "8 x 8 pixels with patch size 16 leave a 1 x 1 grid, too small for 3 stages: give --patch-size 3 or less"),
        (["train", "--model", "A-A-A-A-A", "--widths", *["64"] * 5, "--patch-size", "1"],
         "leave a 8 x 8 grid, too small for 5 stages: give fewer stages or larger images"),
        (["train", "--model", "AAAA"], "leave a 1 x 1 grid, too small for 1 stages: give --patch-size 7 or less"),
        (["train", *NETWORK, "--macs", "25"], "MACs"),
        (["train", *NETWORK, "--macs", "lots"], "--macs 'lots' is not a positive number such as 25M"),
        (["train", "--data", "nowhere"], "--data 'nowhere' is neither a folder nor a known set"),
        (["train", "--data", "EMPTY"], "no class folder of EMPTY holds an image"),
        (["train", "--data", "ONE"], "--data 'ONE' has one class only, 'ant'"),
        (["train", "--data", "FEW"], "class 'ant' has too few images"),
        (["train", "--data", __file__], "is a file, not a folder"),
        (["train", "--limit", "3"], "--limit 3 is below the 10 classes"),
        (["train", "--holdout", "1.5"], "--holdout 1.5 is not a fraction"),
        (["train", "--batch-size", "0"], "--batch-size 0 is not a whole number of at least 1"),
        (["train", "--batch-size", "7", "--mixup", "0.8"], "--batch-size 7 is odd: mixup and cutmix pair images"),
        (["train", "--epochs", "x"], "--epochs 'x' is not a whole number (see psvit train --help)"),
        (["train", "--epochs"], "--epochs: expected one argument"),
        (["train", "--lr", "0"], "--lr 0.0 is not above 0"),
        (["train", "--label-smoothing", "1"], "--label-smoothing 1.0 is not a fraction"),
        (["train", "--class-token", "maybe"], "--class-token 'maybe' is not true or false"),
        (["train", "--epoochs", "3"], "there is no flag --epoochs; did you mean --epochs?"),
        (["train", "--recipe", "heavy"], "there is no recipe 'heavy': the recipes are light, deit"),
        (["train", "--device", "cuda"], "--device cuda is not on this machine"),
        (["train", "--device", "abacus"], "--device abacus is not on this machine"),
        (["train", "--precision", "float16"], "--precision float16 works on CUDA only"),
        (["train", "--precision", "fp16"], "--precision 'fp16' is not one of auto, float32, bfloat16, float16"),
        (["train", "--threads", "0"], "--threads 0 is not a whole number of at least 1"),
        (["train", *NETWORK, "--opt", "adam2"], "--opt 'adam2' is not to be had"),
        (["train", *NETWORK, "--auto-augment", "magic"], "--auto-augment 'magic' is not a policy of timm's"),
        (["train", *NETWORK, "--teacher", "psvit_2d_tiny"], "there are no pretrained weights of psvit_2d_tiny"),
        (["train", *NETWORK, "--teacher", "runs/none"], "there is no checkpoint folder runs/none"),
        (["train", "--distill", "medium"], "--distill 'medium' is not one of soft, hard"),
        (["train", *NETWORK, "--resume"], "holds no run to resume: leave out --resume, or check --output"),
        (["train", "--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
        (["train", "--save-every", "0"], "--save-every 0 is not a whole number of at least 1"),
        (["train", *NETWORK, "--output", __file__], "is a file: give a folder as --output"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["run", "--patch-size", "2", "--macs", "1k"], "MACs"),
        (["run", "--models"], "--models: expected at least one argument"),
        (["evaluate"], "the following arguments are required: checkpoint (see psvit evaluate --help)"),
        (["evaluate", "nowhere"], "there is no checkpoint folder nowhere: check the path"),
        (["evaluate", "CHECKPOINT", "--split", "rest"], "invalid choice: 'rest'"),
        (["evaluate", "CHECKPOINT", "--split", "holdout", "--holdout", "0"], "holds no images: raise --holdout"),
        (["evaluate", "CHECKPOINT", "--batch-size", "0"], "--batch-size 0 is not a whole number"),
        (["evaluate", "CHECKPOINT", "--data", "TWO"], "knows 10 classes, TWO has 2: it is another set's"),
        (["evaluate", "CHECKPOINT", "--img-size", "2"], "leave a 1 x 1 grid, too small for 2 stages"),
        (["evaluate", "CHECKPOINT", "--device", "cuda:7"], "--device cuda:7 is not on this machine"),
        (["predict", "nowhere", __file__], "there is no checkpoint folder nowhere"),
        (["show", "CHECKPOINT", "--widths", "8", "8"], "is a checkpoint, whose network is fixed"),
        (["benchmark"], "the following arguments are required: models"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    image_folder(Path("ONE"), ("ant",))
    image_folder(Path("TWO"))
    image_folder(Path("FEW"), each=1)
    before = sorted(Path().rglob("*"))
    said = cli.refused(*[str(trained) if word == "CHECKPOINT" else word for word in arguments])
    assert message in said
    assert sorted(Path().rglob("*")) == before


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
        (["--resume", "--seed", "1"], "was trained with --seed 0, not 1"),
        (["--resume", "--device", "cuda"], "--device cuda is not on this machine"),
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
    (tmp_path / "run" / "settings.json").write_text("{")
    assert "settings.json is broken" in cli.refused(*TRAIN, *run, "--resume")


def test_training_images_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split in ("train", "test"):
        image_folder(data / split, each=10)
    for i in range(3):  # two of them at the least are not in the hold-out
        (data / "train" / "ant" / f"{i}.png").write_bytes(b"none")
    flags = ["--data", data, "--img-size", "8", "--workers", "0", *NETWORK, *MACHINE, "--epochs", "3"]
    said = cli.ok("train", *flags, "--batch-size", "8", "--output", tmp_path / "run")
    assert re.search(r"skipped [23] unreadable images: .*ant/[012]\.png", said)
    for path in data.rglob("*.png"):
        path.write_bytes(b"none")
    assert "images in a row cannot be read" in cli.refused("train", *flags, "--output", tmp_path / "none")


# ---- settings from files


def test_a_yaml_file_gives_any_flag(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        "recipe: deit\nmodel: AS-A\nwidths: [16, 32]\nhead_dim: 8\npatch_size: 2\nlimit: 48\nholdout: 0.02\n"
        "epochs: 1\nbatch_size: 8\nrepeats: 1\ndevice: cpu\nprecision: float32\nthreads: 1\n"
    )
    said = cli.ok("train", "--config", path, "--batch-size", "16", "--output", tmp_path / "run")
    assert "batch     16 images globally" in said  # the flag that stands behind it wins
    kept = read(tmp_path / "run" / "settings.json")["settings"]
    assert (kept["model"]["widths"], kept["recipe"]["warmup_epochs"]) == ([16, 32], 5)
    assert (kept["recipe"]["mixup"], kept["recipe"]["augment"]["scale"]) == (0.8, [0.08, 1.0])
    path.write_text(path.read_text() + "nope: 3\n")
    assert "the config file has no setting 'nope'" in cli.refused("train", "--config", path)
    path.write_text("epochs: many\n")
    assert "--epochs 'many' is not a whole number" in cli.refused("train", "--config", path)
    path.write_text("recipe: heavy\n")
    assert "'heavy' not among choices ['light', 'deit']" in cli.refused("train", "--config", path)
    path.write_text("[\n")
    assert "parsing config" in cli.refused("train", "--config", path)


def test_the_settings_that_are_printed_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from psvit.cli import main

    with pytest.raises(SystemExit):
        main([*TRAIN, "--recipe", "deit", "--print-config"])
    printed = capsys.readouterr().out
    assert "\nwarmup_epochs: 5\n" in printed
    (tmp_path / "it.yaml").write_text(printed)
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "it.yaml"), "--print-config"])
    assert capsys.readouterr().out == printed


# ---- elsewhere than on a command line


def test_the_next_command_can_be_pasted(cli: Cli, tmp_path: Path) -> None:
    said = cli.ok(*TRAIN, "--output", tmp_path / "my run")
    assert said.splitlines()[-1] == f"next      psvit evaluate '{tmp_path / 'my run' / 'best'}' --data digits"


def test_benchmark_takes_a_checkpoint(cli: Cli, trained: Path) -> None:
    report = json.loads(cli.ok("benchmark", trained, "--rounds", 1, "--batch-size", 2, "--json", "--threads", 1))
    assert report["rows"][0]["macs"] == 227648
    assert report["rows"][0]["input_size"] == [1, 8, 8]
    result = cli("benchmark", "nothere")
    assert result.code == 2
    assert result.err.endswith(
        "psvit: no model is called 'nothere': give a psvit variant, a genotype or a timm model\n"
    )


def test_python_dash_m() -> None:
    process = start("--version")
    assert process.communicate() == (f"psvit {__version__}\n", "")
    assert sys.version_info >= (3, 10)
    assert CPU.threads == 1
    assert DATA[1] == "digits"
