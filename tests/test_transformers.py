"""Checkpoints in transformers: classifiers, other classes, features."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.fx
import transformers
from PIL import Image
from small_features import CLASSES, checkpoint, equal_maps, images
from tiny import Cli, image_folder

from psvit.engine.open_model import load_checkpoint
from psvit.models.features import image_patches
from psvit.tasks.classification.evaluate import open_checkpoint, preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network whose position embeddings are 4 x 6."""
    return checkpoint(tmp_path_factory.mktemp("checkpoint") / "best")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """The network of `folder`."""
    return load_checkpoint(folder)


@pytest.mark.parametrize("kind", ["AutoModelForImageClassification", "TimmWrapperForImageClassification"])
def test_transformers_classifies_as_the_checkpoint(kind: str, folder: Path, model: Any, tmp_path: Path) -> None:
    wrapped = getattr(transformers, kind).from_pretrained(folder).eval()
    assert isinstance(wrapped, transformers.TimmWrapperForImageClassification)
    assert wrapped.config.id2label == dict(enumerate(CLASSES))
    x = images(32, 48)
    expected = model(x)
    assert torch.equal(wrapped(x).logits, expected)
    outputs = wrapped(x, labels=torch.tensor([0, 2]), output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, expected)
    equal_maps(outputs.hidden_states, model.forward_intermediates(x, intermediates_only=True))
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in wrapped.parameters())
    wrapped.save_pretrained(tmp_path / "again")  # and back
    again = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    for twin in (again, load_checkpoint(tmp_path / "again")):
        assert torch.equal(twin(x), expected)


def test_transformers_gives_features_and_other_classes(folder: Path, model: Any) -> None:
    x = images(32, 48)
    outputs = transformers.AutoModel.from_pretrained(folder).eval()(x)
    tokens = model.forward_features(x)
    assert torch.equal(outputs.last_hidden_state, tokens)
    assert torch.equal(outputs.pooler_output, tokens.mean(1))
    other = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True
    )
    assert other(x).logits.shape == (2, 7)


NAMED, CONFIGURED, NUMBERED = "label_names", "id2label in the file", "nothing"


@pytest.mark.parametrize(("told", "count"), [(NAMED, 2), (CONFIGURED, 7), (NUMBERED, 7)])
def test_a_network_that_transformers_tuned_keeps_its_class_names(
    cli: Cli, folder: Path, tmp_path: Path, told: str, count: int
) -> None:
    names = [f"kind {number}" for number in range(count)]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    more = {"label_names": names} if told == NAMED else {}
    wrapped = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=count, ignore_mismatched_sizes=True, **labels, **more
    ).eval()
    tuned = tmp_path / "tuned"
    wrapped.save_pretrained(tuned)
    config = json.loads((tuned / "config.json").read_text())
    assert config["num_classes"] == count
    assert "id2label" not in config  # of transformers 5.24: so what the user gave is lost unless it is in label_names
    if told == CONFIGURED:
        (tuned / "config.json").write_text(json.dumps({**config, "id2label": labels["id2label"]}))
    expected = list(map(str, range(count))) if told == NUMBERED else names

    data = image_folder(tmp_path / "data", tuple(expected), each=4)
    picture = data / expected[0] / "0.png"
    machine = ["--device", "cpu", "--threads", 1, "--precision", "float32"]
    note = f"note      {tuned / 'config.json'} does not hold a name for each of the network's {count} classes"

    def predicted(checkpoint: Path) -> dict[str, float]:
        result = cli("predict", checkpoint, picture, "--json", "--top", 9, *machine)
        assert result.code == 0, result.err
        assert (note in result.err) == (told == NUMBERED and checkpoint == tuned)
        return {found["label"]: found["probability"] for found in json.loads(result.out)["classes"]}

    by_label = predicted(tuned)
    pixels = preprocess(load_checkpoint(tuned))(Image.open(picture))
    with torch.inference_mode():
        probabilities = wrapped(pixels[None]).logits.softmax(-1)[0].tolist()
    assert by_label == pytest.approx(dict(zip(expected, probabilities, strict=True)), abs=1e-5)
    assert list(json.loads(cli.ok("evaluate", tuned, "--data", data, "--json", *machine))["per_class"]) == expected

    cli.ok("export", tuned, "--format", "timm")
    again = tmp_path / "tuned-timm"
    assert predicted(again) == pytest.approx(by_label, abs=1e-5)
    written = json.loads((again / "config.json").read_text())
    assert (written["num_classes"], written["label_names"]) == (count, expected)


@pytest.mark.parametrize(("key", "value", "classes"), [
    *(("label_names", names, ("0", "1", "2")) for names in (["a", "b"], ["a", "b", 3], "abc", 3, {"0": "a"})),
    *(("id2label", names, CLASSES) for names in (
        {"0": "a", "1": "b", "3": "c"}, {"0": "a", "1": "b", "2": 3}, ["a", "b", "c"],
        {f"{number}": f"LABEL_{number}" for number in range(3)})),
])  # fmt: skip
def test_only_one_name_for_each_class_counts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, classes: tuple[str, ...]
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    config = json.loads((folder / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, key: value}))
    assert open_checkpoint(str(broken)).classes == classes
    assert capsys.readouterr().err.count("\n") == (key == "label_names")


def test_transformers_prepares_images_as_we_do(folder: Path, model: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    found = transformers.AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found[0], preprocess(model)(image))
    assert found.shape == (1, 3, 32, 48)


def test_transformers_backbone(folder: Path, model: Any) -> None:
    for out_indices, strides in ((None, [32]), ((-1,), [32]), ((0, 1, 2, 3), [4, 8, 16, 32]), ((1, 3), [8, 32])):
        source = f"local-dir:{folder}"
        backbone = transformers.TimmBackbone.from_pretrained(source, out_indices=out_indices).eval()
        x = images(37, 53)
        expected = [image_patches(x, 4), *model.forward_intermediates(x, intermediates_only=True)]
        maps = backbone(x).feature_maps
        equal_maps(maps, [expected[[4, 8, 16, 32].index(stride)] for stride in strides])
        assert backbone.channels == [m.shape[1] for m in maps], out_indices
        assert backbone.stage_names == ["patches.4", "stages.0", "stages.1", "stages.2"], out_indices
