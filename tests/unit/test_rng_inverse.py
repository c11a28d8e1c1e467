"""Normal and exponential values: accuracy against SciPy, and distribution at fixed seeds."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from tazza.core.generator import Generator
from tazza.rng import inverse
from tazza.rng.filling import blocks

COUNT = 20_000_000 if os.environ.get("TAZZA_FULL") == "1" else 1_000_000
FLOATS = ["float64", "float32"]


def magnitudes() -> NDArray[np.uint64]:
    """Numbers of up to 63 bits: uniform, of every length, around every power of two, and both ends."""
    source = np.random.Generator(np.random.Philox(11))
    uniform = source.integers(0, 1 << 63, 100_000, dtype=np.uint64)
    lengths = uniform >> source.integers(0, 63, 100_000, dtype=np.uint64)
    powers = np.uint64(1) << np.arange(1, 63, dtype=np.uint64)
    top = np.uint64((1 << 63) - 1) - np.arange(3000, dtype=np.uint64)
    return np.concatenate((uniform, lengths, powers, powers - np.uint64(1), powers + np.uint64(1), top)) | np.uint64(1)


def evaluated(distribution: str, dtype: str) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the table's values for `magnitudes`, and the floats that they were computed from."""
    words = magnitudes()
    out = np.empty(words.size, dtype)
    table = inverse._table(distribution, out.dtype)
    scratch = table.scratch(out)
    for start, block in blocks(out):
        table.evaluate(words[start : start + block.size].copy(), block, scratch)
    return out, words.view(np.int64).astype(dtype).astype(np.float64)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 4e-15), ("float32", 1e-6)])
def test_normal_is_the_inverse(dtype: str, bound: float) -> None:
    values, x = evaluated("normal", dtype)
    # SciPy's own error, up to 2e-15 here, is part of the float64 bound.
    error = np.abs(values.astype(np.float64) + special.ndtri(x * 2.0**-64))
    assert error.max() <= bound, f"largest at x={x[error.argmax()]!r}"
    assert values.max() > 9.0


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1.2e-14), ("float32", 4e-6)])
def test_exponential_is_the_inverse(dtype: str, bound: float) -> None:
    values, x = evaluated("exponential", dtype)
    error = np.abs(values.astype(np.float64) + np.log(x * 2.0**-63))
    assert error.max() <= bound, f"largest at x={x[error.argmax()]!r}"
    assert values.max() > 43.0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("distribution", ["normal", "exponential"])
def test_pieces_fit_together(distribution: str, dtype: str) -> None:
    """Neighbouring segments meet: going up in magnitude, values never rise by more than rounding."""
    steps = np.arange(64 << 6, 128 << 6, dtype=np.uint64) << np.uint64(50)
    out = np.empty(steps.size, dtype)
    table = inverse._table(distribution, out.dtype)
    table.evaluate(steps, out, table.scratch(out))
    assert np.diff(out).max() <= 4 * np.finfo(dtype).eps


def chi_square(values: NDArray[Any], bins: int) -> float:
    """Return the probability of a chi-square at least as large, for values that should be uniform on [0, 1)."""
    counts = np.bincount(np.minimum((values * bins).astype(np.int64), bins - 1), minlength=bins)
    expected = values.size / bins
    return float(special.chdtrc(bins - 1, ((counts - expected) ** 2).sum() / expected))


def kolmogorov(values: NDArray[Any]) -> float:
    """Return the probability of a Kolmogorov-Smirnov distance at least as large, for uniform values."""
    ranked = np.sort(values)
    grid = np.arange(ranked.size + 1) / ranked.size
    distance = max((grid[1:] - ranked).max(), (ranked - grid[:-1]).max())
    return float(special.kolmogorov(distance * np.sqrt(ranked.size)))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [1, 2])
def test_normal_distribution(dtype: str, seed: int) -> None:
    values = Generator(seed).standard_normal(COUNT, dtype=dtype).astype(np.float64)
    uniform = special.ndtr(values)
    assert 0.001 < chi_square(uniform, 256) < 0.999, seed
    assert 0.001 < kolmogorov(uniform) < 0.999, seed
    for bound in (3.0, 4.0, 4.5):
        expected = 2 * special.ndtr(-bound) * COUNT
        assert abs(np.count_nonzero(np.abs(values) > bound) - expected) < 4 * np.sqrt(expected) + 1, (bound, seed)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [1, 2])
def test_exponential_distribution(dtype: str, seed: int) -> None:
    values = Generator(seed).standard_exponential(COUNT, dtype=dtype).astype(np.float64)
    assert values.min() >= 0
    uniform = -np.expm1(-values)
    assert 0.001 < chi_square(uniform, 256) < 0.999, seed
    assert 0.001 < kolmogorov(uniform) < 0.999, seed
    expected = np.exp(-8.0) * COUNT
    assert abs(np.count_nonzero(values > 8) - expected) < 4 * np.sqrt(expected), seed


def test_one_word_each() -> None:
    for draw in ("standard_normal", "standard_exponential"):
        for dtype in FLOATS:
            generator = Generator(3)
            generator.random(1, dtype="float32")
            getattr(generator, draw)(11, dtype=dtype)
            state = generator.state()
            assert (state["position"], state["half"]) == (12, 0), (draw, dtype)


def correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the correlation of two equal samples, in its standard errors."""
    return float(np.corrcoef(a, b)[0, 1] * np.sqrt(a.size))


def test_neighbours_and_streams_are_uncorrelated() -> None:
    root = Generator(5)
    streams = [root, *root.split(2), root.for_purpose("a"), root.for_purpose("b"), root.child(0), root.child(1)]
    streams += [root.child(0).child(0), Generator(6)]
    draws = [stream.standard_normal(100_000) for stream in streams]
    for i, values in enumerate(draws):
        assert abs(correlation(values[:-1], values[1:])) < 4
        for j in range(i):
            assert abs(correlation(values, draws[j])) < 4.5, (i, j)
