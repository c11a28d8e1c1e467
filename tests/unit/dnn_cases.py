"""One call of every DNN operation, by its name in the table, for tests that hold one implementation against another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import tazza as tz

__all__ = ["CASES", "Array", "Case", "draw_array", "numeric_gradient"]

Array = np.ndarray[Any, np.dtype[Any]]


class Case(NamedTuple):
    """A call and its arrays, of float64 or int64, in the order of the function's parameters after `dnn`."""

    call: Callable[..., Any]
    arrays: tuple[Array, ...]

    def inputs(self, dtype: str) -> list[Array]:
        """The arrays, those of floats as `dtype`."""
        return [one.astype(dtype) if one.dtype.kind == "f" else one for one in self.arrays]


def draw_array(seed: int, *shape: int, dtype: str = "float64") -> Array:
    """Normal numbers, the same for a seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def numeric_gradient(loss: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences; exact up to rounding for functions that are linear or quadratic in each element."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        plus, minus = at.copy(), at.copy()
        plus[index] += step
        minus[index] -= step
        gradient[index] = (loss(plus) - loss(minus)) / (2 * step)
    return gradient


_IMAGES, _ROWS, _FILTERS = draw_array(0, 2, 3, 6, 5), draw_array(1, 4, 6), draw_array(2, 4, 3, 3, 3)
_CHANNELS = draw_array(3, 3), draw_array(4, 3)
_MEAN, _VARIANCE = _IMAGES.mean((0, 2, 3)), _IMAGES.var((0, 2, 3))
_LEFT, _RIGHT = draw_array(5, 2, 3, 4), draw_array(6, 2, 4, 5)
_SCALE = draw_array(7, 5), draw_array(8, 5)
_ROW_STATISTICS = _IMAGES.mean(-1), _IMAGES.var(-1)
_MASK = np.random.default_rng(9).random((4, 6)) < 0.7
_POOL: dict[str, Any] = {"stride": 2, "padding": 1}

CASES: dict[str, Case] = {
    "conv2d": Case(
        lambda dnn, x, w, b: dnn.conv2d(x, w, b, padding=1, activation="sigmoid"),
        (_IMAGES, _FILTERS, draw_array(10, 4)),
    ),
    "conv2d.backward": Case(
        lambda dnn, dy, x, w: dnn.conv2d_backward(dy, x, w, y=dnn.conv2d(x, w, activation="tanh"), activation="tanh"),
        (draw_array(11, 2, 4, 4, 3), _IMAGES, _FILTERS),
    ),
    "linear": Case(
        lambda dnn, x, w, b: dnn.linear(x, w, b, activation="tanh"), (_ROWS, draw_array(12, 3, 6), draw_array(13, 3))
    ),
    "linear.backward": Case(
        lambda dnn, dy, x, w, y: dnn.linear_backward(dy, x, w, y=y, activation="sigmoid"),
        (draw_array(14, 4, 3), _ROWS, draw_array(12, 3, 6), np.random.default_rng(15).random((4, 3))),
    ),
    "matmul": Case(
        lambda dnn, a, b, bias: dnn.matmul(a, b, bias, activation="relu"), (_LEFT, _RIGHT, draw_array(16, 5))
    ),
    "matmul.backward": Case(
        lambda dnn, dy, a, b, y: dnn.matmul_backward(dy, a, b, y=y, activation="tanh"),
        (draw_array(17, 2, 3, 5), _LEFT, _RIGHT, np.tanh(draw_array(18, 2, 3, 5))),
    ),
    "activate": Case(
        lambda dnn, x: tuple(dnn.activate(x, kind) for kind in ("relu", "sigmoid", "tanh", "gelu", "silu")), (_ROWS,)
    ),
    "activate.backward": Case(
        lambda dnn, dy, x: tuple(
            dnn.activate_backward(dy, kind, x=x, y=dnn.activate(x, kind))
            for kind in ("relu", "sigmoid", "tanh", "gelu", "silu")
        ),
        (draw_array(19, 4, 6), _ROWS),
    ),
    "max_pool2d": Case(lambda dnn, x: dnn.max_pool2d(x, 3, **_POOL), (_IMAGES,)),
    "max_pool2d.backward": Case(
        lambda dnn, dy, x: dnn.max_pool2d_backward(dy, x, dnn.max_pool2d(x, 3, **_POOL), 3, **_POOL),
        (draw_array(20, 2, 3, 3, 3), _IMAGES),
    ),
    "avg_pool2d": Case(lambda dnn, x: dnn.avg_pool2d(x, 3, count_padding=False, **_POOL), (_IMAGES,)),
    "avg_pool2d.backward": Case(
        lambda dnn, dy, x: dnn.avg_pool2d_backward(dy, x, 3, count_padding=False, **_POOL),
        (draw_array(20, 2, 3, 3, 3), _IMAGES),
    ),
    "batch_norm": Case(lambda dnn, x, gamma, beta: dnn.batch_norm(x, gamma, beta), (_IMAGES, *_CHANNELS)),
    "batch_norm.backward": Case(
        lambda dnn, dy, x, gamma, mean, variance: dnn.batch_norm_backward(dy, x, gamma, mean, variance),
        (draw_array(21, 2, 3, 6, 5), _IMAGES, _CHANNELS[0], _MEAN, _VARIANCE),
    ),
    "batch_norm_inference": Case(
        lambda dnn, x, gamma, beta, mean, variance: dnn.batch_norm_inference(x, gamma, beta, mean, variance),
        (_IMAGES, *_CHANNELS, _CHANNELS[1], _CHANNELS[0] ** 2),
    ),
    "batch_norm_inference.backward": Case(
        lambda dnn, dy, x, gamma, mean, variance: dnn.batch_norm_inference_backward(dy, x, gamma, mean, variance),
        (draw_array(21, 2, 3, 6, 5), _IMAGES, _CHANNELS[0], _CHANNELS[1], _CHANNELS[0] ** 2),
    ),
    "layer_norm": Case(lambda dnn, x, gamma, beta: dnn.layer_norm(x, gamma, beta), (_IMAGES, *_SCALE)),
    "layer_norm.backward": Case(
        lambda dnn, dy, x, gamma, mean, variance: dnn.layer_norm_backward(dy, x, gamma, mean, variance),
        (draw_array(22, 2, 3, 6, 5), _IMAGES, _SCALE[0], *_ROW_STATISTICS),
    ),
    "dropout": Case(lambda dnn, x: dnn.dropout(x, 0.3, tz.Generator(5)), (_ROWS,)),
    "dropout.backward": Case(lambda dnn, dy, mask: dnn.dropout_backward(dy, mask, 0.3), (_ROWS, _MASK)),
    "softmax": Case(lambda dnn, x: dnn.softmax(x), (_ROWS,)),
    "softmax.backward": Case(
        lambda dnn, dy, x: dnn.softmax_backward(dy, dnn.softmax(x)), (draw_array(23, 4, 6), _ROWS)
    ),
    "softmax_cross_entropy": Case(
        lambda dnn, logits, labels: dnn.softmax_cross_entropy(logits, labels), (_ROWS, np.array([0, 5, 2, 2]))
    ),
}
