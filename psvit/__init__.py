"""PSViT: vision transformers that do not waste work, by token pooling and attention sharing."""

from psvit.arch import Arch
from psvit.errors import UserError

__version__ = "0.1.0.dev0"
__all__ = ["Arch", "UserError"]
