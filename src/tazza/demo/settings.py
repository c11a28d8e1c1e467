"""What a run of the demo is told, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tazza.errors import ArgumentError

__all__ = ["Outcome", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the trained weights depend on besides the seed.

    The defaults were chosen on a part of the training images; the held-out images had no say in them.

    Attributes:
        epochs: passes over the training images.
        batch_size: images of a step.
        shards: parts of a batch, each one launched task; gradients are added in their order.
        learning_rate: at the start; it falls to zero along half a cosine.
        momentum: of stochastic gradient descent.

    Example:
        >>> Settings(epochs=3).steps(images=1437)
        135
    """

    epochs: int = 12
    batch_size: int = 32
    shards: int = 2
    learning_rate: float = 0.05
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "shards"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError.of(name, value, "an integer of 1 or more")
        if self.batch_size < self.shards:
            raise ArgumentError.of("batch_size", self.batch_size, f"{self.shards} or more, an image for each shard")

    def steps_per_epoch(self, images: int) -> int:
        """Return how many batches cover `images`; the last one may be smaller."""
        return -(-images // self.batch_size)

    def steps(self, images: int) -> int:
        """Return the number of steps of a whole run."""
        return self.epochs * self.steps_per_epoch(images)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the demo found.

    Attributes:
        device: where it ran.
        seed: of everything random in it.
        settings: what it was told.
        test_accuracy: share of the held-out images that were recognised.
        train_loss: mean cross entropy over the last epoch that was run, or None where none was.
        images_per_second: training images a second of this process's steps, evaluation left out.
        peak_bytes: most memory that was live in the context at once.
        steps_run: steps that this process made.
        resumed_at_step: steps that a checkpoint had made before, 0 without one.
        weights_sha256: of the trained weights as little-endian float32.
        predictions: (360,) the digit seen in each held-out image.
        labels: (360,) the digit that is there.
        images: (360, 8, 8) the held-out images.
        dnn, dnn_version: the library that computed the network's layers.
        arrays: name of the array library.
    """

    device: str
    seed: int
    settings: Settings
    test_accuracy: float
    train_loss: float | None
    images_per_second: float
    peak_bytes: int
    steps_run: int
    resumed_at_step: int
    weights_sha256: str
    predictions: np.ndarray[Any, np.dtype[np.int64]]
    labels: np.ndarray[Any, np.dtype[np.int64]]
    images: np.ndarray[Any, np.dtype[np.float32]]
    dnn: str
    dnn_version: str
    arrays: str
