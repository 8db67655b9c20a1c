"""PSViT: vision transformers that do not waste work, by token pooling and attention sharing.

`import psvit` does not import torch or timm. As soon as timm is imported, before or after, our variants are registered
with it, so ``timm.create_model("psvit_2d_tiny")`` works.
"""

from typing import TYPE_CHECKING, Any

import wrapt

from psvit.arch import cost
from psvit.arch.arch import Arch
from psvit.arch.variants import VARIANTS
from psvit.errors import UserError

if TYPE_CHECKING:
    from psvit.export.hub import from_pretrained
    from psvit.models.psvit import PSViT

__version__ = "0.1.0.dev0"
__all__ = ["VARIANTS", "Arch", "PSViT", "UserError", "cost", "from_pretrained"]


@wrapt.when_imported("timm")
def _register_variants(timm: Any) -> None:
    import psvit.models.zoo  # noqa: F401


def __getattr__(name: str) -> Any:
    if name == "PSViT":
        from psvit.models.psvit import PSViT

        return PSViT
    if name == "from_pretrained":
        from psvit.export.hub import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'psvit' has no attribute {name!r}")
