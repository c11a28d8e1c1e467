"""The demo's network and its gradient, written by hand, once for every device.

Conv 3x3x16, ReLU, conv 3x3x32, ReLU, max-pool 2, dense 10. All parameters lie in one flat float32 array, so that a step
moves, updates, saves and hashes one array.
"""

from __future__ import annotations

import math
from typing import Any, Final

from tazza.dnn import Array, Dnn

__all__ = ["CLASSES", "PARAMETER_COUNT", "SHAPES", "gradient", "initialise", "predict", "unpack"]

CLASSES: Final = 10
SHAPES: Final[tuple[tuple[int, ...], ...]] = ((16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (CLASSES, 512), (CLASSES,))
"""Filters and biases of both convolutions, weights and biases of the dense layer, in the order of the flat array."""

PARAMETER_COUNT: Final = sum(math.prod(shape) for shape in SHAPES)


def initialise(xp: Any, normals: Array) -> Array:
    """Scale standard normal numbers to the parameters that training starts from.

    Source: He, Zhang, Ren, Sun, "Delving deep into rectifiers", 2015: weights with variance 2 / fan-in, biases zero.

    Args:
        xp: namespace of the arrays.
        normals: (PARAMETER_COUNT,).
    """
    parts = []
    for part in unpack(xp, normals):
        scale = math.sqrt(2.0 / math.prod(part.shape[1:])) if part.ndim > 1 else 0.0
        parts.append(part * scale)
    return _pack(xp, parts)


def predict(xp: Any, dnn: Dnn, parameters: Array, images: Array) -> Array:
    """Return the logits (N, 10) of images (N, 1, 8, 8)."""
    return _forward(xp, dnn, unpack(xp, parameters), images)[-1]


def gradient(xp: Any, dnn: Dnn, parameters: Array, images: Array, labels: Array) -> Array:
    """Return, as one array, the gradient of the summed cross entropy, that sum, and the number of right answers."""
    layers = unpack(xp, parameters)
    w1, _, w2, _, w3, _ = layers
    first, second, pooled, flat, logits = _forward(xp, dnn, layers, images)
    loss, dlogits = dnn.softmax_cross_entropy(logits, labels, reduction="sum")
    dflat, dw3, db3 = dnn.linear_backward(dlogits, flat, w3)
    dpooled = xp.reshape(dflat, pooled.shape)
    dsecond = dnn.max_pool2d_backward(dpooled, second, pooled, 2)
    dfirst, dw2, db2 = dnn.conv2d_backward(dsecond, first, w2, y=second, padding=1, activation="relu")
    _, dw1, db1 = dnn.conv2d_backward(dfirst, images, w1, y=first, padding=1, activation="relu", need_dx=False)
    right = xp.sum(xp.astype(xp.argmax(logits, axis=1) == labels, parameters.dtype))
    return _pack(xp, [dw1, db1, dw2, db2, dw3, db3, loss, right])


def _forward(xp: Any, dnn: Dnn, layers: list[Array], images: Array) -> tuple[Array, Array, Array, Array, Array]:
    w1, b1, w2, b2, w3, b3 = layers
    first = dnn.conv2d(images, w1, b1, padding=1, activation="relu")
    second = dnn.conv2d(first, w2, b2, padding=1, activation="relu")
    pooled = dnn.max_pool2d(second, 2)
    flat = xp.reshape(pooled, (pooled.shape[0], -1))
    return first, second, pooled, flat, dnn.linear(flat, w3, b3)


def unpack(xp: Any, parameters: Array) -> list[Array]:
    """Return views of the layers' parameters in the flat array."""
    parts, start = [], 0
    for shape in SHAPES:
        end = start + math.prod(shape)
        parts.append(xp.reshape(parameters[start:end], shape))
        start = end
    return parts


def _pack(xp: Any, parts: list[Array]) -> Array:
    return xp.concat([xp.reshape(part, (-1,)) for part in parts])
