"""What tests of analyses share."""

from typing import Any

from psvit.analysis.advice import AnalyzeConfig

THRESHOLDS = AnalyzeConfig()


def row(layer: int, **changes: Any) -> dict[str, Any]:
    """A layer of a plain network on 16 x 16 tokens, in which nothing is redundant."""
    near, alike, sharing, pooling = (changes.pop(name, value) for name, value in (
        ("near", 0.1), ("alike", 0.1), ("sharing", 0.0), ("pooling", 0.0)))  # fmt: skip
    return {
        "layer": layer, "kind": "A", "stage": 1, "heads": 3, "tokens": 256, "grid": (16, 16), "one_row": False,
        "before": {"correlation": near} if layer > 1 else None, "other_image": {"correlation": 0.2},
        "map_entropy": 0.5,
        "tokens_are": {"neighbour_cosine": alike, "pair_cosine": 0.1, "kept_by_pooling": 0.5},
        "sharing": {"loss": sharing, "error": 0.01, "top1": -0.2},
        "pooling": {"loss": pooling, "error": 0.01, "top1": 0.0},
        **changes,
    }  # fmt: skip
