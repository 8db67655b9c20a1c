"""Image -> tokens -> logits."""

import timm  # noqa: F401  first, so that our variants are registered (see psvit/__init__.py)
