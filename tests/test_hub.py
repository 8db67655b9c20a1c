"""Folders for timm and the Hub: loaded by timm, described by a card, uploaded and downloaded."""

import inspect
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from small_exports import checkpoint
from tiny import Cli

import psvit
import psvit.export.hub
from psvit import UserError
from psvit.data.data_config import DataConfig
from psvit.export.card import public_name
from psvit.export.graph import example_images
from psvit.export.hub import from_pretrained, push_to_hub
from psvit.tasks.classification.evaluate import open_checkpoint

IMAGES = example_images((1, 12, 12), 3)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IMAGES)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the Hub."""
    root = tmp_path / "hub"

    def create_repo(self: Any, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        (root / repo_id / "visibility").write_text("private" if private else "public")
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self: Any, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **more: Any) -> None:
        for path in Path(folder_path).iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, root / repo_id / path.name)

    def snapshot_download(repo_id: str, *, revision: Any, token: Any, cache_dir: Any, allow_patterns: list[str]) -> str:
        if not (root / repo_id).is_dir():
            raise ConnectionError("no such\nrepository")
        if (root / repo_id / "visibility").read_text() == "private" and token is False:
            raise PermissionError("private")
        if revision not in (None, "main"):
            raise KeyError(revision)
        target = Path(cache_dir or tmp_path / "cache")
        target.mkdir(exist_ok=True)
        for name in allow_patterns:
            shutil.copy(root / repo_id / name, target / name)
        return str(target)

    for place, stub in ((huggingface_hub.HfApi, create_repo), (huggingface_hub.HfApi, upload_folder),
                        (psvit.export.hub, snapshot_download)):  # fmt: skip
        monkeypatch.setattr(place, stub.__name__, as_called(getattr(place, stub.__name__), stub))
    return root


def as_called(real: Any, stub: Any) -> Any:
    """The stub, which refuses arguments that the real function would refuse."""

    def called(*args: Any, **kwargs: Any) -> Any:
        inspect.signature(real).bind(*args, **kwargs)
        return stub(*args, **kwargs)

    return called


def test_timm_loads_the_folder(cli: Cli, best: Path) -> None:
    text = cli.ok("export", best, "--format", "timm", "--license", "mit")
    folder = best.with_name("best-timm")
    assert f"written   {folder}" in text
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "config.json", "metrics.json", "model.safetensors",
    ]  # fmt: skip
    expected = logits(open_checkpoint(str(best)).model)
    assert torch.equal(logits(timm.create_model(f"local-dir:{folder}", pretrained=True).eval()), expected)
    assert torch.equal(logits(from_pretrained(folder)), expected)
    cli.refused("export", best, "--format", "timm")
    cli.ok("export", best, "--format", "timm", "--overwrite")


def test_a_clone_keeps_what_is_not_ours(cli: Cli, best: Path) -> None:
    cli.ok("export", best, "--format", "timm")
    clone = best.with_name("best-timm")
    (clone / ".git").mkdir()
    for name in (".git/HEAD", "NOTES.md", ".gitattributes"):
        (clone / name).write_text("mine")
    (clone / "README.md").write_text("old")
    (clone / "config.json").write_text("{}")
    (clone / "model.safetensors").unlink()
    (clone / "model.safetensors").symlink_to("blob")  # as the Hub's cache does
    (clone / "blob").write_text("mine")
    cli.ok("export", best, "--format", "timm", "--overwrite", "--license", "mit")
    for name in (".git/HEAD", "NOTES.md", ".gitattributes", "blob"):
        assert (clone / name).read_text() == "mine"
    assert "mit" in (clone / "README.md").read_text()
    assert torch.equal(logits(from_pretrained(clone)), logits(open_checkpoint(str(best)).model))


def test_another_size_goes_along(cli: Cli, best: Path) -> None:
    cli.ok("export", best, "--format", "timm", "--img-size", 20)
    model = from_pretrained(best.with_name("best-timm"))
    assert tuple(model.pretrained_cfg["input_size"]) == (1, 20, 20)  # a list in some versions of timm
    expected = open_checkpoint(str(best)).model
    expected.set_input_size(20)
    images = example_images((1, 20, 20), 2)
    with torch.inference_mode():
        assert torch.equal(model(images), expected(images))


def test_the_card_tells_metrics_and_use(cli: Cli, best: Path) -> None:
    cli.ok("export", best, "--format", "timm", "--license", "mit")
    card = huggingface_hub.ModelCard.load(best.with_name("best-timm") / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "timm"
    assert {"psvit", "timm", "image-classification"} <= set(card.data.tags)
    model = open_checkpoint(str(best)).model
    params = sum(parameter.numel() for parameter in model.parameters())
    for line in ("| genotype | `AS-AA` |", f"| parameters | {params / 1e6:.4g} M |", "| classes | 10 |",
                 f"| MACs an image | {psvit.arch.cost.macs(model.arch, 12, 1, 10) / 1e6:.4g} M |",
                 "| validation top-1 | 12.50 % of 30 images |", 'psvit.from_pretrained("best-timm")',
                 'timm.create_model("local-dir:best-timm"', "psvit predict best-timm image.png",
                 "Licence of the weights: mit."):  # fmt: skip
        assert line in card.text, line
    assert "top-5" not in card.text  # metrics.json does not tell it
    assert str(best.parent) not in card.text


def test_the_cards_commands_work_where_the_export_ran(cli: Cli, best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(best.parent.parent)
    run = Path(best.parent.name)
    cli.ok("export", run / "best", "--format", "timm")
    text = (run / "best-timm" / "README.md").read_text()
    assert "\n# best-timm\n" in text
    scope: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], scope)
    expected = logits(open_checkpoint(str(best)).model)
    assert torch.equal(logits(scope["model"]), expected)


def test_to_the_hub_and_back(cli: Cli, best: Path, hub: Path) -> None:
    alone = ["export", best, "--format", "timm", "--private"]
    assert "--private is of a repository on the Hub: give --push-to-hub too" in cli.refused(*alone)
    text = cli.ok("export", best, "--format", "timm", "--push-to-hub", "me/digits", "--private")
    assert "hub       https://huggingface.co/me/digits" in text
    assert (hub / "me" / "digits" / "visibility").read_text() == "private"
    assert 'timm.create_model("hf-hub:me/digits"' in (hub / "me" / "digits" / "README.md").read_text()
    expected = logits(open_checkpoint(str(best)).model)
    model = psvit.from_pretrained("me/digits")
    assert not model.training
    assert torch.equal(logits(model), expected)
    place = hub / "elsewhere"
    model = psvit.from_pretrained("me/digits", revision="main", token="hf_mine", cache_dir=place)
    assert torch.equal(logits(model), expected)
    assert (place / "model.safetensors").exists()
    for asked, message in (({"revision": "v2"}, "KeyError: 'v2'"), ({"token": False}, "PermissionError: private")):
        with pytest.raises(UserError, match=message):
            psvit.from_pretrained("me/digits", **asked)
    with pytest.raises(UserError, match=f"revision 'v2' is of a repository, {best} is a folder: leave it out"):
        psvit.from_pretrained(best, revision="v2")


def test_public_names_of_data() -> None:
    for data, name in (
        ("digits", "digits"),
        ("fashion-mnist", "zalando-datasets/fashion_mnist"),
        ("hfds/uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("torch/cifar10", "cifar10"),
        ("wds/shards", None),
        ("hfds//home/me/photos", None),
        ("hfds/../photos", None),
    ):
        assert public_name(data) == name, data


@pytest.mark.parametrize(("data", "name"), [("hfds/uoft-cs/cifar10", "uoft-cs/cifar10"), ("hfds/../photos", None)])
def test_the_card_names_public_data_alone(cli: Cli, tmp_path: Path, data: str, name: str | None) -> None:
    cli.ok("export", checkpoint(tmp_path / "best", trained=DataConfig(data)), "--format", "timm")
    card = huggingface_hub.ModelCard.load(tmp_path / "best-timm" / "README.md")
    assert card.data.datasets == ([name] if name and "/" in name else None), "owner/name, as the Hub calls them"
    assert ("| trained on |" in card.text) == (name is not None)
    if name is None:
        assert "photos" not in card.content
    (result,) = card.data.eval_results or []
    assert (result.task_type, result.metric_type, result.metric_value) == ("image-classification", "accuracy", 0.125)
    assert (result.dataset_type, result.dataset_name) == (name or "other", name or "images that are not public")
    assert result.dataset_split == "validation split"
    assert "```sh\npip install psvit\n```" in card.text


def test_only_the_checkpoint_is_sent(best: Path, hub: Path) -> None:
    (best / "secret.txt").write_text("mine")
    assert push_to_hub(best, "me/mine") == "https://huggingface.co/me/mine"
    assert sorted(path.name for path in (hub / "me" / "mine").iterdir()) == [
        "config.json", "metrics.json", "model.safetensors", "visibility",
    ]  # fmt: skip


def test_a_failed_upload_keeps_the_folder(cli: Cli, best: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"neither a folder nor a repository .* ConnectionError: no such repository"):
        from_pretrained("me/nothing")
    with pytest.raises(UserError, match="neither a folder nor a repository"):
        from_pretrained("no//name")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise huggingface_hub.errors.LocalTokenNotFoundError("log\nin")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    folder = best.with_name("best-timm")
    said = cli.refused("export", best, "--format", "timm", "--push-to-hub", "me/x")
    assert f"me/x did not work: LocalTokenNotFoundError: log in; {folder} is written: try again, with --overwr" in said
    assert torch.equal(logits(from_pretrained(folder)), logits(open_checkpoint(str(best)).model))
