"""The hand-written gradient against finite differences, and the augmentation against slices."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np
import pytest

import tazza as tz
from tazza.demo import network, steps
from tazza.dnn import ReferenceDnn

DNN = ReferenceDnn(xp)


def test_the_gradient_is_that_of_the_loss() -> None:
    random = np.random.default_rng(0)
    parameters = network.initialise(xp, random.standard_normal(network.PARAMETER_COUNT))
    images, labels = random.random((3, 1, 8, 8)), np.array([3, 0, 9])
    result = network.gradient(xp, DNN, parameters, images, labels)
    assert result.shape == (network.PARAMETER_COUNT + 2,)

    def loss(at: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        logits = network.predict(xp, DNN, at, images)
        return float(DNN.softmax_cross_entropy(logits, labels, reduction="sum")[0])

    assert result[-2] == pytest.approx(loss(parameters))
    logits = network.predict(xp, DNN, parameters, images)
    assert result[-1] == np.sum(np.argmax(logits, axis=1) == labels)
    for index in random.choice(network.PARAMETER_COUNT, 200, replace=False):
        step = np.zeros_like(parameters)
        step[index] = 1e-6
        slope = (loss(parameters + step) - loss(parameters - step)) / 2e-6
        assert result[index] == pytest.approx(slope, rel=1e-4, abs=1e-7), f"parameter {index}"


def test_initial_weights_have_the_published_variance() -> None:
    start = network.initialise(xp, np.random.default_rng(1).standard_normal(network.PARAMETER_COUNT))
    dense = start[-5130:-10]
    assert np.std(dense) == pytest.approx(np.sqrt(2 / 512), rel=0.05)
    assert np.all(start[-10:] == 0)


def test_images_move_by_one_pixel() -> None:
    images = np.random.default_rng(2).random((6, 1, 8, 8), dtype=np.float32)
    draws = np.array([[5, 5], [0, 5], [1, 5], [5, 0], [5, 1], [1, 0]])
    with tz.open("cpu"):
        moved = steps.shifted(images, draws)
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for number, (down, right) in enumerate([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (1, -1)]):
        expected = padded[number, :, 1 - down : 9 - down, 1 - right : 9 - right]
        np.testing.assert_array_equal(moved[number], expected)


def test_a_step_is_gradient_descent_with_momentum() -> None:
    size = network.PARAMETER_COUNT
    parameters, velocity, tally = np.ones(size), np.full(size, 2.0), np.zeros(2)
    shards = [np.concatenate([np.full(size, value), [value, 1.0]]) for value in (3.0, 5.0)]
    steps.update(parameters, velocity, tally, 4, 0.1, 0.5, *shards)
    np.testing.assert_allclose(velocity, 0.5 * 2.0 - 0.1 * (3.0 + 5.0) / 4)
    np.testing.assert_allclose(parameters, 1.0 + velocity)
    np.testing.assert_allclose(tally, [8.0, 2.0])
