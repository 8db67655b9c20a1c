"""Scoring networks under the supernet, on the prefix tree: layers that networks share are computed once.

A network gets the same score alone or with others: the same modules see the same batches.

Legend: B batch, N tokens, C width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from psvit.arch.arch import Arch
from psvit.arch.stem_convolutions import Stem, stem_convolutions
from psvit.arch.steps import Step, steps_of
from psvit.data.augment import eval_split
from psvit.data.datasets import Data, balanced_order
from psvit.data.loading import eval_batches
from psvit.data.samples import Batch
from psvit.data.sources import Source, Subset
from psvit.errors import UserError
from psvit.search.journal import Score, name_of
from psvit.search.space import Space, bounds
from psvit.search.supernet import Supernet

Floats = NDArray[np.float64]

CACHED = 2 * 2**30
"""Slices up to this many bytes are kept in memory; larger ones are read again for every chunk."""


@dataclass
class Node:
    """A node of the tree: the layers that follow, and the index of the network that ends here."""

    member: int | None = None
    following: dict[Step, Node] = field(default_factory=dict)

    def layers(self) -> int:
        """The number of layers below this node."""
        return sum(1 + node.layers() for node in self.following.values())


def prefix_tree(members: Sequence[Arch]) -> Node:
    """The tree of the networks' layers; `Node.member` is an index into `members`."""
    root = Node()
    for number, arch in enumerate(members):
        node = root
        for step in steps_of(arch):
            node = node.following.setdefault(step, Node())
        node.member = number
    return root


class Scorer:
    """Scores networks of a supernet on batches of the validation split.

    Args:
        supernet: the weights.
        accelerator: device and precision.

    Attributes:
        layers: number of layers computed so far.
    """

    def __init__(self, supernet: Supernet, accelerator: Accelerator) -> None:
        self.supernet, self.accelerator = supernet.eval(), accelerator
        self.layers = 0

    def score(self, members: Sequence[Arch], batches: Iterable[Batch]) -> list[Score]:
        """Score networks over all batches.

        Args:
            members: the networks to score; layers at the start that several share are computed once.
            batches: images and labels of a slice.
        """
        sums = np.zeros((2, len(members)))  # loss in nats, hits
        count = 0
        for found in self._measured(members, batches):
            sums += found.sum(axis=2)
            count += found.shape[2]
        return [
            Score(name_of(arch), float(loss) / count, 100 * float(hits) / count, count)
            for arch, loss, hits in zip(members, *sums, strict=True)
        ]

    def measure(self, members: Sequence[Arch], batches: Iterable[Batch]) -> Floats:
        """The loss of every network on every image, in nats, and whether it is right: (2, networks, images)."""
        return np.concatenate(list(self._measured(members, batches)), axis=2)

    @torch.inference_mode()
    def _measured(self, members: Sequence[Arch], batches: Iterable[Batch]) -> Iterator[Floats]:
        """`measure` of each batch: (2, networks, B)."""
        tree, device = prefix_tree(members), self.accelerator.device
        for batch in batches:
            images, labels = batch.images.to(device), batch.labels.to(device)
            found = np.zeros((2, len(members), len(labels)))
            stems: dict[tuple[Stem, int], Node] = {}
            for step, node in tree.following.items():
                stems.setdefault((step.elements.stem, step.width), Node()).following[step] = node
            for (stem, width), first in stems.items():
                with self.accelerator.autocast():
                    x, grid = self.supernet.embed(images, stem, width)
                    self._visit(first, x, None, grid, labels, 0, found)
            yield found

    def _visit(
        self, node: Node, x: Tensor, attn: Tensor | None, grid: Any, labels: Tensor, index: int, found: Floats
    ) -> None:
        """Run the layers below a node, given its output `x` (B, N, C) and its map `attn` (B, H, N, N)."""
        for step, following in node.following.items():
            y, rows_columns = self.supernet.pool(x, grid, step)
            number = 0 if step.pooled_from else index
            # always computes the map, so that no score depends on which other networks are scored
            y, handed_on = self.supernet.layer(y, attn, rows_columns, step, number, map_is_shared=True)
            self.layers += 1
            if following.member is not None:
                logits = self.supernet.classify(y, step).float()
                found[0, following.member] = F.cross_entropy(logits, labels, reduction="none").cpu()
                found[1, following.member] = (logits.argmax(dim=-1) == labels).cpu()
            self._visit(following, y, handed_on, rows_columns, labels, number + 1, found)


