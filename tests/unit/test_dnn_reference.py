"""The reference DNN against the formulas written as loops, and its gradients against finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tazza.dnn import Activation, ReferenceDnn
from tazza.errors import ArgumentError
from tests.unit.dnn_cases import Array, draw_array, numeric_gradient

DNN = ReferenceDnn(xp)


@dataclass(frozen=True)
class Conv:
    """One convolution: shapes and options."""

    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    options: dict[str, Any]
    seed: int


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    groups = draw(st.integers(1, 3))
    channels, filters = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    size = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(size, padding, dilation, strict=True)]
    image = tuple(extent + draw(st.integers(0, 3)) for extent in least)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Conv(
        x=(draw(st.integers(1, 2)), channels, image[0], image[1]),
        w=(filters, channels // groups, *size),
        options=options,
        seed=draw(st.integers(0, 2**16)),
    )


def naive_conv2d(x: Array, w: Array, bias: Array, options: dict[str, Any]) -> Array:
    """The sum in the docstring of `Dnn.conv2d`, term by term."""
    (sy, sx), (py, px), (dy, dx) = options["stride"], options["padding"], options["dilation"]
    count, channels, height, width = x.shape
    filters, per_group, kh, kw = w.shape
    oh, ow = (height + 2 * py - dy * (kh - 1) - 1) // sy + 1, (width + 2 * px - dx * (kw - 1) - 1) // sx + 1
    y = np.zeros((count, filters, oh, ow), x.dtype)
    for n, o, i, j in itertools.product(*map(range, y.shape)):
        total = bias[o]
        first = o // (filters // options["groups"]) * (channels // options["groups"])
        for c, k, m in itertools.product(range(per_group), range(kh), range(kw)):
            row, column = i * sy + k * dy - py, j * sx + m * dx - px
            if 0 <= row < height and 0 <= column < width:
                total += x[n, first + c, row, column] * w[o, c, k, m]
        y[n, o, i, j] = total
    return y


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_conv2d_is_the_formula(conv: Conv) -> None:
    x, w, bias = draw_array(conv.seed, *conv.x), draw_array(conv.seed + 1, *conv.w), draw_array(2, conv.w[0])
    expected = naive_conv2d(x, w, bias, conv.options)
    np.testing.assert_allclose(DNN.conv2d(x, w, bias, **conv.options), expected, rtol=1e-10, atol=1e-12)
    active = DNN.conv2d(x, w, bias, activation="relu", **conv.options)
    np.testing.assert_allclose(active, np.maximum(expected, 0), rtol=1e-10, atol=1e-12)
    single = DNN.conv2d(x.astype("f4"), w.astype("f4"), None, **conv.options)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected - bias[:, None, None], rtol=2e-4, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(convolutions())
def test_conv2d_gradients(conv: Conv) -> None:
    x, w, bias = draw_array(conv.seed, *conv.x), draw_array(conv.seed + 1, *conv.w), draw_array(2, conv.w[0])
    y = DNN.conv2d(x, w, bias, **conv.options)
    dy = draw_array(conv.seed + 3, *y.shape)
    dx, dw, dbias = DNN.conv2d_backward(dy, x, w, **conv.options)

    def loss(x: Array = x, w: Array = w, bias: Array = bias) -> float:
        return float(np.sum(DNN.conv2d(x, w, bias, **conv.options) * dy))

    assert dx is not None
    np.testing.assert_allclose(dx, numeric_gradient(lambda a: loss(x=a), x), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dw, numeric_gradient(lambda a: loss(w=a), w), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(dbias, numeric_gradient(lambda a: loss(bias=a), bias), rtol=1e-6, atol=1e-7)
    without, again, _ = DNN.conv2d_backward(dy, x, w, need_dx=False, **conv.options)
    assert without is None
    np.testing.assert_array_equal(again, dw)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_activation_gates_the_gradient(activation: Activation) -> None:
    x, w, bias = draw_array(0, 3, 4), draw_array(1, 5, 4), draw_array(2, 5)
    y = DNN.linear(x, w, bias, activation=activation)
    dy = draw_array(3, 3, 5)
    dx, dw, dbias = DNN.linear_backward(dy, x, w, y=y, activation=activation)

    def loss(x: Array = x, w: Array = w, bias: Array = bias) -> float:
        return float(np.sum(DNN.linear(x, w, bias, activation=activation) * dy))

    assert dx is not None
    np.testing.assert_allclose(dx, numeric_gradient(lambda a: loss(x=a), x), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(dw, numeric_gradient(lambda a: loss(w=a), w), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(dbias, numeric_gradient(lambda a: loss(bias=a), bias), rtol=1e-6, atol=1e-8)
    assert DNN.linear_backward(dy, x, w, y=y, activation=activation, need_dx=False)[0] is None


def test_conv2d_activation_gates_the_gradient() -> None:
    x, w, bias = draw_array(0, 2, 2, 4, 4), draw_array(1, 3, 2, 3, 3), draw_array(2, 3)
    y = DNN.conv2d(x, w, bias, padding=1, activation="relu")
    dy = draw_array(3, *y.shape)
    gated = DNN.conv2d_backward(dy, x, w, y=y, padding=1, activation="relu")
    plain = DNN.conv2d_backward(np.where(y > 0, dy, 0), x, w, padding=1)
    for one, other in zip(gated, plain, strict=True):
        np.testing.assert_array_equal(one, other)


@st.composite
def pools(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any], int]:
    window = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, size // 2)) for size in window)
    image = tuple(size + draw(st.integers(0, 3)) for size in window)
    options = {"window": window, "stride": stride, "padding": padding}
    return (draw(st.integers(1, 2)), draw(st.integers(1, 2)), *image), options, draw(st.integers(0, 2**16))


def naive_max_pool(x: Array, dy: Array | None, options: dict[str, Any]) -> tuple[Array, Array]:
    """Largest element of each window, and the gradient given to the first of them."""
    (kh, kw), (py, px) = options["window"], options["padding"]
    sy, sx = options["stride"] or (kh, kw)
    padded = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)), constant_values=-np.inf)
    oh, ow = (padded.shape[2] - kh) // sy + 1, (padded.shape[3] - kw) // sx + 1
    y, dx = np.zeros((*x.shape[:2], oh, ow)), np.zeros_like(padded)
    for n, c, i, j in itertools.product(*map(range, y.shape)):
        part = padded[n, c, i * sy : i * sy + kh, j * sx : j * sx + kw]
        row, column = np.unravel_index(np.argmax(part), part.shape)
        y[n, c, i, j] = part[row, column]
        if dy is not None:
            dx[n, c, i * sy + row, j * sx + column] += dy[n, c, i, j]
    return y, dx[:, :, py : py + x.shape[2], px : px + x.shape[3]]


@settings(max_examples=40, deadline=None)
@given(pools())
def test_max_pool2d(case: tuple[tuple[int, ...], dict[str, Any], int]) -> None:
    shape, options, seed = case
    x = np.random.default_rng(seed).integers(-2, 3, shape).astype(float)  # many ties
    y = DNN.max_pool2d(x, **options)
    dy = draw_array(seed, *y.shape)
    expected, expected_dx = naive_max_pool(x, dy, options)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(DNN.max_pool2d_backward(dy, x, y, **options), expected_dx, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 4), classes=st.integers(1, 5), seed=st.integers(0, 2**16), mean=st.booleans())
def test_softmax_cross_entropy(rows: int, classes: int, seed: int, mean: bool) -> None:
    logits = 3 * draw_array(seed, rows, classes)
    labels = np.random.default_rng(seed).integers(0, classes, rows)
    reduction: Any = "mean" if mean else "sum"
    loss, gradient = DNN.softmax_cross_entropy(logits, labels, reduction=reduction)
    losses = [np.log(np.sum(np.exp(row))) - row[label] for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(loss, np.mean(losses) if mean else np.sum(losses), rtol=1e-10, atol=1e-12)

    def only_loss(a: Array) -> float:
        return float(DNN.softmax_cross_entropy(a, labels, reduction=reduction)[0])

    np.testing.assert_allclose(gradient, numeric_gradient(only_loss, logits), rtol=1e-5, atol=1e-8)


def test_softmax_of_huge_logits_is_finite() -> None:
    logits = np.array([[1e4, -1e4], [3e38, 0.0]], dtype=np.float32)
    loss, gradient = DNN.softmax_cross_entropy(logits, np.array([0, 0]))
    assert loss == 0.0
    assert loss.dtype == gradient.dtype == np.float32
    assert np.all(gradient == 0)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid", "tanh"])
def test_matmul_and_its_gradient(activation: Activation) -> None:
    a, b, bias, dy = draw_array(0, 2, 3, 4), draw_array(1, 2, 4, 5), draw_array(2, 5), draw_array(3, 2, 3, 5)
    np.testing.assert_allclose(DNN.matmul(a, b), np.einsum("nij,njk->nik", a, b))
    y = DNN.matmul(a, b, bias, activation=activation)
    da, db, dbias = DNN.matmul_backward(dy, a, b, y=y, activation=activation)

    def loss(a: Array = a, b: Array = b, bias: Array = bias) -> float:
        return float(np.sum(DNN.matmul(a, b, bias, activation=activation) * dy))

    np.testing.assert_allclose(da, numeric_gradient(lambda v: loss(a=v), a), atol=1e-7)
    np.testing.assert_allclose(db, numeric_gradient(lambda v: loss(b=v), b), atol=1e-7)
    np.testing.assert_allclose(dbias, numeric_gradient(lambda v: loss(bias=v), bias), atol=1e-7)


def test_relu() -> None:
    x = np.array([-1.0, 0.0, 2.0, np.nan])
    np.testing.assert_array_equal(DNN.relu(x), [0.0, 0.0, 2.0, np.nan])
    np.testing.assert_array_equal(DNN.relu_backward(np.ones(3), x[:3]), [0.0, 0.0, 1.0])


def test_arguments_are_never_changed_and_results_are_fresh() -> None:
    x, w = draw_array(0, 2, 2, 4, 4), draw_array(1, 2, 2, 1, 1)
    dy = draw_array(2, 2, 2, 4, 4)
    before = x.tobytes(), w.tobytes(), dy.tobytes()
    results = [
        DNN.conv2d(x, w),
        *DNN.conv2d_backward(dy, x, w),
        DNN.max_pool2d(x, 1),
        DNN.max_pool2d_backward(dy, x, x, 1),
        DNN.relu(x),
        DNN.relu_backward(dy, x),
    ]
    for result in results:
        assert not any(np.shares_memory(result, argument) for argument in (x, w, dy))
        result[...] = 7.0
    assert before == (x.tobytes(), w.tobytes(), dy.tobytes())


def test_transposed_images_give_the_same() -> None:
    """NHWC memory is as good as NCHW: strides carry the layout."""
    x, w = draw_array(0, 2, 5, 6, 3), draw_array(1, 4, 3, 3, 3)
    strided = np.moveaxis(x, 3, 1)
    np.testing.assert_allclose(DNN.conv2d(strided, w), DNN.conv2d(np.ascontiguousarray(strided), w), rtol=1e-12)


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return np.zeros(shape, dtype)


X, W = zeros(1, 4, 5, 5), zeros(6, 4, 3, 3)
WRONG: list[tuple[str, Callable[[], object]]] = [
    ("x", lambda: DNN.conv2d(zeros(4, 5, 5), W)),
    ("x", lambda: DNN.conv2d(zeros(1, 4, 5, 5, dtype="float16"), W)),
    ("x", lambda: DNN.conv2d(zeros(1, 4, 2, 2), W)),
    ("w", lambda: DNN.conv2d(X, zeros(6, 3, 3, 3))),
    ("w", lambda: DNN.conv2d(X, zeros(6, 4, 3, 3, dtype="float64"))),
    ("w", lambda: DNN.conv2d(X, zeros(5, 2, 3, 3), groups=2)),
    ("w", lambda: DNN.conv2d(X, zeros(6, 4, 0, 3))),
    ("bias", lambda: DNN.conv2d(X, W, zeros(5))),
    ("bias", lambda: DNN.conv2d(X, W, zeros(6, dtype="float64"))),
    ("stride", lambda: DNN.conv2d(X, W, stride=0)),
    ("stride", lambda: DNN.conv2d(X, W, stride=(1, 2, 3))),  # type: ignore[arg-type]
    ("padding", lambda: DNN.conv2d(X, W, padding=-1)),
    ("padding", lambda: DNN.conv2d(X, W, padding="same")),  # type: ignore[arg-type]
    ("dilation", lambda: DNN.conv2d(X, W, dilation=1.5)),  # type: ignore[arg-type]
    ("groups", lambda: DNN.conv2d(X, W, groups=3)),
    ("groups", lambda: DNN.conv2d(X, W, groups=0)),
    ("activation", lambda: DNN.conv2d(X, W, activation="gelu")),  # type: ignore[arg-type]
    ("dy", lambda: DNN.conv2d_backward(zeros(1, 6, 5, 5), X, W)),
    ("dy", lambda: DNN.conv2d_backward(zeros(1, 6, 3, 3, dtype="float64"), X, W)),
    ("y", lambda: DNN.conv2d_backward(zeros(1, 6, 3, 3), X, W, activation="relu")),
    ("y", lambda: DNN.conv2d_backward(zeros(1, 6, 3, 3), X, W, y=zeros(1, 6, 3, 2), activation="relu")),
    ("x", lambda: DNN.linear(zeros(3), zeros(2, 3))),
    ("w", lambda: DNN.linear(zeros(2, 4), zeros(2, 3))),
    ("dy", lambda: DNN.linear_backward(zeros(2, 3), zeros(2, 4), zeros(2, 4))),
    ("a", lambda: DNN.matmul(zeros(2, 3, dtype="int32"), zeros(3, 2))),
    ("b", lambda: DNN.matmul(zeros(2, 3), zeros(2, 3))),
    ("b", lambda: DNN.matmul_backward(zeros(2, 2), zeros(2, 3), zeros(1, 3, 2))),
    ("a", lambda: DNN.matmul_backward(zeros(2), zeros(3), zeros(3, 2))),
    ("dy", lambda: DNN.relu_backward(zeros(2), zeros(3))),
    ("window", lambda: DNN.max_pool2d(X, 0)),
    ("padding", lambda: DNN.max_pool2d(X, 2, padding=2)),
    ("x", lambda: DNN.max_pool2d(X, 7)),
    ("y", lambda: DNN.max_pool2d_backward(zeros(1, 4, 2, 2), X, zeros(1, 4, 3, 3), 2)),
    ("logits", lambda: DNN.softmax_cross_entropy(zeros(2), zeros(2, dtype="int64"))),
    ("labels", lambda: DNN.softmax_cross_entropy(zeros(2, 3), zeros(3, dtype="int64"))),
    ("labels", lambda: DNN.softmax_cross_entropy(zeros(2, 3), zeros(2))),
    (
        "reduction",
        lambda: DNN.softmax_cross_entropy(zeros(2, 3), zeros(2, dtype="int64"), reduction="max"),  # type: ignore[arg-type]
    ),
]


@pytest.mark.parametrize(
    ("argument", "call"), WRONG, ids=[f"{number}-{name}" for number, (name, _) in enumerate(WRONG)]
)
def test_wrong_arguments_are_named(argument: str, call: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError, match=rf"^{argument}: "):
        call()
