"""A small made-up data set and a short run for tests that start many runs; no scikit-learn, so processes start fast."""

from __future__ import annotations

from typing import Any

import numpy as np

import tazza as tz
from tazza.demo import Outcome, Settings, run
from tazza.demo import digits as digits

__all__ = ["REAL_SHAPES", "SETTINGS", "STEPS_PER_EPOCH", "TOTAL_STEPS", "load", "small_run"]

SETTINGS = Settings(epochs=4, batch_size=12, shards=2)
REAL_SHAPES = Settings(epochs=3)
_IMAGES = 42
STEPS_PER_EPOCH = SETTINGS.steps_per_epoch(_IMAGES)
TOTAL_STEPS = SETTINGS.steps(_IMAGES)


def load(order: np.ndarray[Any, np.dtype[Any]]) -> digits.Digits:
    """Stand in for `tazza.demo.digits.load`."""
    random = np.random.default_rng(int(order[0]))
    images = random.random((_IMAGES + 8, 1, 8, 8), dtype=np.float32)
    labels = random.integers(0, 10, _IMAGES + 8)
    return digits.Digits(images[:-8], labels[:-8], images[-8:], labels[-8:])


def small_run(device: str, seed: int, checkpoint: str | None = None, settings: Settings = SETTINGS) -> Outcome:
    """Run the demo on the made-up data; the caller has put `load` in place."""
    with tz.open(device, seed=seed) as ctx:
        return run(ctx, settings, checkpoint=checkpoint)
