"""Average pooling of the reference against loops over the windows, and its gradient."""

from __future__ import annotations

import itertools
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tazza.dnn import ReferenceDnn
from tests.unit.dnn_cases import Array, draw_array, numeric_gradient

DNN = ReferenceDnn(xp)
Pooling = tuple[tuple[int, ...], dict[str, Any], int]


@st.composite
def poolings(draw: st.DrawFn) -> Pooling:
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, size // 2)) for size in window)
    image = tuple(max(1, size - border + draw(st.integers(0, 3))) for size, border in zip(window, padding, strict=True))
    options = {"window": window, "stride": stride, "padding": padding, "count_padding": draw(st.booleans())}
    return (draw(st.integers(0, 2)), draw(st.integers(1, 2)), *image), options, draw(st.integers(0, 2**16))


def plain_mean(x: Array, options: dict[str, Any]) -> Array:
    """The mean of each window, element by element."""
    (kh, kw), (py, px) = options["window"], options["padding"]
    sy, sx = options["stride"] or (kh, kw)
    rows, columns = (x.shape[2] + 2 * py - kh) // sy + 1, (x.shape[3] + 2 * px - kw) // sx + 1
    y = np.zeros((*x.shape[:2], rows, columns))
    for i, j in itertools.product(range(rows), range(columns)):
        inside = [
            (row, column)
            for row, column in itertools.product(
                range(i * sy - py, i * sy - py + kh), range(j * sx - px, j * sx - px + kw)
            )
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
        ]
        total = sum(x[:, :, row, column] for row, column in inside)
        y[:, :, i, j] = total / (kh * kw if options["count_padding"] else len(inside))
    return y


@settings(max_examples=60, deadline=None)
@given(poolings())
def test_avg_pool2d_is_the_mean_of_each_window(case: Pooling) -> None:
    shape, options, seed = case
    x = draw_array(seed, *shape)
    expected = plain_mean(x, options)
    np.testing.assert_allclose(DNN.avg_pool2d(x, **options), expected, rtol=1e-12, atol=1e-13)
    strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, 3)), 3, 1)
    np.testing.assert_array_equal(DNN.avg_pool2d(strided, **options), DNN.avg_pool2d(x, **options))
    single = DNN.avg_pool2d(x.astype("f4"), **options)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(poolings())
def test_avg_pool2d_gradient(case: Pooling) -> None:
    shape, options, seed = case
    x = draw_array(seed, *shape)
    dy = draw_array(seed + 1, *DNN.avg_pool2d(x, **options).shape)
    dx = DNN.avg_pool2d_backward(dy, x, **options)
    expected = numeric_gradient(lambda at: float(np.sum(DNN.avg_pool2d(at, **options) * dy)), x)
    np.testing.assert_allclose(dx, expected, rtol=1e-7, atol=1e-9)
    # Of the image only its shape matters, and the windows' shares add up to their gradients.
    np.testing.assert_array_equal(DNN.avg_pool2d_backward(dy, np.full_like(x, np.nan), **options), dx)
    if options["padding"] == (0, 0) or not options["count_padding"]:
        np.testing.assert_allclose(dx.sum(), dy.sum(), rtol=1e-9, atol=1e-12)


def test_what_counts_has_to_be_said_where_there_is_padding() -> None:
    x = np.ones((1, 1, 2, 2))
    assert DNN.avg_pool2d(x, 2).tolist() == [[[[1.0]]]]
    assert DNN.avg_pool2d(x, 2, padding=1, count_padding=True)[0, 0, 0, 0] == 0.25
    assert DNN.avg_pool2d(x, 2, padding=1, count_padding=False)[0, 0, 0, 0] == 1.0
    with pytest.raises(ValueError, match="^count_padding: got None .*, expected True or False"):
        DNN.avg_pool2d(x, 2, padding=1)


def test_nan_goes_to_the_windows_that_see_it() -> None:
    x = np.ones((1, 1, 4, 4))
    x[0, 0, 1, 1] = np.nan
    assert np.isnan(DNN.avg_pool2d(x, 2))[0, 0].tolist() == [[True, False], [False, False]]
