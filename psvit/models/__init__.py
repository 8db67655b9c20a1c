"""Image -> tokens -> logits."""

import timm  # noqa: F401  first, so that the variants are registered (see psvit/__init__.py) before any of us is used
