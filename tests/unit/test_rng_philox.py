"""The reference Philox4x64-10 against Random123's published vectors, NumPy and exact integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tazza.rng.philox import high_product, philox

words = st.integers(0, 2**64 - 1)
edges = st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])

# Random123's file kat_vectors, the lines "philox4x64 10": counter (4 words), key (2 words), block (4 words).
KNOWN_ANSWERS = [
    "0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000"
    " 16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
    "ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff ffffffffffffffff"
    " 87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
    "243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89 452821e638d01377 be5466cf34e90c6c"
    " a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
]


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_known_answers(line: str) -> None:
    values = [int(word, 16) for word in line.split()]
    block = philox(values[4] | values[5] << 64, np.array(values[:4], np.uint64))
    assert [int(word) for word in block] == values[6:]


@pytest.mark.parametrize("line", KNOWN_ANSWERS)
def test_known_answers_are_numpys(line: str) -> None:
    values = [int(word, 16) for word in line.split()]
    counter = sum(word << 64 * place for place, word in enumerate(values[:4]))
    key = values[4] | values[5] << 64
    # NumPy steps its counter before it makes a block.
    numpys = np.random.Philox(counter=(counter - 1) % 2**256, key=key)
    assert numpys.random_raw(4).tolist() == values[6:]


@given(key=st.integers(0, 2**128 - 1), counters=st.lists(st.tuples(words, words, words, words), min_size=1, max_size=9))
def test_many_counters_at_once(key: int, counters: list[tuple[int, int, int, int]]) -> None:
    blocks = philox(key, np.array(counters, np.uint64).T)
    assert blocks.shape == (4, len(counters))
    for column, counter in enumerate(counters):
        start = (sum(word << 64 * place for place, word in enumerate(counter)) - 1) % 2**256
        assert np.array_equal(blocks[:, column], np.random.Philox(counter=start, key=key).random_raw(4))


@given(factors=st.lists(words | edges, min_size=1, max_size=20), factor=words | edges)
def test_high_product(factors: list[int], factor: int) -> None:
    product = high_product(np.array(factors, np.uint64), np.uint64(factor))
    assert product.tolist() == [value * factor >> 64 for value in factors]
