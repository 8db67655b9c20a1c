"""Checkpoints on the Hugging Face Hub: write folders for timm with a model card, upload, download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, by its documentation

from psvit.engine.checkpoints import (
    CONFIG,
    METRICS,
    WEIGHTS,
    read_metrics,
    save_checkpoint,
)
from psvit.engine.open_model import load_checkpoint
from psvit.errors import UserError, one_line
from psvit.export.card import model_card
from psvit.export.runtime import PREPROCESSING
from psvit.files import replacing
from psvit.tasks.classification.evaluate import Classifier

CARD = "README.md"


def write_folder(
    folder: Path,
    classifier: Classifier,
    name: str | None = None,
    license: str | None = None,
    place: Path | None = None,
) -> None:
    """Write a classifier for timm and the Hub: config.json, weights, metrics.json and a model card.

    Args:
        folder: the folder; see `replacing_files` if it exists.
        classifier: see `psvit.tasks.classification.evaluate.open_checkpoint`.
        name: its future repository on the Hub, as user/name, for the card; by default none.
        license: of the weights, for the card.
        place: the final path of the folder, for a card without a repository; by default `folder`.
    """
    model = classifier.model
    preprocessing = {key: model.pretrained_cfg[key] for key in PREPROCESSING}
    metrics = read_metrics(classifier.source)
    with replacing_files(folder) as temporary:
        save_checkpoint(temporary, model, model.state_dict(), preprocessing, classifier.classes, metrics)
        (temporary / CARD).write_text(model_card(classifier, name, license, place or folder), encoding="utf-8")


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary path for a folder, which replaces `folder` at the end, unless there is an error.

    In an existing folder, files are replaced one by one and other files stay: it may be a clone.
    """
    if not folder.exists():
        with replacing(folder) as temporary:
            yield temporary
        return
    with TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as beside:
        temporary = Path(beside) / folder.name
        yield temporary
        for path in temporary.iterdir():
            path.replace(folder / path.name)


def check_repository(name: str) -> None:
    """Refuse an invalid name of a repository.

    Raises:
        UserError: it is not user/name.
    """
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise UserError(f"--push-to-hub {name!r} is not the name of a repository: {one_line(error)}") from error
    if name.count("/") != 1:
        raise UserError(f"--push-to-hub {name!r} names no account: give user/name")


def push_to_hub(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload a folder of `write_folder` to the Hub, with the token of ``hf auth login``.

    Args:
        folder: only config.json, model.safetensors, metrics.json and README.md are uploaded.
        name: the repository, as user/name; created if it does not exist.
        private: make it private.

    Returns:
        The address of the repository.

    Raises:
        UserError: the Hub refuses it, or cannot be reached. The folder stays.
    """
    check_repository(name)
    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, METRICS, CARD],
            commit_message="A checkpoint of psvit",
        )  # fmt: skip
    except Exception as error:  # no token, no permission, no network: many exception classes
        raise UserError(
            f"--push-to-hub {name} did not work: {one_line(error, kind=True)}; {folder} is written: try again, with "
            "--overwrite"
        ) from error
    return str(address)


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Load the network of a checkpoint folder or of a repository on the Hub, in evaluation mode.

    Args:
        name: a folder, or user/name. Only config.json and model.safetensors are downloaded.
        revision: branch, tag or commit of the repository; by default its main branch.
        token: for the repository; by default that of ``hf auth login``; False for none.
        cache_dir: folder for downloads; by default the cache of huggingface_hub.

    Raises:
        UserError: there is neither; a revision was given for a folder; or the checkpoint is broken, see
            `psvit.engine.open_model.load_checkpoint`.
    """
    if Path(name).exists():
        if revision is not None:
            raise UserError(f"revision {revision!r} is of a repository, {name} is a folder: leave it out")
        return load_checkpoint(name)
    try:
        validate_repo_id(str(name))
        folder = snapshot_download(
            str(name), revision=revision, token=token, cache_dir=cache_dir, allow_patterns=[CONFIG, WEIGHTS]
        )
    except Exception as error:  # no such name, no permission, no network: many exception classes
        raise UserError(
            f"{name} is neither a folder nor a repository of the Hub that can be read: {one_line(error, kind=True)}"
        ) from error
    return load_checkpoint(folder)