def batch_bytes(space: Space, images: int) -> int:
    """Upper bound on the activations of scoring, in bytes, for a batch of `images`.

    Every layer of the deepest path keeps its tokens and its map, at the size of the first stage, in float32; the layer
    being computed needs its hidden tokens and maps too, and before it a stem its convolved images. Weights and images
    are not included.
    """
    depth, like = bounds(space.depth)[1], space.like
    tokens = prod(like.grids(space.img_size)[0]) + int(bool(like.class_token))
    width = max(max(choice) for choice in space.widths)
    heads = width // like.head_dim
    layer = tokens * width + heads * tokens**2
    hidden = ("local" in space.mlps) + 2 * ceil(max(space.mlp_ratios))
    busy = tokens * width * (4 + hidden) + 2 * heads * tokens**2
    return 4 * images * max(depth * layer + busy, *(_convolved(space, stem) for stem in space.stems))


def _convolved(space: Space, stem: Stem) -> int:
    """The most numbers that a stem holds for an image: a convolution's input, its output, and its norm's."""
    stride, most = space.like.stride, 0
    cells, before = prod(space.like.grids(space.img_size)[0]) * stride**2, space.in_chans
    for after, apart, pooled in stem_convolutions(stem, stride, space.widths[0][-1]):
        inputs, cells = cells * before, cells // apart**2
        most, before = max(most, inputs + 2 * cells * after), after
        cells //= 4 if pooled else 1
    return most


class Slices:
    """Nested slices of the validation split, each balanced over the classes.

    Args:
        data: with a validation split.
        seed: seed of the order.
        batch_size: images per batch, at most; all batches of a slice are about equally large.
        strict: stop at the first image that cannot be read.

    Raises:
        UserError: fewer images than classes.
    """

    def __init__(self, data: Data, seed: int, batch_size: int, strict: bool = False) -> None:
        if not isinstance(data.validation, Source):
            raise UserError(
                f"{data.name} is streamed, and a search needs a validation split by number: unpack it into a folder"
            )
        classes, images = len(data.classes), len(data.validation)
        if images < classes:
            raise UserError(
                f"the validation split has {images} images for {classes} classes, and a search needs one of "
                "each at least: raise --validation, or give more images"
            )
        self.data, self.source, self.batch_size, self.strict = data, data.validation, batch_size, strict
        self.order = balanced_order(np.asarray(data.validation.labels()), np.random.default_rng(seed))
        self.unreadable: set[str] = set()
        self._kept: dict[int, list[Batch]] = {}

    def __len__(self) -> int:
        return len(self.order)

    def batches(self, images: int) -> Iterable[Batch]:
        """Batches of the first `images` images; the same ones every time."""
        if images not in self._kept:
            channels, (height, width) = self.data.in_chans, self.data.img_size
            if 4 * images * channels * height * width > CACHED:
                return self._read(images)
            self._kept = {images: list(self._read(images))}
        return self._kept[images]

    def _read(self, images: int) -> Iterator[Batch]:
        split = eval_split(self.data, Subset(self.source, self.order[:images]), self.strict)
        equal = ceil(images / ceil(images / self.batch_size))  # batch norms take the statistics of a batch
        for batch in eval_batches(split, batch_size=equal, workers=self.data.workers):
            self.unreadable.update(batch.unreadable)
            yield batch
