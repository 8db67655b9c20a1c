"""The interface of detection and segmentation: a head on a backbone, with loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, Self

from accelerate import Accelerator
from torch import Tensor, nn

from psvit.data.objects.batches import DenseSplit
from psvit.data.objects.object_sets import DenseData
from psvit.data.objects.objects_config import DenseAugment
from psvit.data.samples import Batch
from psvit.tasks.dense.dense_config import DenseConfig


class Metrics(Protocol):
    """The result of an evaluation."""

    def to_dict(self) -> dict[str, Any]:
        """The metrics of the whole split, as plain data."""


@dataclass(frozen=True)
class DenseTask(ABC):
    """A head on a backbone, for the classes and the image format of a set.

    Args:
        head: settings of the head, with defaults filled in.
        classes: class names, by class number.
        in_chans: image channels.
        mean: of each channel, for pixels in 0..1.
        std: of each channel.
        img_size: height and width of the training images; None if they differ.
    """

    head: Any
    classes: tuple[str, ...]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    img_size: tuple[int, int] | None

    name: ClassVar[str]
    """Name of the task in config.json."""
    head_key: ClassVar[str]
    """Key of the settings of the head, in config.json and in the training config."""
    head_type: ClassVar[type]
    counted_part: ClassVar[str]
    """Name of the part whose MACs are counted with the backbone."""
    counted_key: ClassVar[str]
    """Key of these MACs in metrics.json."""
    size_flag: ClassVar[str]
    """The flag that makes images smaller."""
    sync_norms: ClassVar[bool] = False
    """Whether batch norms are synchronised over GPUs."""
    split_type: ClassVar[type[DenseSplit]]
    open_data: ClassVar[Callable[..., DenseData]]
    """Opens a set, given settings, known images, and classes of an evaluated checkpoint."""
    check_library: ClassVar[Callable[[], Any]]
    """Raises a UserError if a library that the task needs is missing."""

    @classmethod
    def of(cls, config: DenseConfig, data: DenseData) -> Self:
        """Create the task for a training."""
        head = cls.filled(getattr(config, cls.head_key), data)
        return cls(head, data.classes, data.in_chans, data.mean, data.std, data.img_size)

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Self:
        """Create the task from the config.json of a checkpoint."""
        pixels, size = saved["preprocessing"], saved["img_size"]
        return cls(
            cls.head_type(**saved[cls.head_key]), tuple(saved["label_names"]), int(pixels["in_chans"]),
            tuple(pixels["mean"]), tuple(pixels["std"]), (size[0], size[1]) if size else None,
        )  # fmt: skip

    def to_dict(self, described: dict[str, Any]) -> dict[str, Any]:
        """The config.json of a checkpoint; `described` is the description of the backbone, see `open_features`."""
        return {
            "task": self.name,
            "label_names": list(self.classes),
            "backbone": described,
            self.head_key: asdict(self.head),
            "preprocessing": {"in_chans": self.in_chans, "mean": list(self.mean), "std": list(self.std)},
            "img_size": list(self.img_size) if self.img_size else None,
        }

    @classmethod
    @abstractmethod
    def filled(cls, head: Any, data: DenseData) -> Any:
        """The settings of the head with defaults filled in."""

    @property
    @abstractmethod
    def head_name(self) -> str:
        """The name of the head."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """The metric that selects the best epoch; higher is better."""

    @property
    @abstractmethod
    def backbone_size(self) -> tuple[int, int] | None:
        """Height and width that the backbone is built for; None for its default."""

    @abstractmethod
    def seen_size(self, sizes: Collection[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of the largest of these images as the network gets it."""

    @abstractmethod
    def build(self, body: nn.Module, described: dict[str, Any], source: str = "the backbone") -> nn.Module:
        """Build the network on the features of a backbone; `source` is the backbone, for messages."""

    @abstractmethod
    def multiple(self, model: nn.Module) -> int:
        """The sides of images are padded to multiples of this."""

    @abstractmethod
    def counted(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The part of the network whose MACs are counted, and the backbone in it."""

    def check_counted(self, part: nn.Module, shape: Sequence[int]) -> None:  # noqa: B027  # most have nothing to check
        """Refuse a counted part, on the meta device, that cannot be trained on images of this shape (C, H, W)."""

    @abstractmethod
    def train_split(self, data: DenseData, augment: DenseAugment, strict: bool) -> DenseSplit:
        """The training split with augmentation."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, accelerator: Accelerator) -> Tensor:
        """The loss of a batch of `train_split`: a scalar."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], data: DenseData, accelerator: Accelerator) -> Any:
        """The `Metrics` of a network in evaluation mode, over the batches of all processes."""

    @abstractmethod
    def predict(self, model: nn.Module, image: str, pixels: Tensor, accelerator: Accelerator) -> Any:
        """The prediction of a network in evaluation mode for the pixels (C, H, W) in 0..1 of an image file."""
