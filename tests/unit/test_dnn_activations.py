"""Activations of the reference: values against the mathematics, gradients against finite differences, limits, NaN."""

from __future__ import annotations

import math

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tazza.dnn import Activation, ActivationKind, ReferenceDnn
from tazza.dnn.error_function import erfc
from tests.unit.dnn_cases import Array, draw_array, numeric_gradient

DNN = ReferenceDnn(xp)
KINDS: tuple[ActivationKind, ...] = ("relu", "sigmoid", "tanh", "gelu", "silu")
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


def exactly(kind: str, x: float) -> float:
    """The function by Python's own mathematics."""
    share = 1 / (1 + math.exp(-x)) if x > -700 else math.exp(x)
    values = {
        "relu": max(x, 0.0),
        "sigmoid": share,
        "tanh": math.tanh(x),
        "gelu": x * math.erfc(-x / math.sqrt(2)) / 2,
        "silu": x * share,
    }
    return values[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "rounding"), [("float64", 2.0**-53), ("float32", 2.0**-24)])
def test_values_are_right_to_some_roundings(kind: ActivationKind, dtype: str, rounding: float) -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), draw_array(0, 1000) * 1e-3]).astype(dtype)
    expected = np.array([exactly(kind, float(one)) for one in x])
    y = DNN.activate(x, kind)
    assert y.dtype == dtype
    # The argument of erfc is rounded once; its tail magnifies that by twice its square, at most 144.
    most = 320 if kind == "gelu" else 8
    np.testing.assert_allclose(y.astype("float64"), expected, rtol=most * rounding, atol=most * rounding * 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**16))
def test_gradients_are_differences(kind: ActivationKind, shape: tuple[int, ...], seed: int) -> None:
    x = np.asarray(draw_array(seed, *shape))
    x = np.asarray(x + np.copysign(1e-3, x))  # a step of the differences must not cross relu's edge
    dy = np.asarray(draw_array(seed + 1, *shape))
    dx = DNN.activate_backward(dy, kind, x=x, y=DNN.activate(x, kind))
    expected = numeric_gradient(lambda at: float(np.sum(DNN.activate(at, kind) * dy)), x)
    assert dx.shape == shape
    np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-9)


LIMITS = {
    "relu": ([0.0, 0.0, 0.0, math.inf], [0.0, 0.0, 0.0, 1.0]),
    "sigmoid": ([0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.25, 0.0]),
    "tanh": ([-1.0, -1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0]),
    "gelu": ([0.0, 0.0, 0.0, math.inf], [0.0, 0.0, 0.5, 1.0]),
    "silu": ([0.0, 0.0, 0.0, math.inf], [0.0, 0.0, 0.5, 1.0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_infinite_elements_take_the_limit_without_a_warning(kind: ActivationKind, dtype: str) -> None:
    x = np.array([-math.inf, -1e30, 0.0, math.inf], dtype)
    with np.errstate(all="raise", under="ignore"):
        y = DNN.activate(x, kind)
        dx = DNN.activate_backward(np.ones_like(x), kind, x=x, y=y)
    assert (y.tolist(), dx.tolist()) == LIMITS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan(kind: ActivationKind) -> None:
    x = np.array([math.nan, 1.0])
    y = DNN.activate(x, kind)
    assert np.isnan(y).tolist() == [True, False]
    dx = DNN.activate_backward(np.ones(2), kind, x=x, y=y)
    assert np.isnan(dx).tolist() == [kind != "relu", False]
    assert kind != "relu" or dx[0] == 0.0


def test_only_what_the_gradient_follows_from_is_needed() -> None:
    x, dy = draw_array(0, 3), draw_array(1, 3)
    for kind in KINDS:
        y = DNN.activate(x, kind)
        both = DNN.activate_backward(dy, kind, x=x, y=y)
        one = DNN.activate_backward(dy, kind, x=x) if kind in ("gelu", "silu") else DNN.activate_backward(dy, kind, y=y)
        np.testing.assert_array_equal(one, both)


def test_relu_has_methods_of_its_own() -> None:
    x, dy = draw_array(0, 5), draw_array(1, 5)
    np.testing.assert_array_equal(DNN.relu(x), DNN.activate(x, "relu"))
    np.testing.assert_array_equal(DNN.relu_backward(dy, DNN.relu(x)), np.where(x > 0, dy, 0))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh"])
def test_fused_is_the_same_as_apart(activation: Activation) -> None:
    assert activation is not None
    x, w, bias = draw_array(0, 2, 2, 4, 4), draw_array(1, 3, 2, 3, 3), draw_array(2, 3)
    y = DNN.conv2d(x, w, bias, padding=1, activation=activation)
    np.testing.assert_array_equal(y, DNN.activate(DNN.conv2d(x, w, bias, padding=1), activation))
    dy = draw_array(3, *y.shape)
    fused = DNN.conv2d_backward(dy, x, w, y=y, padding=1, activation=activation)
    before = DNN.activate_backward(dy, activation, y=y)
    for one, other in zip(fused, DNN.conv2d_backward(before, x, w, padding=1), strict=True):
        np.testing.assert_array_equal(one, other)
    rows, weights = draw_array(4, 5, 6), draw_array(5, 3, 6)
    y = DNN.linear(rows, weights, bias, activation=activation)
    same = DNN.matmul(rows, weights.T, bias, activation=activation)
    np.testing.assert_allclose(y, same, rtol=1e-13)
    dy = draw_array(6, 5, 3)
    dx, dw, dbias = DNN.linear_backward(dy, rows, weights, y=y, activation=activation)
    da, db, other = DNN.matmul_backward(dy, rows, weights.T, y=y, activation=activation)
    assert dx is not None
    for one, expected in ((da, dx), (db, dw.T), (other, dbias)):
        np.testing.assert_allclose(one, expected, rtol=1e-12, atol=1e-14)


# The error function --------------------------------------------------------------------------------------------------

EDGES = [0.0, 0.46875, np.nextafter(0.46875, 1), 4.0, np.nextafter(4.0, 5), 26.0]


@pytest.mark.parametrize(("dtype", "rounding", "end"), [("float64", 2.0**-53, 26.0), ("float32", 2.0**-24, 9.0)])
def test_erfc_is_right_to_16_roundings(dtype: str, rounding: float, end: float) -> None:
    draws = np.random.default_rng(0)
    parts = [draws.uniform(*ends, 4000) for ends in ((-6.0, 0.0), (-0.5, 0.5), (0.4, 4.1), (3.9, end))]
    x = np.concatenate([*parts, EDGES, np.negative(EDGES)]).astype(dtype)
    x = x[x <= end]
    expected = np.array([math.erfc(float(one)) for one in x])
    np.testing.assert_allclose(erfc(xp, x).astype("float64"), expected, rtol=16 * rounding)


def test_erfc_has_limits_and_keeps_nan() -> None:
    x: Array = np.array([-math.inf, -1e300, 0.0, 1e300, math.inf, math.nan])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(erfc(xp, x), [2.0, 2.0, 1.0, 0.0, 0.0, math.nan])
    assert erfc(xp, np.zeros((0, 3), "float32")).shape == (0, 3)
