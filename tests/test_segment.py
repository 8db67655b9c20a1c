"""Segmentation: figures counted by hand and by smp, decoders on any backbone, runs that are killed or shared."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import MACHINE, Cli, log, read, same_weights, saved_behind, start, start_slowed, torchrun, weights
from torch import Tensor, nn

from psvit.dense.data.sets import open_class_maps
from psvit.dense.data.settings import DenseDataSettings
from psvit.dense.drawing import class_colour
from psvit.dense.features import open_features
from psvit.dense.recipes import DenseAugment, DenseRecipe
from psvit.dense.segmentation.mean_iou import SegmentationFigures, confusion_matrix
from psvit.dense.segmentation.segment import ClassMap, SegmenterLearning, evaluate_segmenter, load_segmenter
from psvit.dense.segmentation.segmenters import Canvas, FeaturesEncoder, build_segmenter, multiple_of
from psvit.dense.segmentation.settings import DECODERS, SegmenterSettings, SegmentSettings
from psvit.dense.splits import ClassMapSplit
from psvit.dense.transforms import Vary, vary_class_map
from psvit.errors import UserError
from psvit.model.features import Features
from psvit.training.checkpoints import open_model, save_checkpoint
from psvit.training.learning import make_optimizer
from psvit.training.loading import Batch
from psvit.training.machine import open_machine
from psvit.training.recipes import Machine, ModelSettings

NETWORK = ["--model", "AS-A", "--widths", "16", "32", "--head-dim", "8", "--patch-size", "4"]
SCENES = ["--data", "digits-scenes", "--scenes", "24", "--img-size", "48", "--holdout", "0.2"]  # 5 of the hold-out
TRAIN = ["segment", "train", *NETWORK, *SCENES, *MACHINE, "--epochs", "2", "--channels", "32"]
ARCH = ModelSettings("AS-A", widths=(16, 32), head_dim=8, patch_size=4)
VIT = ModelSettings("vit_tiny_patch16_224", model_args={"embed_dim": 24, "num_heads": 3})


def features(model: ModelSettings = ARCH, size: tuple[int, int] = (64, 64), in_chans: int = 1) -> Any:
    return open_features(model, size, in_chans)


def segmenter(decoder: Any, model: ModelSettings = ARCH, size: tuple[int, int] = (64, 64), **args: Any) -> nn.Module:
    body, described = features(model, size)
    return build_segmenter(body, described, SegmenterSettings(decoder, **{"channels": 32, **args}), 4)


# ---- figures


def test_the_figures_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 255]])
    found = torch.tensor([[0, 1, 1, 1], [0, 2, 3, 0]])
    counts = confusion_matrix(found, truth, 5)
    assert counts.tolist() == [[1, 1, 0, 0, 0], [0, 2, 0, 0, 0], [1, 0, 1, 0, 0], [0] * 5, [0] * 5]
    figures = SegmentationFigures(counts, 0.5, list("abcde"), 1)
    # of class d nothing counts: it was predicted on an ignored pixel only
    assert figures.per_class == {"a": 100 / 3, "b": 200 / 3, "c": 50.0, "d": None, "e": None}
    assert figures.miou == pytest.approx(50)
    assert figures.pixel_accuracy == pytest.approx(100 * 4 / 6)


def test_the_figures_are_smps() -> None:
    generator = torch.Generator().manual_seed(3)
    found = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth = torch.randint(0, 6, (4, 9, 7), generator=generator)
    truth[torch.rand(truth.shape, generator=generator) < 0.2] = 255
    figures = SegmentationFigures(confusion_matrix(found, truth, 6), 0.0, list("abcdef"), 4)
    tp, fp, fn, _ = smp.metrics.get_stats(found, truth, "multiclass", ignore_index=255, num_classes=6)
    expected = smp.metrics.iou_score(tp, fp, fn, torch.zeros_like(tp), reduction="macro")
    assert figures.miou == pytest.approx(100 * float(expected), rel=1e-6)


def test_the_loss_of_an_evaluation_is_of_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_class_maps(DenseDataSettings(scenes=20, img_size=48, holdout=0.25))
    body, described = features(size=(48, 48))
    network = build_segmenter(body, described, SegmenterSettings("fpn", channels=32), len(data.classes))
    seen: list[int] = []
    plain = F.cross_entropy

    def counted(logits: Tensor, *rest: Any, **more: Any) -> Tensor:
        seen.append(len(logits))
        return plain(logits, *rest, **more)

    monkeypatch.setattr(F, "cross_entropy", counted)
    canvas, machine = Canvas(data.mean, data.std, multiple_of(network)), open_machine(Machine("cpu", "float32", 1))
    one, all_ = (
        evaluate_segmenter(network, canvas, ClassMapSplit(data.holdout), data, machine, batch_size, 0)
        for batch_size in (1, 5)
    )
    assert seen == [1] * 10
    assert all_.to_dict() == pytest.approx(one.to_dict())


# ---- the network


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "model",
    [
        ARCH,
        ModelSettings("A-A-A", widths=(16, 16, 16), head_dim=8, patch_size=16),
        ModelSettings("vit_tiny_patch16_224", model_args={"embed_dim": 24, "num_heads": 3}),
    ],
    ids=["strides-4-8", "strides-16-32-64", "plain-16"],
)
def test_every_decoder_learns_with_every_weight(decoder: Any, model: ModelSettings) -> None:
    network: Any = segmenter(decoder, model)
    multiple = multiple_of(network)
    size = (64, 64) if model.model.startswith("vit") else (multiple, 2 * multiple)
    output = network(torch.randn(2, 1, *size))
    assert output.shape == (2, 4, *size)
    output.square().sum().backward()
    without = [name for name, weight in network.named_parameters() if weight.numel() and weight.grad is None]
    assert not without
    if decoder != "dpt":
        assert isinstance(network.encoder, FeaturesEncoder)
    # the library is as it was
    assert "psvit" not in smp.encoders.encoders


@pytest.mark.parametrize("decoder", ["unet", "fpn", "upernet", "segformer"])
def test_on_a_backbone_that_smp_knows_the_network_is_smps_own(decoder: Any) -> None:
    body, described = features(ModelSettings("resnet18"), in_chans=3)
    ours = build_segmenter(body, described, SegmenterSettings(decoder, channels=256, dropout=0.2), 4).eval()
    theirs = smp.create_model(decoder, "tu-resnet18", encoder_weights=None, classes=4).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_a_psvit_is_built_by_smp_alone_too() -> None:
    args = {"genotype": "AS-A", "widths": (16, 32), "head_dim": 8, "patch_size": 4, "img_size": 64}
    theirs = smp.create_model("unet", "tu-psvit_2d", encoder_weights=None, in_channels=1, classes=4, encoder_depth=3,
                              decoder_channels=(32, 16, 8), **args).eval()  # fmt: skip
    ours = segmenter("unet").eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_maps_stand_at_their_strides() -> None:
    model = open_model(ModelSettings("A-A", widths=(16, 24), head_dim=8, patch_size=8), img_size=64, in_chans=1)
    body = Features(model, out_indices=2)
    maps = body(torch.ones(1, 1, 64, 64))
    encoder = FeaturesEncoder(body, 1, 2, 5, depth=5)
    found = encoder(torch.ones(1, 1, 64, 64))
    assert [tuple(one.shape[1:]) for one in found] == [
        (1, 64, 64), (0, 32, 32), (8, 16, 16), (16, 8, 8), (24, 4, 4), (24, 2, 2)
    ]  # fmt: skip
    assert encoder.out_channels == [one.shape[1] for one in found]
    assert torch.equal(found[3], maps[0])
    assert torch.equal(found[4], maps[1])
    assert torch.equal(found[5], F.max_pool2d(maps[1], 2))
    coarse = FeaturesEncoder(body, 1, None, 3, depth=3)(torch.ones(1, 1, 64, 64))
    assert torch.equal(coarse[3], F.interpolate(maps[1], size=(8, 8), mode="bilinear"))


@pytest.mark.parametrize("decoder", DECODERS)
def test_any_image_size_is_padded_and_cut_back(decoder: Any) -> None:
    network = segmenter(decoder).eval()
    canvas = Canvas((0.5,), (0.25,), multiple_of(network))
    image = torch.rand(1, 1, 37, 53)
    sides = [side + -side % multiple_of(network) for side in (37, 53)]
    padded = torch.zeros(1, 1, *sides)
    padded[:, :, :37, :53] = (image - 0.5) / 0.25
    with torch.no_grad():
        logits = canvas(network, image)
        assert logits.shape == (1, 4, 37, 53)
        torch.testing.assert_close(logits, network(padded)[:, :, :37, :53], rtol=0, atol=1e-6)


@pytest.mark.parametrize("decoder", ["unet", "dpt"])
def test_a_transformer_of_timm_takes_other_sizes(decoder: Any) -> None:
    network = segmenter(decoder, VIT).eval()
    assert Canvas((0.5,), (0.25,), multiple_of(network))(network, torch.rand(1, 1, 37, 53)).shape == (1, 4, 37, 53)


def test_a_network_of_one_size_says_so() -> None:
    class OneSize(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("Input height (48) doesn't match model (64).")

    with pytest.raises(UserError, match="cannot take an image of 37 x 53 pixels: Input height"):
        Canvas((0.5,), (0.25,), 16)(OneSize(), torch.rand(1, 1, 37, 53))


@pytest.mark.parametrize(
    ("decoder", "name"), [("unet", "encoder.model.model.pos_embed"), ("dpt", "encoder.model.pos_embed")]
)
def test_position_embeddings_are_not_decayed(decoder: Any, name: str) -> None:
    network = segmenter(decoder)
    optimizer = make_optimizer(network, DenseRecipe(), 1)
    still = [id(weight) for group in optimizer.param_groups if not group["weight_decay"] for weight in group["params"]]
    assert id(dict(network.named_parameters())[name]) in still
    moved = [id(weight) for group in optimizer.param_groups if group["weight_decay"] for weight in group["params"]]
    assert id(dict(network.named_parameters())["segmentation_head.0.weight" if decoder == "unet" else
                                               "segmentation_head.head.0.weight"]) in moved  # fmt: skip


def test_a_backbone_with_channels_last() -> None:
    args = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    network = segmenter("upernet", ModelSettings("swin_tiny_patch4_window7_224", model_args=args))
    assert network(torch.randn(2, 1, 64, 64)).shape == (2, 4, 64, 64)


def test_strides_that_are_no_powers_of_two_are_refused() -> None:
    with pytest.raises(UserError, match=r"are of strides 12, 24: .* --patch-size 16"):
        segmenter("unet", ModelSettings("A-A", widths=(16, 16), head_dim=8, patch_size=12), (48, 48))


# ---- learning


def learning(**segmenter_args: Any) -> SegmenterLearning:
    settings = SegmentSettings(
        model=ARCH,
        data=DenseDataSettings(scenes=8, img_size=48),
        recipe=DenseRecipe(drop_path=0.0),
        machine=Machine("cpu", "float32", 1),
        segmenter=SegmenterSettings("fpn", channels=32, dropout=0.0, **segmenter_args),
    )
    data = open_class_maps(settings.data)
    body, described = features(size=(48, 48))
    filled = settings.segmenter.filled(data.img_size)
    model = build_segmenter(body, described, filled, len(data.classes))
    return SegmenterLearning(model, settings, open_machine(settings.machine), data, filled)


def test_the_loss_is_a_mean_over_all_pixels_and_ignored_ones_count_nothing() -> None:
    learn = learning(loss="cross-entropy")
    images, classes = torch.rand(2, 1, 48, 48), torch.randint(0, 11, (2, 48, 48))
    classes[0, :20] = 255
    classes[1] = 255  # nothing is known of this one
    logs = learn.canvas(learn.plain, images).log_softmax(dim=1)
    known = [-logs[0, classes[0, y, x], y, x] for y in range(20, 48) for x in range(48)]
    expected = torch.stack(known).sum() / (2 * 48 * 48)
    assert learn.loss(Batch(images, classes, ()), 0).item() == pytest.approx(expected.item(), rel=1e-5)
    only = Batch(images[1:], classes[1:], ())
    assert learn.loss(only, 0).item() == 0  # not a division by no pixels


def test_dices_loss_is_added() -> None:
    plain, both = learning(loss="cross-entropy"), learning()
    both.plain.load_state_dict(plain.plain.state_dict())
    batch = Batch(torch.rand(2, 1, 48, 48), torch.randint(0, 11, (2, 48, 48)), ())
    p = plain.canvas(plain.plain, batch.images).softmax(dim=1)
    hot = F.one_hot(batch.labels, 11).permute(0, 3, 1, 2)
    dice = 2 * (p * hot).sum(dim=(0, 2, 3)) / (p + hot).sum(dim=(0, 2, 3))
    expected = plain.loss(batch, 0) + (1 - dice).mean()
    assert both.loss(batch, 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_crops_keep_pixels_and_classes_together() -> None:
    classes = np.arange(40 * 30).reshape(40, 30) % 200
    image = Image.fromarray(classes.astype(np.uint8))
    for size in ((16, 24), (64, 64)):
        torch.manual_seed(1)
        still = Vary(DenseAugment(hflip=1.0, jitter=(1, 1)), True, (0.5,), 255, size)
        pixels, found = vary_class_map(still, image, classes)
        assert pixels.shape == (1, *size)
        assert found.shape == size
        known = found != 255
        assert int(known.sum()) == min(size[0], 40) * min(size[1], 30)
        assert torch.equal((pixels[0] * 255).round().long()[known], found[known])
        assert ((pixels[0] - 0.5).abs()[~known] < 0.01).all()


def test_batches_of_different_sizes() -> None:
    data = open_class_maps(DenseDataSettings(scenes=8, img_size=48))
    split = ClassMapSplit(data.train)
    batch = split.collate([split[0, 0], split[1, 0]])
    assert [one.shape for one in batch.images] == [(1, 48, 48)] * 2
    assert torch.equal(batch.labels[1], torch.from_numpy(data.train.class_map(1)))


# ---- runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from psvit.cli import main

    folder = tmp_path_factory.mktemp("segment") / "run"
    assert main([*KEPT, "--output", str(folder)]) == 0
    return folder


# unet's batch norms, fpn's dropout, drop path and an average of weights are all state or randomness of a step
KEPT = [*TRAIN, "--decoder", "unet", "--save-every", "1", "--keep-state", "--drop-path", "0.2", "--ema-decay", "0.9"]


def test_killed_and_resumed_is_uninterrupted(cli: Cli, tmp_path: Path, trained: Path) -> None:
    process = start_slowed(3, *KEPT, "--output", tmp_path)
    step = saved_behind(3, tmp_path, process)  # of 6; the second epoch is under way
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    said = cli.ok(*KEPT, "--output", tmp_path, "--resume")
    assert step <= int(said.partition("resumed at step ")[2].split()[0]) < 6
    for name in ("best", "last"):
        assert same_weights(tmp_path / name, trained / name)
    assert log(tmp_path) == log(trained)


def test_two_processes_are_one_at_the_same_global_batch(cli: Cli, tmp_path: Path) -> None:
    # fpn norms by groups: a batch norm, and Dice's loss, sees the images of its own process
    shared = [*TRAIN, "--decoder", "fpn", "--dropout", "0", "--drop-path", "0", "--lr", "0.001",
              "--loss", "cross-entropy"]  # fmt: skip
    process = start("-m", "psvit", *shared, "--batch-size", "4", "--output", tmp_path / "two", launcher=torchrun())
    cli.ok(*shared, "--batch-size", "8", "--output", tmp_path / "one")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=0.05)
        assert two["images"] == one["images"] == 5
    a, b = weights(tmp_path / "one" / "last"), weights(tmp_path / "two" / "last")
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_is_evaluated_as_its_training_did(cli: Cli, trained: Path) -> None:
    words = [
        "segment",
        "evaluate",
        trained / "last",
        "--data",
        "digits-scenes",
        *MACHINE,
        "--split",
        "holdout",
    ]  # of the size that it was trained on, of as many scenes, and of the hold-out
    figures = json.loads(cli.ok(*words, "--json"))
    kept = read(trained / "last" / "metrics.json")
    for name in ("miou", "pixel_accuracy", "loss", "images"):
        assert figures[name] == pytest.approx(kept[name], rel=1e-6)
    assert list(figures["per_class"]) == ["background", *"0123456789"]
    assert 0 < kept["macs"] < kept["segmenter_macs"]
    table = cli.ok(*words)
    said = cli.refused(*words, "--holdout", "0.4")
    assert "was trained on digits-scenes with --holdout 0.2 --split-seed 0, so it knows images" in said
    assert f"{figures['miou']:.2f}" in table
    assert f"background  {figures['per_class']['background']:6.2f}" in table
    assert " of 11 classes)" in table


def test_predict_writes_class_maps(cli: Cli, trained: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    words = ["segment", "predict", trained / "last", tmp_path / "odd.png", tmp_path / "broken.png", *MACHINE,
             "--output", tmp_path / "found"]  # fmt: skip
    code, out, err = cli(*words, "--json")
    assert code == 0
    assert "broken.png cannot be read" in err
    line = json.loads(out)
    assert (line["height"], line["width"]) == (37, 53)
    assert sum(line["percent"].values()) == pytest.approx(100, abs=1e-2)
    model, canvas, _ = load_segmenter(str(trained / "last"))
    with torch.no_grad():
        expected: Tensor = canvas(model, torch.from_numpy(pixels)[None, None] / 255)[0].argmax(dim=0)
    with Image.open(tmp_path / "found" / "masks" / "odd.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), expected)
        assert np.array_equal(np.asarray(mask.convert("RGB"))[0, 0], class_colour(int(expected[0, 0])))
    assert Image.open(tmp_path / "found" / "drawn" / "odd.png").size == (9 * 53, 9 * 37)
    assert (tmp_path / "found" / "classes.txt").read_text().split() == ["background", *"0123456789"]
    assert "is there already: give --overwrite" in cli.refused(*words)
    assert " %" in cli(*words, "--overwrite").out
    said = cli.refused(*words[:3], tmp_path / "odd.png", "--output", tmp_path / "odd.png" / "x")
    assert f"--output {tmp_path / 'odd.png' / 'x'} cannot be written ({tmp_path / 'odd.png'} is a file)" in said


def test_predict_replaces_no_mask_of_the_set_it_reads(cli: Cli, tmp_path: Path) -> None:
    images, mask = tmp_path / "own" / "images", tmp_path / "own" / "masks" / "a.png"
    for file in (images / "a.png", mask):
        file.parent.mkdir(parents=True)
        Image.new("L", (8, 8), 1).save(file)
    drawn = mask.read_bytes()
    said = cli.refused("segment", "predict", tmp_path / "best", images, "--output", tmp_path / "own", "--overwrite")
    assert f"--overwrite would replace the masks of the set in {tmp_path / 'own'}" in said
    assert mask.read_bytes() == drawn


def test_predict_leaves_out_what_rounds_to_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = torch.zeros(100, 100, dtype=torch.long)
    classes[0, :5], classes[1, :4] = 1, 2  # 0.05 % and 0.04 %
    found = ClassMap("a.png", classes, ("sky", "sea", "sand", "sun"), torch.zeros(1, 100, 100))
    monkeypatch.setattr("psvit.dense.segmentation.segment.segment", lambda *words: iter([found]))
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    assert cli.ok("segment", "predict", "nowhere", tmp_path / "a.png") == "a.png  sky 99.9 %  sea 0.1 %\n"
    said = json.loads(cli.ok("segment", "predict", "nowhere", tmp_path / "a.png", "--json"))
    assert said["percent"] == {"sky": 99.91, "sea": 0.05, "sand": 0.04}


def test_colours_of_classes_differ() -> None:
    for background in (True, False):
        assert len({class_colour(number, background) for number in range(200)}) == 200


def test_the_encoder_starts_from_a_classifier(cli: Cli, tmp_path: Path) -> None:
    torch.manual_seed(5)
    model = open_model(ARCH, img_size=48, in_chans=1, num_classes=10)
    preprocessing = {
        "input_size": (1, 48, 48),
        "mean": (0.3,),
        "std": (0.4,),
        "interpolation": "bicubic",
        "crop_pct": 1,
    }
    save_checkpoint(tmp_path / "classes", model, model.state_dict(), preprocessing, list("0123456789"), {})
    own = dict(model.named_parameters())
    for decoder in ("unet", "dpt"):
        network: Any = segmenter(decoder, ModelSettings(str(tmp_path / "classes")), (48, 48))
        body = network.encoder.state_dict()
        assert len(body) > 20
        for name, weight in body.items():
            if ".stages." in name or "patch_embed" in name:
                assert torch.equal(weight, own[name.replace("model.", "")])
    words = [
        "segment",
        "train",
        "--model",
        tmp_path / "classes",
        *SCENES,
        *MACHINE,
        "--epochs",
        "1",
        "--channels",
        "32",
    ]
    assert "fpn on AS-A" in cli.ok(*words, "--output", tmp_path / "run")
    said = cli.refused("evaluate", tmp_path / "run" / "last", "--data", "digits")
    assert "not for classes: take psvit segment evaluate or psvit segment predict\n" in said
    said = cli.refused("segment", "train", *SCENES, "--model", tmp_path / "run" / "last", "--output", tmp_path / "x")
    assert "is a checkpoint for segmentation, not for classes: take a classifier's checkpoint" in said
    said = cli.refused("segment", "evaluate", tmp_path / "classes", *SCENES)
    assert "is a checkpoint for classes, not for segmentation" in said


# ---- bad input


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of different sizes with masks of three classes, and ignored pixels."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i, size in enumerate([(40, 52), (37, 53), (60, 33), (40, 52), (70, 70), (41, 41), (37, 53), (30, 64)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
        mask = rng.integers(0, 3, size, dtype=np.uint8)
        mask[:5] = 255
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


def test_a_folder_of_images_of_different_sizes(cli: Cli, photos: Path, tmp_path: Path) -> None:
    words = ["segment", "train", *NETWORK, "--data", photos, *MACHINE, "--epochs", "1", "--batch-size", "2",
             "--channels", "32", "--crop-size", "32", "--workers", "0", "--holdout", "0.3"]  # fmt: skip
    said = cli.ok(*words, "--output", tmp_path / "run")
    assert "images of different sizes, 3 classes" in said
    figures = json.loads(cli.ok("segment", "evaluate", tmp_path / "run" / "last", "--data", photos, *MACHINE,
                                "--workers", "0", "--split", "train", "--json", "--batch-size", "3"))  # fmt: skip
    single = json.loads(cli.ok("segment", "evaluate", tmp_path / "run" / "last", "--data", photos, *MACHINE,
                               "--workers", "0", "--split", "train", "--json", "--batch-size", "1"))  # fmt: skip
    assert figures.pop("per_class") == pytest.approx(single.pop("per_class"))
    assert figures.pop("unreadable") == single.pop("unreadable") == []
    assert figures == pytest.approx(single)
    # two processes, of which one has no image left, say once what one process says
    for part in ("images", "masks"):
        for split, numbers in (("train", range(2)), ("val", range(2, 4))):
            (tmp_path / "two" / part / split).mkdir(parents=True)
            for i in numbers:
                (tmp_path / "two" / part / split / f"{i}.png").write_bytes((photos / part / f"{i}.png").read_bytes())
    (tmp_path / "two" / "images" / "val" / "3.png").write_bytes(b"no image")
    words = ["segment", "evaluate", tmp_path / "run" / "last", "--data", tmp_path / "two", *MACHINE, "--workers", "0",
             "--json"]  # fmt: skip
    process = start("-m", "psvit", *words, launcher=torchrun())
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    one, two = json.loads(cli.ok(*words)), json.loads(out)
    assert one["images"] == len(one["unreadable"]) == 1
    assert two.pop("per_class") == pytest.approx(one.pop("per_class"))
    assert (two.pop("unreadable"), two) == (one.pop("unreadable"), pytest.approx(one))
    said = cli.refused("segment", "evaluate", tmp_path / "run" / "last", *SCENES, *MACHINE)
    assert "knows 3 classes, digits-scenes has 11, and class 0 is class 0 in the checkpoint, background in" in said


@pytest.mark.parametrize("what", ["image", "mask"])
def test_a_hold_out_without_figures_is_refused_before_training(
    what: str, cli: Cli, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "data")
    held = open_class_maps(DenseDataSettings(str(tmp_path / "data"), holdout=0.1)).holdout
    assert len(held) == 1
    image = Path(held.name(0))
    if what == "image":
        image.write_bytes(image.read_bytes()[:200])
    else:
        Image.fromarray(np.full(held.size_of(0), 255, dtype=np.uint8)).save(tmp_path / "data" / "masks" / image.name)
    words = ["segment", "train", *NETWORK, "--data", tmp_path / "data", *MACHINE, "--epochs", "1", "--crop-size", "32",
             "--channels", "32", "--holdout", "0.1", "--workers", "0", "--output", tmp_path / "run"]  # fmt: skip
    said = cli.refused(*words)
    reason = "cannot be read" if what == "image" else "(every pixel is 255, which is ignored)"
    assert "none of the 1 images of the hold-out can be evaluated, the first is " in said
    assert f"{image.name} {reason}" in said
    assert "mend it, give another --split-seed, or go without a hold-out by --holdout 0\n" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "psvit_1d_tiny"], "pools the sequence (1D), so its later stages have no maps: take a 2D variant"),
        (["--decoder", "unets"], "--decoder"),
        (["--channels", "40"], "--channels 40 is not a multiple of 32"),
        (["--crop-size", "8", "9", "10"], "--crop-size 8 9 10 is not a height and a width"),
        (["--crop-size", "0"], "--crop-size 0 is not a whole number of at least 1"),
        (["--dropout", "1"], "--dropout 1.0 is not a fraction"),
        (
            ["--data", "nowhere"],
            "--data 'nowhere' is neither a folder nor a known set: give digits-scenes, or a folder in the "
            "layout of ADE20K, COCO-stuff, COCO or Pascal VOC, or of images/ and masks/",
        ),
        (["--decoder", "upernet", "--batch-size", "1"], "--batch-size 1 is too small for upernet"),
    ],
)
def test_what_is_refused(words: list[str], message: str, cli: Cli, tmp_path: Path) -> None:
    said = cli.refused("segment", "train", *SCENES, *MACHINE, *words, "--output", tmp_path / "run")
    assert message in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "crop", "channels"),
    [((48, 64), (48, 64), 128), ((100, 129), (100, 129), 256), ((480, 640), (480, 512), 256), (None, (512, 512), 256)],
)
def test_what_is_cut_by_default(size: tuple[int, int] | None, crop: tuple[int, int], channels: int) -> None:
    filled = SegmenterSettings().filled(size)
    assert (filled.crop_size, filled.channels) == (crop, channels)


def test_a_set_without_class_maps_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    said = cli.refused("segment", "train", "--data", tmp_path, *MACHINE, "--output", tmp_path / "run")
    assert "holds no class maps: give a folder with images/ and masks/" in said


def test_actions() -> None:
    from psvit.cli.segment import main

    assert main([]) == 0
    with pytest.raises(UserError, match="does not know 'draw': give train, evaluate or predict"):
        main(["draw"])
