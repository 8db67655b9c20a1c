"""Randomness as a function of the seed and the step."""

from __future__ import annotations

import random

import numpy as np
import torch

INIT = 2**32 - 1
"""The "step" that seeds the first weights."""


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed all generators for one step (drop path, mixup, dropout) from (seed, step, rank).

    So no generator state has to be saved: a resumed run draws the same numbers as an uninterrupted one.
    """
    state = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        torch.manual_seed(state)
    else:
        torch.default_generator.manual_seed(state)  # the same without asking for other devices, which takes longer
