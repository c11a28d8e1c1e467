"""Level 4: neural-network operations against plain loops in float64, and their gradients against differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.spi import Level
from tazza.testing.contract.battery import TIMEOUT, Array, Target

LEVEL = Level.DNN


def close(actual: Array, expected: Array) -> None:
    """Compare float32 results with what float64 gives."""
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)


def run(ctx: tz.Context, function: Callable[..., Any], *arrays: Array) -> list[Array]:
    """Run ``function(dnn, *arrays)`` as a task on float32 arrays of the device; its results in the host."""
    task = ctx.launch(
        lambda *given: function(tz.current().dnn, *given), *(ctx.asarray(array.astype("float32")) for array in arrays)
    )
    result = task.result(timeout=TIMEOUT)
    return [ctx.to_numpy(one) for one in (result if isinstance(result, tuple) else (result,))]


def plain_conv2d(x: Array, w: Array, stride: int, padding: int, dilation: int, groups: int) -> Array:
    """Correlate by the formula."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    reach = [dilation * (size - 1) + 1 for size in w.shape[2:]]
    rows, columns = ((padded.shape[axis + 2] - reach[axis]) // stride + 1 for axis in (0, 1))
    y = np.zeros((x.shape[0], w.shape[0], rows, columns))
    channels = w.shape[1]
    for out in range(w.shape[0]):
        first = channels * (out // (w.shape[0] // groups))
        for i in range(rows):
            for j in range(columns):
                top, left = i * stride, j * stride
                window = padded[:, first : first + channels, top : top + reach[0], left : left + reach[1]]
                y[:, out, i, j] = (window[:, :, ::dilation, ::dilation] * w[out]).sum((1, 2, 3))
    return y


def normal(target: Target, *shape: int) -> Array:
    """Inputs, the same for a seed."""
    return np.random.default_rng([target.seed, *shape]).standard_normal(shape).astype("float32").astype("float64")


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2)]
)
def test_conv2d(target: Target, stride: int, padding: int, dilation: int, groups: int) -> None:
    x, w, bias = normal(target, 2, 4, 7, 6), normal(target, 6, 4 // groups, 3, 3), normal(target, 6)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x, w, b: dnn.conv2d(x, w, b, activation="relu", **options), x, w, bias)
    expected = np.maximum(plain_conv2d(x, w, stride, padding, dilation, groups) + bias[:, None, None], 0)
    close(y, expected)


def test_conv2d_backward(target: Target) -> None:
    x, w, dy = normal(target, 2, 3, 5, 5), normal(target, 4, 3, 3, 3), normal(target, 2, 4, 5, 5)
    with target.open() as ctx:
        dx, dw, dbias = run(ctx, lambda dnn, dy, x, w: dnn.conv2d_backward(dy, x, w, padding=1), dy, x, w)
    check_gradient(dx, lambda direction: plain_conv2d(direction, w, 1, 1, 1, 1), dy)
    check_gradient(dw, lambda direction: plain_conv2d(x, direction, 1, 1, 1, 1), dy)
    close(dbias, dy.sum((0, 2, 3)))


def test_linear_and_its_gradient(target: Target) -> None:
    x, w, bias, dy = normal(target, 5, 7), normal(target, 3, 7), normal(target, 3), normal(target, 5, 3)
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x, w, b: dnn.linear(x, w, b), x, w, bias)
        dx, dw, dbias = run(ctx, lambda dnn, dy, x, w: dnn.linear_backward(dy, x, w), dy, x, w)
    close(y, x @ w.T + bias)
    close(dx, dy @ w)
    close(dw, dy.T @ x)
    close(dbias, dy.sum(0))


def test_matmul_and_its_gradient(target: Target) -> None:
    a, b, bias, dy = normal(target, 2, 3, 4), normal(target, 2, 4, 5), normal(target, 5), normal(target, 2, 3, 5)
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, a, b: dnn.matmul(a, b), a, b)
        (fused,) = run(ctx, lambda dnn, a, b, bias: dnn.matmul(a, b, bias, activation="tanh"), a, b, bias)
        da, db, dbias = run(ctx, lambda dnn, dy, a, b: dnn.matmul_backward(dy, a, b), dy, a, b)
    close(y, a @ b)
    close(fused, np.tanh(a @ b + bias))
    close(da, dy @ b.swapaxes(1, 2))
    close(db, a.swapaxes(1, 2) @ dy)
    close(dbias, dy.sum((0, 1)))


def test_relu_and_its_gradient(target: Target) -> None:
    x, dy = normal(target, 4, 9), normal(target, 4, 9)
    x[0, :2] = 0, np.nan
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x: dnn.relu(x), x)
        (dx,) = run(ctx, lambda dnn, dy, y: dnn.relu_backward(dy, y), dy, y)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    close(dx, np.where(x > 0, dy, 0))


def test_max_pool2d_and_its_gradient(target: Target) -> None:
    x, dy = normal(target, 2, 3, 6, 4), normal(target, 2, 3, 3, 2)
    windows = x.reshape(2, 3, 3, 2, 2, 2)
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x: dnn.max_pool2d(x, 2), x)
        (dx,) = run(ctx, lambda dnn, dy, x, y: dnn.max_pool2d_backward(dy, x, y, 2), dy, x, y)
    close(y, windows.max((3, 5)))
    largest = windows == windows.max((3, 5), keepdims=True)
    close(dx, (largest * dy[:, :, :, None, :, None]).reshape(x.shape))


def test_of_equal_maxima_the_first_takes_the_gradient(target: Target) -> None:
    x, dy = np.ones((1, 1, 2, 2)), np.full((1, 1, 1, 1), 5.0)
    with target.open() as ctx:
        (dx,) = run(ctx, lambda dnn, dy, x: dnn.max_pool2d_backward(dy, x, dnn.max_pool2d(x, 2), 2), dy, x)
    assert dx.tolist() == [[[[5, 0], [0, 0]]]]


def test_softmax_cross_entropy(target: Target) -> None:
    logits, labels = 3 * normal(target, 8, 10), np.arange(8) % 10
    with target.open() as ctx:
        task = ctx.launch(
            lambda x, t: tz.current().dnn.softmax_cross_entropy(x, t),
            ctx.asarray(logits.astype("float32")),
            ctx.asarray(labels.astype("int32")),
        )
        loss, gradient = (ctx.to_numpy(one) for one in task.result(timeout=TIMEOUT))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    close(loss, np.asarray(-np.log(shares[np.arange(8), labels]).mean()))
    close(gradient, (shares - np.eye(10)[labels]) / 8)


def check_gradient(gradient: Array, function: Callable[[Array], Array], dy: Array) -> None:
    """Compare the gradient of ``sum(dy * function(x))``, of a linear function, with its slope in some directions."""
    directions = np.random.default_rng(0)
    for _ in range(8):
        direction = np.asarray(directions.standard_normal(gradient.shape))
        expected = (dy * function(direction)).sum()
        assert abs((gradient * direction).sum() - expected) <= 1e-4 * (1 + abs(expected))
