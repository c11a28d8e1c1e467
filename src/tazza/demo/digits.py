"""The handwritten digits of scikit-learn, split by a permutation.

Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998:
1,797 images of 8 x 8 with values 0 to 16. They ship inside scikit-learn, so that nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tazza.errors import UnsupportedError

__all__ = ["COUNT", "HELD_OUT", "Digits", "load"]

COUNT = 1797
HELD_OUT = 360
"""So many images at the end of the permutation are never seen in training."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Digits:
    """Images (N, 1, 8, 8) as float32 of 0 to 1 and labels (N,) as int64, on the host."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def load(order: Array) -> Digits:
    """Load the digits and split them.

    Args:
        order: a permutation of ``range(COUNT)``; its last `HELD_OUT` elements are held out.

    Raises:
        UnsupportedError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnsupportedError("the demo's images come with scikit-learn: pip install 'tazza[demo]'") from error
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels[order].reshape(COUNT, 1, 8, 8) / 16).astype(np.float32)
    answers = labels[order].astype(np.int64)
    return Digits(images[:-HELD_OUT], answers[:-HELD_OUT], images[-HELD_OUT:], answers[-HELD_OUT:])
