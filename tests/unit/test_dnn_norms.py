"""Normalisation and softmax of the reference against the formulas, and their gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tazza.dnn import ReferenceDnn
from tests.unit.dnn_cases import Array, draw_array, numeric_gradient

DNN = ReferenceDnn(xp)
SEEDS = st.integers(0, 2**16)
BATCHES = st.tuples(st.integers(1, 3), st.integers(1, 3)) | st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)
)


def check_gradients(
    function: Callable[..., Array], dy: Array, arrays: list[Array], gradients: tuple[Array, ...]
) -> None:
    """Compare gradients with differences of ``sum(function(*arrays) * dy)`` in each of its first arguments."""
    for number, gradient in enumerate(gradients):

        def loss(at: Array, number: int = number) -> float:
            return float(np.sum(function(*arrays[:number], at, *arrays[number + 1 :]) * dy))

        expected = numeric_gradient(loss, arrays[number])
        assert gradient.shape == arrays[number].shape
        np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-6)


# Batch normalisation -------------------------------------------------------------------------------------------------


def by_channel(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Array:
    """The formula, one channel at a time."""
    y = np.empty_like(x)
    for channel in range(x.shape[1]):
        normal = (x[:, channel] - mean[channel]) / np.sqrt(variance[channel] + epsilon)
        y[:, channel] = gamma[channel] * normal + beta[channel]
    return y


@settings(max_examples=40, deadline=None)
@given(BATCHES, SEEDS, st.sampled_from([1e-5, 0.1, 2]))
def test_batch_norm_is_the_formula(shape: tuple[int, ...], seed: int, epsilon: float) -> None:
    x, gamma, beta = draw_array(seed, *shape), draw_array(seed + 1, shape[1]), draw_array(seed + 2, shape[1])
    y, mean, variance = DNN.batch_norm(x, gamma, beta, epsilon=epsilon)
    for channel in range(shape[1]):
        np.testing.assert_allclose(mean[channel], x[:, channel].mean(), atol=1e-14)
        np.testing.assert_allclose(variance[channel], x[:, channel].var(), atol=1e-14)
    np.testing.assert_allclose(y, by_channel(x, gamma, beta, mean, variance, epsilon), rtol=1e-11, atol=1e-12)
    single = DNN.batch_norm(*(one.astype("f4") for one in (x, gamma, beta)), epsilon=epsilon)
    for one, expected in zip(single, (y, mean, variance), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-3 if epsilon < 1e-3 else 1e-5)
    frozen = DNN.batch_norm_inference(x, gamma, beta, mean, variance, epsilon=epsilon)
    np.testing.assert_allclose(frozen, y, rtol=1e-12, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(BATCHES, SEEDS)
def test_batch_norm_gradients(shape: tuple[int, ...], seed: int) -> None:
    # An epsilon of the size of the variances keeps the differences exact also where a channel has two elements.
    x, gamma, beta, dy = (draw_array(seed + n, *one) for n, one in enumerate((shape, shape[1:2], shape[1:2], shape)))
    _, mean, variance = DNN.batch_norm(x, gamma, beta, epsilon=0.1)
    gradients = DNN.batch_norm_backward(dy, x, gamma, mean, variance, epsilon=0.1)
    check_gradients(lambda *given: DNN.batch_norm(*given, epsilon=0.1)[0], dy, [x, gamma, beta], gradients)
    mean, variance = draw_array(seed + 4, shape[1]), draw_array(seed + 5, shape[1]) ** 2
    gradients = DNN.batch_norm_inference_backward(dy, x, gamma, mean, variance, epsilon=0.1)

    def frozen(x: Array, gamma: Array, beta: Array) -> Array:
        y: Array = DNN.batch_norm_inference(x, gamma, beta, mean, variance, epsilon=0.1)
        return y

    check_gradients(frozen, dy, [x, gamma, beta], gradients)


def test_rows_are_images_of_one_element() -> None:
    x, gamma, beta, dy = draw_array(0, 7, 3), draw_array(1, 3), draw_array(2, 3), draw_array(3, 7, 3)
    image = x[:, :, None, None]
    for one, other in zip(DNN.batch_norm(x, gamma, beta), DNN.batch_norm(image, gamma, beta), strict=True):
        np.testing.assert_allclose(one, np.squeeze(other).reshape(one.shape), rtol=1e-14)
    _, mean, variance = DNN.batch_norm(x, gamma, beta)
    dx = DNN.batch_norm_backward(dy, x, gamma, mean, variance)[0]
    other = DNN.batch_norm_backward(dy[:, :, None, None], image, gamma, mean, variance)[0]
    np.testing.assert_allclose(dx, other[:, :, 0, 0], rtol=1e-14)


def test_a_large_mean_does_not_cost_the_variance() -> None:
    noise = draw_array(0, 64, 2)
    x = (noise + 1000.0).astype("float32")
    _, _, variance = DNN.batch_norm(x, np.ones(2, "float32"), np.zeros(2, "float32"))
    np.testing.assert_allclose(variance, x.astype("float64").var(0), rtol=1e-5)
    _, _, variance = DNN.layer_norm(x.T.copy(), np.ones(64, "float32"), np.zeros(64, "float32"))
    np.testing.assert_allclose(variance, x.astype("float64").var(0), rtol=1e-5)


def test_equal_elements_become_the_shift() -> None:
    x, gamma, beta = np.full((3, 2, 2, 2), 7.0), np.full(2, 5.0), np.array([1.0, -1.0])
    y, mean, variance = DNN.batch_norm(x, gamma, beta)
    assert mean.tolist() == [7.0, 7.0]
    assert variance.tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(y, np.broadcast_to(beta[:, None, None], x.shape))
    dx, dgamma, dbeta = DNN.batch_norm_backward(np.ones_like(x), x, gamma, mean, variance)
    assert not dx.any()
    assert not dgamma.any()
    assert dbeta.tolist() == [12.0, 12.0]


def test_nan_stays_in_its_channel_and_its_row() -> None:
    x = draw_array(0, 2, 3, 2, 2)
    x[1, 1, 0, 0] = np.nan
    y, mean, variance = DNN.batch_norm(x, np.ones(3), np.zeros(3))
    for one in (np.moveaxis(y, 1, 0), mean, variance):
        assert [bool(np.isnan(part).all()) for part in one] == [False, True, False]
        assert not np.isnan(one[0]).any()
    y, mean, variance = DNN.layer_norm(x, np.ones(2), np.zeros(2))
    assert (np.isnan(y).sum(), np.isnan(mean).sum(), np.isnan(variance).sum()) == (2, 1, 1)
    assert np.isnan(y[1, 1, 0]).all()


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2, 2), (2, 3, 0, 2)])
def test_empty_batches_pass_where_no_statistics_are_taken(shape: tuple[int, ...]) -> None:
    x, channel = np.zeros(shape, "float32"), np.ones(3, "float32")
    assert DNN.batch_norm_inference(x, channel, channel, channel, channel).shape == shape
    dx, dgamma, dbeta = DNN.batch_norm_inference_backward(x, x, channel, channel, channel)
    assert dx.shape == shape
    assert dgamma.tolist() == dbeta.tolist() == [0.0, 0.0, 0.0]


# Layer normalisation -------------------------------------------------------------------------------------------------


@st.composite
def layers(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    return tuple(shape), draw(st.integers(1, len(shape))), draw(SEEDS)


@settings(max_examples=40, deadline=None)
@given(layers())
def test_layer_norm_is_the_formula(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, count, seed = case
    before, after = shape[: len(shape) - count], shape[len(shape) - count :]
    x, gamma, beta = draw_array(seed, *shape), draw_array(seed + 1, *after), draw_array(seed + 2, *after)
    y, mean, variance = DNN.layer_norm(x, gamma, beta, epsilon=0.01)
    assert mean.shape == variance.shape == before
    for index in np.ndindex(before):
        row = x[index]
        np.testing.assert_allclose((mean[index], variance[index]), (row.mean(), row.var()), atol=1e-14)
        expected = gamma * (row - row.mean()) / np.sqrt(row.var() + 0.01) + beta
        np.testing.assert_allclose(y[index], expected, rtol=1e-11, atol=1e-12)
    single = DNN.layer_norm(*(one.astype("f4") for one in (x, gamma, beta)), epsilon=0.01)
    for one, wide in zip(single, (y, mean, variance), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, wide, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(layers())
def test_layer_norm_gradients(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, count, seed = case
    after = shape[len(shape) - count :]
    x, gamma, beta, dy = (draw_array(seed + n, *one) for n, one in enumerate((shape, after, after, shape)))
    _, mean, variance = DNN.layer_norm(x, gamma, beta, epsilon=0.1)
    gradients = DNN.layer_norm_backward(dy, x, gamma, mean, variance, epsilon=0.1)
    check_gradients(lambda *given: DNN.layer_norm(*given, epsilon=0.1)[0], dy, [x, gamma, beta], gradients)


def test_layers_of_no_rows() -> None:
    x, gamma = np.zeros((0, 4, 3)), np.ones((4, 3))
    y, mean, variance = DNN.layer_norm(x, gamma, gamma)
    assert (y.shape, mean.shape, variance.shape) == ((0, 4, 3), (0,), (0,))
    dx, dgamma, dbeta = DNN.layer_norm_backward(y, x, gamma, mean, variance)
    assert dx.shape == x.shape
    assert not dgamma.any()
    assert not dbeta.any()


# Softmax -------------------------------------------------------------------------------------------------------------

ROWS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@settings(max_examples=30, deadline=None)
@given(ROWS, SEEDS)
def test_softmax_is_the_formula(shape: tuple[int, ...], seed: int) -> None:
    x, dy = 3 * draw_array(seed, *shape), draw_array(seed + 1, *shape)
    y = DNN.softmax(x)
    for index in np.ndindex(shape[:-1]):
        np.testing.assert_allclose(y[index], np.exp(x[index]) / np.exp(x[index]).sum(), rtol=1e-12)
    check_gradients(DNN.softmax, dy, [x], (DNN.softmax_backward(dy, y),))
    single = DNN.softmax(x.astype("f4"))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, y, rtol=1e-5)


def test_softmax_of_large_and_masked_elements() -> None:
    x = np.array([[1e30, 0.0, -1e30], [3e38, 3e38, -np.inf]], "float32")
    with np.errstate(all="raise", under="ignore"):
        y = DNN.softmax(x)
    assert y.tolist() == [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    assert not DNN.softmax_backward(np.ones_like(y), y).any()


def test_softmax_of_rows_without_an_answer_is_nan() -> None:
    rows = np.array([[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0], [0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        y = DNN.softmax(rows)
    assert np.isnan(y).all(axis=1).tolist() == [True, True, True, False]
    assert y[3].tolist() == [0.5, 0.5]


def test_softmax_of_nothing() -> None:
    x: Any = np.zeros((0, 3))
    assert DNN.softmax(x).shape == DNN.softmax_backward(x, x).shape == (0, 3)
