"""Level 4: neural-network operations against plain loops in float64, and their gradients against differences."""

from __future__ import annotations

import math
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


def test_a_fused_relu_lets_no_gradient_through_nan_either(target: Target) -> None:
    x, w, dy = normal(target, 1, 1, 3, 5), normal(target, 2, 1, 1, 1), normal(target, 1, 2, 3, 5)
    x[0, 0, 1, 2] = np.nan
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x, w: dnn.conv2d(x, w, activation="relu"), x, w)
        dx, _, dbias = run(
            ctx, lambda dnn, dy, x, w, y: dnn.conv2d_backward(dy, x, w, y=y, activation="relu"), dy, x, w, y
        )
    passed = np.where(y > 0, dy, 0)
    assert np.isnan(y).sum() == 2
    close(dx[0, 0], (passed[0] * w[:, :, 0, 0, None]).sum(0))
    close(dbias, passed.sum((0, 2, 3)))


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


@pytest.mark.parametrize("kind", ["sigmoid", "tanh", "gelu", "silu"])
def test_activations_and_their_gradients(target: Target, kind: str) -> None:
    x, dy = 2 * normal(target, 4, 9), normal(target, 4, 9)
    expected, slope = activation_of(kind, x)
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x: dnn.activate(x, kind), x)
        (dx,) = run(ctx, lambda dnn, dy, x, y: dnn.activate_backward(dy, kind, x=x, y=y), dy, x, expected)
    close(y, expected)
    close(dx, dy * slope)


def activation_of(kind: str, x: Array) -> tuple[Array, Array]:
    """An activation and its derivative."""
    share = 1 / (1 + np.exp(-x))
    below = np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in x.ravel()]).reshape(x.shape)
    values = {
        "sigmoid": (share, share * (1 - share)),
        "tanh": (np.tanh(x), 1 - np.tanh(x) ** 2),
        "gelu": (x * below, below + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
        "silu": (x * share, share + x * share * (1 - share)),
    }
    return values[kind]


def test_avg_pool2d_and_its_gradient(target: Target) -> None:
    x, dy = normal(target, 2, 3, 6, 4), normal(target, 2, 3, 3, 2)
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x: dnn.avg_pool2d(x, 2), x)
        (dx,) = run(ctx, lambda dnn, dy, x: dnn.avg_pool2d_backward(dy, x, 2), dy, x)
        (padded,) = run(ctx, lambda dnn, x: dnn.avg_pool2d(x, 2, padding=1, count_padding=False), x)
    close(y, x.reshape(2, 3, 3, 2, 2, 2).mean((3, 5)))
    close(dx, dy.repeat(2, axis=2).repeat(2, axis=3) / 4)
    close(padded[:, :, 0, 0], x[:, :, 0, 0])


def test_batch_norm_and_its_gradient(target: Target) -> None:
    x, gamma, beta, dy = (normal(target, *shape) for shape in ((3, 4, 5, 2), (4,), (4,), (5, 3, 4, 2)))
    dy = dy.transpose(1, 2, 0, 3)  # (3, 4, 5, 2), not the values of x
    axes, mean, variance = (0, 2, 3), x.mean((0, 2, 3)), x.var((0, 2, 3))
    spread = (slice(None), None, None)
    normed = (x - mean[spread]) / np.sqrt(variance[spread] + 1e-5)
    with target.open() as ctx:
        y, found_mean, found_variance = run(ctx, lambda dnn, *given: dnn.batch_norm(*given), x, gamma, beta)
        (frozen,) = run(ctx, lambda dnn, *given: dnn.batch_norm_inference(*given), x, gamma, beta, mean, variance)
        dx, dgamma, dbeta = run(ctx, lambda dnn, *given: dnn.batch_norm_backward(*given), dy, x, gamma, mean, variance)
        dx_frozen, *sums = run(
            ctx, lambda dnn, *given: dnn.batch_norm_inference_backward(*given), dy, x, gamma, mean, variance
        )
    expected = normed * gamma[spread] + beta[spread]
    for one, wanted in ((y, expected), (frozen, expected), (found_mean, mean), (found_variance, variance)):
        close(one, wanted)
    scale = gamma[spread] / np.sqrt(variance[spread] + 1e-5)
    for one in (dgamma, sums[0]):
        close(one, (dy * normed).sum(axes))
    for one in (dbeta, sums[1]):
        close(one, dy.sum(axes))
    close(dx_frozen, dy * scale)
    through = dy.mean(axes)[spread] + normed * (dy * normed).mean(axes)[spread]
    close(dx, (dy - through) * scale)


def test_layer_norm_and_its_gradient(target: Target) -> None:
    x, gamma, beta, dy = (normal(target, *shape) for shape in ((6, 2, 8), (2, 8), (2, 8), (8, 2, 6)))
    dy = dy.transpose(2, 1, 0)
    axes, mean, variance = (1, 2), x.mean((1, 2)), x.var((1, 2))
    root = np.sqrt(variance[:, None, None] + 1e-5)
    normed = (x - mean[:, None, None]) / root
    with target.open() as ctx:
        y, found_mean, found_variance = run(ctx, lambda dnn, *given: dnn.layer_norm(*given), x, gamma, beta)
        dx, dgamma, dbeta = run(ctx, lambda dnn, *given: dnn.layer_norm_backward(*given), dy, x, gamma, mean, variance)
    for one, wanted in ((y, normed * gamma + beta), (found_mean, mean), (found_variance, variance)):
        close(one, wanted)
    close(dgamma, (dy * normed).sum(0))
    close(dbeta, dy.sum(0))
    scaled = dy * gamma
    close(
        dx,
        (scaled - scaled.mean(axes, keepdims=True) - normed * (scaled * normed).mean(axes, keepdims=True)) / root,
    )


def test_dropout_draws_the_documented_bits(target: Target) -> None:
    x = normal(target, 5, 8)
    with target.open() as ctx:
        y, mask = run(ctx, lambda dnn, x: dnn.dropout(x, 0.25, tz.Generator(11)), x)
        task = ctx.launch(
            lambda dy, mask: tz.current().dnn.dropout_backward(dy, mask, 0.25),
            ctx.asarray(x.astype("float32")),
            ctx.asarray(mask),
        )
        dx = ctx.to_numpy(task.result(timeout=TIMEOUT))
    kept = tz.Generator(11).random(40, dtype="float32").reshape(5, 8) >= 0.25
    np.testing.assert_array_equal(mask, kept)
    for one in (y, dx):
        close(one, np.where(kept, x / 0.75, 0))


def test_softmax_and_its_gradient(target: Target) -> None:
    x, dy = 3 * normal(target, 4, 7), normal(target, 4, 7)
    powers = np.exp(x - x.max(1, keepdims=True))
    expected = powers / powers.sum(1, keepdims=True)
    with target.open() as ctx:
        (y,) = run(ctx, lambda dnn, x: dnn.softmax(x), x)
        (dx,) = run(ctx, lambda dnn, dy, y: dnn.softmax_backward(dy, y), dy, expected)
    close(y, expected)
    close(dx, expected * (dy - (dy * expected).sum(1, keepdims=True)))


def check_gradient(gradient: Array, function: Callable[[Array], Array], dy: Array) -> None:
    """Compare the gradient of ``sum(dy * function(x))``, of a linear function, with its slope in some directions."""
    directions = np.random.default_rng(0)
    for _ in range(8):
        direction = np.asarray(directions.standard_normal(gradient.shape))
        expected = (dy * function(direction)).sum()
        assert abs((gradient * direction).sum() - expected) <= 1e-4 * (1 + abs(expected))
