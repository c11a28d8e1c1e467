"""Places in a stream, keys, and kernels over slices and threads."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tazza.rng.cursor import Cursor
from tazza.rng.filling import Fill, Unit
from tazza.rng.inverse import fill_normal
from tazza.rng.keys import derived_key, fresh_seed, seed_key
from tazza.rng.uniform import fill_halves, fill_random, fill_words

KEY = seed_key(7)


def numpys(seed: int = 7) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@given(seed=st.integers(0, 2**300))
def test_keys_are_numpys(seed: int) -> None:
    low, high = np.random.Philox(seed).state["state"]["key"].tolist()
    assert seed_key(seed) == low | high << 64


@given(position=st.integers(0, 200), count=st.integers(0, 50))
def test_any_position(position: int, count: int) -> None:
    expected = np.random.Philox(7).random_raw(250)[position : position + count]
    assert np.array_equal(Cursor(KEY, position).bit_generator().random_raw(count), expected)


def test_positions_beyond_64_bits() -> None:
    far = np.random.Philox(counter=2**80, key=KEY).random_raw(9)
    assert np.array_equal(Cursor(KEY, 4 * 2**80 + 3).bit_generator().random_raw(6), far[3:])


@given(draws=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=12))
def test_halves_between_words(draws: list[tuple[bool, int]]) -> None:
    cursor, generator = Cursor(KEY, 0), numpys()
    for halves, count in draws:
        if halves:
            out = np.empty(count, np.float32)
            fill_random(cursor, out)
            assert np.array_equal(out, generator.random(count, dtype=np.float32))
            cursor = cursor.after_halves(count)
        else:
            values = np.empty(count)
            fill_random(cursor, values)
            assert np.array_equal(values, generator.random(count))
            cursor = cursor.after_words(count)


@given(cuts=st.lists(st.integers(0, 60), max_size=6), half=st.booleans())
def test_cuts_of_halves(cuts: list[int], half: bool) -> None:
    start = Cursor(KEY, 5, 2 if half else None)
    whole = np.empty(60, np.uint32)
    fill_halves(start, whole)
    for first, last in itertools.pairwise([0, *sorted(cuts), 60]):
        piece = np.empty(last - first, np.uint32)
        fill_halves(start.after_halves(first), piece)
        assert np.array_equal(piece, whole[first:last])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("kernel", "unit", "dtype"),
    [
        (fill_words, Unit.WORD, np.uint64),
        (fill_halves, Unit.HALF, np.uint32),
        (fill_random, Unit.WORD, np.float64),
        (fill_random, Unit.HALF, np.float32),
        (fill_normal, Unit.WORD, np.float64),
    ],
)
def test_threads_do_not_matter(threads: int, kernel: Any, unit: Unit, dtype: Any) -> None:
    one, many = np.empty(300_001, dtype), np.empty(300_001, dtype)
    Fill(kernel, Cursor(KEY, 3, 1), unit)(one)
    Fill(kernel, Cursor(KEY, 3, 1), unit, threads)(many)
    assert np.array_equal(one, many)


def test_strided_output() -> None:
    packed, strided = np.empty((40, 30)), np.zeros((60, 80))
    fill = Fill(fill_random, Cursor(KEY, 0), Unit.WORD)
    fill(packed)
    fill(strided[::2, 1:80:2][:30, :40].T)
    assert np.array_equal(strided[::2, 1:80:2][:30, :40].T, packed)
    assert not strided[1::2].any()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_failing_slice_fails_the_draw(failing: int) -> None:
    size = 3 << 16

    def kernel(cursor: Cursor, out: NDArray[Any]) -> None:
        out[:] = 1
        if cursor.position == failing << 16:
            raise MemoryError(f"slice {failing}")

    out = np.zeros(size)
    with pytest.raises(MemoryError, match=f"slice {failing}"):
        Fill(kernel, Cursor(KEY, 0), Unit.WORD, 3)(out)
    assert out.all(), "every slice has ended when the failure is raised"


def test_derived_keys_differ() -> None:
    parts: list[tuple[str | int, ...]] = [(), (0,), (0, 0), (1,), (-1,), (255,), (256,), (2**32 + 5,), (5, 1), (1, 5)]
    parts += [("",), ("0",), ("a", "b"), ("ab",), ("a",), ("b", "a"), ("ä",), (2**64,), (0, 2**64), (2**200,)]
    keys = {derived_key(parent, kind, *part) for parent in (0, KEY) for kind in ("split", "child") for part in parts}
    assert len(keys) == 4 * len(parts)
    assert all(0 <= key < 2**128 for key in keys)


def test_derived_keys_are_part_of_the_contract() -> None:
    # Saved states hold keys of children: another encoding would make them other streams.
    for parts, text in (
        (("purpose", "dropout"), b"s7:purposes7:dropout"),
        (("child", 3, -1), b"s5:childi1:\x03i1:\xff"),
    ):
        digest = hashlib.blake2b(KEY.to_bytes(16, "little") + text, digest_size=16, person=b"tazza.rng").digest()
        assert derived_key(KEY, *parts) == int.from_bytes(digest, "little")


def test_fresh_seeds_differ() -> None:
    assert len({fresh_seed() for _ in range(10)}) == 10
