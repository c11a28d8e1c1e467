"""Dropout: which elements are dropped is a function of the generator alone; what is kept is scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

import tazza as tz
from tazza.dnn import Dnn, PlannedDnn, ReferenceDnn
from tazza.dnn.reference_layers import kept_from
from tazza.errors import ArgumentError
from tests.unit.dnn_cases import Array, draw_array

TIMEOUT = 20.0


def expected_mask(rate: float, *shape: int, seed: int = 7) -> Array:
    """The documented bits."""
    draws: Array = tz.Generator(seed).random(int(np.prod(shape)), dtype="float32")
    return (draws.astype("float64") >= rate).reshape(shape)


def on_reference(function: Callable[[Dnn], Any]) -> Any:
    return function(ReferenceDnn(xp))


def on_plans(function: Callable[[Dnn], Any]) -> Any:
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        assert isinstance(ctx.dnn, PlannedDnn)
        return function(ctx.dnn)


BOTH = pytest.mark.parametrize("on", [on_reference, on_plans])


@BOTH
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mask_is_the_documented_bits(on: Callable[..., Any], rate: float, dtype: str) -> None:
    x = draw_array(0, 4, 5, 6, 3, dtype=dtype)
    expected = expected_mask(rate, *x.shape)
    y, mask = on(lambda dnn: dnn.dropout(x, rate, tz.Generator(7)))
    assert (y.dtype, mask.dtype) == (dtype, "bool")
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(y, np.where(expected, x * (1 / (1 - rate)), 0))
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, 3)), 3, 1)
    other, again = on(lambda dnn: dnn.dropout(last, rate, tz.Generator(7)))
    np.testing.assert_array_equal(again, mask)
    np.testing.assert_array_equal(other, y)


@BOTH
def test_the_generator_moves_on_by_one_number_an_element(on: Callable[..., Any]) -> None:
    generator, expected = tz.Generator(7), tz.Generator(7)
    on(lambda dnn: [dnn.dropout(np.ones((3, 5)), rate, generator) for rate in (0.0, 0.5)])
    expected.random(30, dtype="float32")
    assert generator.state() == expected.state()


@BOTH
@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), True, "0.5", None])
def test_a_wrong_rate_draws_nothing(on: Callable[..., Any], rate: Any) -> None:
    generator = tz.Generator(7)
    before = generator.state()
    with pytest.raises(ArgumentError, match=r"^rate: got .*, expected a number of \[0, 1\)"):
        on(lambda dnn: dnn.dropout(np.ones(3), rate, generator))
    assert generator.state() == before


@BOTH
def test_only_tazzas_generators_are_taken(on: Callable[..., Any]) -> None:
    for wrong in (np.random.default_rng(0), 7, None):
        with pytest.raises(ArgumentError, match=r"^random: got .*, expected a tazza.Generator, such as ctx.random"):
            on(lambda dnn, wrong=wrong: dnn.dropout(np.ones(3), 0.5, wrong))


@BOTH
def test_what_is_dropped_is_zero_whatever_it_was(on: Callable[..., Any]) -> None:
    x = np.full((2, 50), np.nan)
    y, mask = on(lambda dnn: dnn.dropout(x, 0.5, tz.Generator(7)))
    assert 20 < mask.sum() < 80
    np.testing.assert_array_equal(np.isnan(y), mask)
    assert not y[~mask].any()
    dx = on(lambda dnn: dnn.dropout_backward(x, mask, 0.5))
    np.testing.assert_array_equal(dx, y)


@BOTH
def test_the_gradient_is_dropped_alike(on: Callable[..., Any]) -> None:
    x, dy = draw_array(0, 6, 7), draw_array(1, 6, 7)
    _, mask = on(lambda dnn: dnn.dropout(x, 0.25, tz.Generator(7)))
    dx = on(lambda dnn: dnn.dropout_backward(dy, mask, 0.25))
    np.testing.assert_allclose(dx, np.where(mask, dy / 0.75, 0), rtol=1e-15)


@BOTH
@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_small_shapes(on: Callable[..., Any], shape: tuple[int, ...]) -> None:
    y, mask = on(lambda dnn: dnn.dropout(np.ones(shape), 0.0, tz.Generator(7)))
    assert y.shape == mask.shape == shape
    assert (y == 1).all()


def test_the_mean_stays() -> None:
    y, mask = on_reference(lambda dnn: dnn.dropout(np.ones(100_000), 0.3, tz.Generator(7)))
    assert abs(y.mean() - 1) < 0.01  # five standard deviations are 0.0104
    assert abs(mask.mean() - 0.7) < 0.008


def test_a_rate_between_two_draws_is_compared_exactly() -> None:
    """The next float64 above a possible draw drops it, though as a float32 it would be equal."""
    draw = 5 * 2.0**-24
    assert kept_from(draw) == draw
    assert kept_from(np.nextafter(draw, 1)) == 6 * 2.0**-24
    assert kept_from(0.0) == 0.0
    assert kept_from(1 - 2.0**-30) == 1.0


def in_tasks(kind: str, arrays: str | None, count: int = 3) -> list[Array]:
    """The masks that tasks draw from their own generators."""
    with tz.open(kind, seed=3, arrays=arrays, dnn="reference") as ctx:
        x = ctx.asarray(draw_array(0, 5, 8, dtype="float32"))

        def draw(x: Any) -> Any:
            inner = tz.current()
            return inner.dnn.dropout(x, 0.5, inner.random)[1]

        tasks = [ctx.launch(draw, x) for _ in range(count)]
        return [np.array(ctx.to_numpy(task.result(timeout=TIMEOUT))) for task in tasks]


def test_tasks_draw_from_their_own_generators_alike_on_every_device() -> None:
    masks = in_tasks("cpu", None)
    assert len({mask.tobytes() for mask in masks}) == 3
    for mask, other in zip(masks, in_tasks("sim:0", None), strict=True):
        np.testing.assert_array_equal(mask, other)


def test_a_contexts_generator_draws_the_same_bits() -> None:
    with tz.open("cpu", seed=7, dnn="reference") as ctx:
        _, mask = ctx.dnn.dropout(ctx.asarray(draw_array(0, 4, 6)), 0.4, ctx.random)
    np.testing.assert_array_equal(mask, expected_mask(0.4, 4, 6))
