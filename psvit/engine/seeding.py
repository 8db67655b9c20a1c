"""Randomness as a function of the seed and the step."""

from __future__ import annotations

import random

import numpy as np
import torch

INIT = 2**32 - 1
"""The "step" that seeds the first weights."""


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Make all randomness of one step (drop path, mixup, dropout) a function of (seed, step, rank).

    Hence no generator's state has to be kept: a run resumed at any step draws what the uninterrupted one drew.
    """
    state = int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)
    torch.manual_seed(state)
