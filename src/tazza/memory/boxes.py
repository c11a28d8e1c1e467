"""How strided memory is copied: as boxes of rows, few of them. Knows integers, not devices.

A device copies a box in one call: `slices` slices of `rows` rows of `width` bytes each. `plan` finds the boxes for a
pair of layouts, `spread` the copies by which one element fills a layout.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tazza.spi.values import Box

__all__ = ["Moves", "Spread", "dense_strides", "plan", "span", "spread"]

_LARGEST_PITCH = 2**31 - 1
"""Bytes from row to row: CU_DEVICE_ATTRIBUTE_MAX_PITCH of every device that NVIDIA lists."""


class _Axis(NamedTuple):
    """Elements along one axis, and the bytes from one to the next on both sides."""

    length: int
    dst: int
    src: int


class Moves(NamedTuple):
    """Equal boxes, one copy for each.

    Attributes:
        box: what each copy moves.
        dst: bytes from the target's element ``[0, 0, ...]`` to the first box.
        src: the same on the source.
        loops: what is gone through by one copy for each step, the outermost axis first.
    """

    box: Box
    dst: int
    src: int
    loops: tuple[_Axis, ...]

    @property
    def copies(self) -> int:
        """How many copies it takes."""
        return math.prod(axis.length for axis in self.loops)

    @property
    def is_one_run(self) -> bool:
        """Whether it is a single copy of bytes that lie together on both sides."""
        return not self.loops and self.box.rows == 1

    def starts(self) -> Iterator[tuple[int, int]]:
        """Where each box begins on the target and on the source, in bytes from element ``[0, 0, ...]``."""
        for place in itertools.product(*(range(axis.length) for axis in self.loops)):
            dst, src = self.dst, self.src
            for index, axis in zip(place, self.loops, strict=True):
                dst += index * axis.dst
                src += index * axis.src
            yield dst, src


class Spread(NamedTuple):
    """How one element fills a layout.

    Attributes:
        first: bytes from element ``[0, 0, ...]`` to the lowest one.
        width: bytes from there on that lie together, to be filled before anything else.
        steps: copies within the memory, in this order, each of which reads only what was filled before it.
    """

    first: int
    width: int
    steps: tuple[Moves, ...]


def plan(itemsize: int, shape: Sequence[int], dst: Sequence[int], src: Sequence[int]) -> Moves:
    """Find the fewest boxes that copy between two layouts of one shape, which is not empty.

    Args:
        itemsize: bytes of an element.
        shape: elements along each axis.
        dst: bytes from one element of the target to the next along each axis; no two share a byte.
        src: the same on the source, where elements may be one and the same.
    """
    first, axes = _ordered(shape, dst, src)
    width = itemsize
    if axes and axes[-1].dst == axes[-1].src == itemsize:
        width *= axes.pop().length
    return _boxed(width, axes, *first)


def spread(itemsize: int, shape: Sequence[int], strides: Sequence[int]) -> Spread:
    """Find how to fill a layout, which is not empty, by doubling what is filled along one axis after another."""
    (first, _), axes = _ordered(shape, strides, strides)
    width = itemsize
    if axes and axes[-1].dst == itemsize:
        width *= axes.pop().length
    steps: list[Moves] = []
    for number in reversed(range(len(axes))):
        axis, filled = axes[number], 1
        while filled < axis.length:
            more = min(filled, axis.length - filled)
            block = [axis._replace(length=more), *axes[number + 1 :]] if more > 1 else axes[number + 1 :]
            steps.append(_boxed(width, list(block), first + filled * axis.dst, first))
            filled += more
    return Spread(first, width, tuple(steps))


def span(itemsize: int, shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """The lowest byte and the end of the highest of a layout that is not empty, from element ``[0, 0, ...]``."""
    reach = [(length - 1) * step for length, step in zip(shape, strides, strict=True)]
    return sum(min(one, 0) for one in reach), sum(max(one, 0) for one in reach) + itemsize


def dense_strides(itemsize: int, shape: Sequence[int], like: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """A layout without gaps whose axes go the ways and have the order of another's.

    Returns:
        Bytes from the lowest to element ``[0, 0, ...]``, and the strides.
    """
    first, step, strides = 0, itemsize, [0] * len(shape)
    for axis in sorted(range(len(shape)), key=lambda one: (abs(like[one]), -one)):
        strides[axis] = -step if like[axis] < 0 else step
        first += (shape[axis] - 1) * step if like[axis] < 0 else 0
        step *= shape[axis]
    return first, tuple(strides)


def _ordered(shape: Sequence[int], dst: Sequence[int], src: Sequence[int]) -> tuple[tuple[int, int], list[_Axis]]:
    """Where the target's lowest element is on both sides, and the axes, upwards on the target, the widest steps first.

    Axes of one element are left out; those that follow on from one another on both sides become one.
    """
    low = [0, 0]
    axes = []
    for axis in map(_Axis, shape, dst, src):
        if axis.length == 1:
            continue
        if axis.dst < 0:
            low[0] += (axis.length - 1) * axis.dst
            low[1] += (axis.length - 1) * axis.src
            axis = _Axis(axis.length, -axis.dst, -axis.src)
        axes.append(axis)
    axes.sort(key=lambda axis: -axis.dst)
    merged: list[_Axis] = []
    for axis in axes:
        if merged and merged[-1].dst == axis.length * axis.dst and merged[-1].src == axis.length * axis.src:
            axis = axis._replace(length=axis.length * merged.pop().length)
        merged.append(axis)
    return (low[0], low[1]), merged


def _boxed(width: int, axes: list[_Axis], dst: int, src: int) -> Moves:
    """Choose the axes of rows and of slices that leave the fewest copies."""
    rows = [axis for axis in axes if width <= min(axis.dst, axis.src) and max(axis.dst, axis.src) <= _LARGEST_PITCH]
    best: tuple[_Axis, ...] = ()
    pairs = ((one, other) for one in rows for other in axes if other is not one and _is_slice(one, other))
    for chosen in itertools.chain(((one,) for one in rows), pairs):
        if math.prod(axis.length for axis in chosen) > math.prod(axis.length for axis in best):
            best = chosen
    loops = tuple(axis for axis in axes if not any(axis is one for one in best))
    if not best:
        return Moves(Box(width, 1, 1, width, 1, width, 1), dst, src, loops)
    row = best[0]
    if len(best) == 1:
        return Moves(Box(width, row.length, 1, row.dst, row.length, row.src, row.length), dst, src, loops)
    outer = best[1]
    box = Box(width, row.length, outer.length, row.dst, outer.dst // row.dst, row.src, outer.src // row.src)
    return Moves(box, dst, src, loops)


def _is_slice(row: _Axis, outer: _Axis) -> bool:
    """Whether steps of `outer` are whole numbers of rows, and of as many as there are, on both sides."""
    sides = (outer.dst, row.dst), (outer.src, row.src)
    return all(step % pitch == 0 and step // pitch >= row.length for step, pitch in sides)
