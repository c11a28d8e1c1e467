"""Bounded integers, orders and samples against exact models."""

from __future__ import annotations

import os
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from tazza.core.generator import Generator
from tazza.rng.bounded import fill_integers
from tazza.rng.cursor import Cursor
from tazza.rng.keys import derived_key, seed_key
from tazza.rng.selection import fill_order, fill_sample, sample_words

KEY = seed_key(7)
FULL = os.environ.get("TAZZA_FULL") == "1"


def redrawn(position: int, attempt: int) -> int:
    """Return the replacement word that the definition names, from NumPy's Philox."""
    counter = position | attempt << 128
    return int(np.random.Philox(counter=counter - 1, key=derived_key(KEY, "redraw")).random_raw())


def model(position: int, low: int, span: int) -> int:
    """Return the integer at a position of the stream, by Lemire's rule in exact arithmetic."""
    word, attempt = int(Cursor(KEY, position).bit_generator().random_raw()), 0
    while word * span % 2**64 < 2**64 % span:
        attempt += 1
        word = redrawn(position, attempt)
    return low + (word * span >> 64)


@given(
    start=st.integers(0, 10**6) | st.integers(2**64 - 10, 2**64 + 10),
    span=st.integers(1, 2**64) | st.sampled_from([1, 2, 2**32 - 1, 2**32, 2**63, 2**63 + 1, 2**64 - 1, 2**64]),
    low=st.integers(-(2**63), 2**63),
)
def test_integers_are_the_models(start: int, span: int, low: int) -> None:
    signed = low < 0
    low = min(low, (2**63 if signed else 2**64) - span) if span < 2**64 else (-(2**63) if signed else 0)
    out = np.empty(12, np.int64 if signed else np.uint64)
    fill_integers(Cursor(KEY, start), out, low=low, span=span)
    assert out.tolist() == [model(start + i, low, span) for i in range(12)]


def test_redraws_in_every_block() -> None:
    out = np.empty(20_000, np.uint64)
    fill_integers(Cursor(KEY, 1), out, low=0, span=2**63 + 1)
    for index in (*range(12_280, 12_300), 19_999):
        assert out[index] == model(1 + index, 0, 2**63 + 1), index


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_whole_range_of_a_dtype(dtype: str) -> None:
    low, high = (0, 1) if dtype == "bool" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    values = Generator(3).integers(low, high, 4096, dtype=dtype, endpoint=True)
    assert values.dtype == dtype
    middle = (low + high) // 2
    assert 1850 < np.count_nonzero(values > middle) < 2250
    if dtype in ("int8", "uint8", "bool"):
        assert {int(value) for value in values} == set(range(low, high + 1))


@pytest.mark.parametrize("span", [2, 3, 10, 1000, 3 * 2**61])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_integers_are_uniform(span: int, seed: int) -> None:
    count = 5_000_000 if FULL else 200_000
    values = Generator(seed).integers(0, span, count).astype(np.float64)
    bins = min(span, 1000)
    counts = np.bincount((values * (bins / span)).astype(np.int64), minlength=bins)
    expected = count / bins
    assert 0.001 < special.chdtrc(bins - 1, ((counts - expected) ** 2).sum() / expected) < 0.999, (span, seed)


class Words:
    """A cursor whose stream is given."""

    def __init__(self, words: list[int]) -> None:
        self.words = np.array(words, np.uint64)

    def bit_generator(self) -> Words:
        return self

    def random_raw(self, count: int) -> NDArray[np.uint64]:
        return self.words[:count]


@given(words=st.lists(st.integers(0, 3) | st.integers(2**64 - 2, 2**64 - 1), max_size=60), start=st.integers(0, 60))
def test_equal_words_keep_their_order(words: list[int], start: int) -> None:
    cursor: Any = Words(words)
    out = np.empty(max(0, len(words) - start), np.int64)
    fill_order(cursor, out, total=len(words), start=min(start, len(words)))
    assert out.tolist() == sorted(range(len(words)), key=lambda index: words[index])[start:]


@given(total=st.integers(0, 400), share=st.integers(0, 100), position=st.integers(0, 100))
def test_samples_are_distinct(total: int, share: int, position: int) -> None:
    count = total * share // 100
    out = np.empty(count, np.int64)
    fill_sample(Cursor(KEY, position), out, total=total, count=count, start=0)
    assert len(set(out.tolist())) == count
    assert all(0 <= value < total for value in out)
    assert sample_words(total, count) in (count, total)
    part = np.empty(count - count // 3, np.int64)
    fill_sample(Cursor(KEY, position), part, total=total, count=count, start=count // 3)
    assert np.array_equal(part, out[count // 3 :])


@pytest.mark.parametrize(("total", "count"), [(48, 3), (4, 3)])
def test_samples_are_uniform(total: int, count: int) -> None:
    """Both ways, redrawing duplicates and taking the head of an order, give every sequence equally often."""
    times = 60_000 if FULL else 6_000
    root = Generator(17)
    seen: Counter[tuple[int, ...]] = Counter()
    for stream in root.split(times):
        sample = stream.choice(total, count, replace=False)
        # Of many values only the order is looked at, which has 6 possibilities for 3 of them.
        seen[tuple(np.argsort(sample).tolist()) if total > 4 else tuple(sample.tolist())] += 1
    cells = 6 if total > 4 else len(list(permutations(range(total), count)))
    expected = times / cells
    statistic = sum((number - expected) ** 2 for number in seen.values()) / expected
    assert len(seen) == cells
    assert 0.001 < special.chdtrc(cells - 1, statistic) < 0.999


def test_sparse_samples_redraw_collisions() -> None:
    values = Generator(5).choice(1_000_000, 60_000, replace=False)
    assert np.unique(values).size == 60_000
    counts = np.bincount(values * 50 // 1_000_000, minlength=50)
    assert 0.001 < special.chdtrc(49, ((counts - 1200) ** 2).sum() / 1200) < 0.999


@pytest.mark.parametrize("seed", [1, 2])
def test_permutations_are_uniform(seed: int) -> None:
    times, cells = 24_000, 24
    words = Generator(seed).random_raw((times, 4))
    seen = Counter(tuple(order) for order in np.argsort(words, axis=1).tolist())
    drawn = Generator(seed)
    assert [tuple(drawn.permutation(4).tolist()) for _ in range(50)] == [
        tuple(o) for o in np.argsort(words[:50], 1).tolist()
    ]
    statistic = sum((number - times / cells) ** 2 for number in seen.values()) / (times / cells)
    assert len(seen) == cells
    assert 0.001 < special.chdtrc(cells - 1, statistic) < 0.999, seed
