"""Boxes against NumPy: whatever the layouts, the copies that they stand for are the copy of the elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tazza.memory.boxes import Moves, dense_strides, plan, span, spread

Array = np.ndarray[Any, np.dtype[Any]]


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...], itemsize: int, *, broadcast: bool = False) -> Any:
    """Strides of elements that share no byte (unless broadcast): axes in any order and direction, with gaps."""
    strides, step = [0] * len(shape), itemsize
    for axis in draw(st.permutations(range(len(shape)))):
        step += draw(st.sampled_from([0, 0, 0, 1, itemsize, 3 * itemsize]))
        strides[axis] = step * draw(st.sampled_from([1, 1, 1, -1]))
        step *= shape[axis]
        if broadcast and draw(st.integers(0, 5)) == 0:
            strides[axis] = 0
    return tuple(strides)


SHAPES = st.lists(st.integers(1, 5), max_size=5).map(tuple)
ITEMS = st.sampled_from([1, 2, 4, 8])


def placed(itemsize: int, shape: tuple[int, ...], strides: tuple[int, ...], seed: int) -> tuple[Array, int, Array]:
    """Random bytes with room around a layout, where its element ``[0, 0, ...]`` is, and the elements' bytes."""
    low, high = span(itemsize, shape, strides)
    memory = np.random.default_rng(seed).integers(0, 256, high - low + 16, dtype=np.uint8)
    first = 8 - low
    elements = np.lib.stride_tricks.as_strided(memory[first:], (*shape, itemsize), (*strides, 1))
    return memory, first, elements


def perform(moves: Moves, dst: Array, dst_first: int, src: Array, src_first: int) -> Array:
    """Copy as a device does, and count how often each byte was written."""
    box, written = moves.box, np.zeros(dst.size, int)
    assert 0 < box.width <= min(box.dst_pitch, box.src_pitch)
    assert 0 < box.rows <= min(box.dst_rows, box.src_rows)
    starts = list(moves.starts())
    assert len(starts) == moves.copies
    for to, of in starts:
        for piece in range(box.rows * box.slices):
            z, y = divmod(piece, box.rows)
            a = dst_first + to + (z * box.dst_rows + y) * box.dst_pitch
            b = src_first + of + (z * box.src_rows + y) * box.src_pitch
            assert min(a, b) >= 0
            dst[a : a + box.width] = src[b : b + box.width]
            written[a : a + box.width] += 1
    return written


@given(st.data(), SHAPES, ITEMS, st.integers(0, 99))
def test_boxes_copy_the_elements_and_nothing_else(data: Any, shape: tuple[int, ...], itemsize: int, seed: int) -> None:
    to, of = data.draw(layouts(shape, itemsize)), data.draw(layouts(shape, itemsize, broadcast=True))
    dst, dst_first, target = placed(itemsize, shape, to, seed)
    src, src_first, source = placed(itemsize, shape, of, seed + 1)
    expected, wanted = dst.copy(), source.copy()
    np.lib.stride_tricks.as_strided(expected[dst_first:], target.shape, target.strides)[...] = wanted
    written = perform(plan(itemsize, shape, to, of), dst, dst_first, src, src_first)
    assert (dst == expected).all()
    assert written.max() == 1
    assert written.sum() == wanted.size


@given(st.data(), SHAPES, ITEMS, st.integers(0, 99))
def test_a_spread_fills_the_elements_once_and_nothing_else(
    data: Any, shape: tuple[int, ...], itemsize: int, seed: int
) -> None:
    strides = data.draw(layouts(shape, itemsize))
    memory, first, elements = placed(itemsize, shape, strides, seed)
    expected, cell = memory.copy(), np.arange(100, 100 + itemsize, dtype=np.uint8)
    np.lib.stride_tricks.as_strided(expected[first:], elements.shape, elements.strides)[...] = cell
    found = spread(itemsize, shape, strides)
    lowest = first + found.first
    memory[lowest : lowest + found.width] = np.tile(cell, found.width // itemsize)
    filled = np.zeros(memory.size, int)
    filled[lowest : lowest + found.width] += 1
    for moves in found.steps:
        for _, of in moves.starts():
            assert filled[first + of] == 1, "it reads what was not filled yet"
        filled += perform(moves, memory, first, memory, first)
    assert (memory == expected).all()
    assert filled.max() == 1
    assert filled.sum() == elements.size


@given(st.data(), SHAPES, ITEMS)
def test_dense_strides_take_one_copy_where_the_other_side_is_dense_too(
    data: Any, shape: tuple[int, ...], itemsize: int
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    dense, step = [0] * len(shape), itemsize
    for axis in order:
        dense[axis], step = step * data.draw(st.sampled_from([1, -1])), step * shape[axis]
    first, strides = dense_strides(itemsize, shape, dense)
    low, high = span(itemsize, shape, strides)
    assert (-low, high - low) == (first, step)
    moves = plan(itemsize, shape, dense, strides)
    assert moves.is_one_run
    assert moves.box.width == step


C = 4  # bytes of the elements below


@pytest.mark.parametrize(
    ("shape", "dst", "src", "count", "box"),
    [
        ((), (), (), 1, (4, 1, 1, 4, 1, 4, 1)),
        ((6, 5), (20, 4), (20, 4), 1, (120, 1, 1, 120, 1, 120, 1)),
        ((6, 5), (20, 4), (40, 4), 1, (20, 6, 1, 20, 6, 40, 6)),  # columns 0 to 4 of ten
        ((6, 5), (20, 4), (40, 8), 1, (4, 30, 1, 4, 30, 8, 30)),  # every other column
        ((6, 5), (20, 4), (44, 8), 5, (4, 6, 1, 20, 6, 44, 6)),  # of eleven: no row of rows
        ((7, 6, 5), (120, 20, 4), (480, 40, 4), 1, (20, 6, 7, 20, 6, 40, 12)),
        ((6, 500), (2000, 4), (4, 24), 6, (4, 500, 1, 4, 500, 24, 500)),  # transposed
        ((6, 5), (20, 4), (-20, 4), 6, (20, 1, 1, 20, 1, 20, 1)),  # upside down
        ((6, 5), (-20, 4), (-20, 4), 1, (120, 1, 1, 120, 1, 120, 1)),  # on both sides
        ((6, 5), (20, 4), (0, 4), 6, (20, 1, 1, 20, 1, 20, 1)),  # broadcast
        ((2, 5), (2**31, 4), (20, 4), 2, (20, 1, 1, 20, 1, 20, 1)),  # farther apart than rows may be
        ((2, 2, 2, 2), (1000, 100, 20, 8), (1000, 100, 20, 8), 4, (4, 2, 2, 100, 10, 100, 10)),
    ],
)
def test_the_fewest_boxes_are_found(shape: Any, dst: Any, src: Any, count: int, box: Any) -> None:
    moves = plan(C, shape, dst, src)
    assert (moves.copies, tuple(moves.box)) == (count, box)


def test_an_element_spreads_in_few_copies() -> None:
    found = spread(8, (1000, 1000), (80_000, 16))
    assert found.width == 8
    assert [len(found.steps), sum(moves.copies for moves in found.steps)] == [20, 20]
