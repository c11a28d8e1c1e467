"""Layouts: shapes and strides over a range of bytes, checked for bounds and overlap. Integers only."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tazza.errors import ArgumentError
from tazza.memory.sizing import LARGEST

__all__ = [
    "Layout",
    "allocation_layout",
    "extent",
    "lent_layout",
    "slice_bytes",
    "slice_elements",
    "view_layout",
    "whole_nbytes",
]

_LAST_ADDRESS = 2 * sys.maxsize + 1


class Layout(NamedTuple):
    """Elements within a range of bytes.

    Attributes:
        offset: bytes from the range's first to element ``[0, 0, ...]``.
        nbytes: bytes from the lowest to the end of the highest element.
        shape: elements along each axis.
        strides: bytes from one element to the next along each axis.
    """

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def whole_nbytes(nbytes: object, argument: str = "nbytes") -> int:
    """Return `nbytes` as an int; raises ArgumentError for what is not a whole number from 0 to 2**62."""
    try:
        value = operator.index(nbytes)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError.of(argument, nbytes, "a whole number of bytes") from None
    if isinstance(nbytes, bool) or not 0 <= value <= LARGEST:
        raise ArgumentError.of(argument, nbytes, "a whole number of bytes from 0 to 2**62")
    return value


def allocation_layout(
    nbytes: int, dtype: npt.DTypeLike | None, shape: Sequence[int] | None, strides: Sequence[int] | None
) -> tuple[np.dtype[Any], Layout]:
    """Return dtype and layout of a new buffer of `nbytes`; one axis where no shape is given."""
    if dtype is None:
        raise ArgumentError("dtype: a shape or strides need a dtype, as in dtype='float32'")
    return view_layout(0, nbytes, True, dtype, shape, strides)


def extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, bool]:
    """Return the lowest byte relative to element ``[0, 0, ...]``, and whether the elements are dense in C order."""
    steps = zip(shape, strides, _c_order(shape, itemsize), strict=True)
    dense = 0 in shape or all(length == 1 or step == expected for length, step, expected in steps)
    return _span(shape, strides, itemsize)[0], dense


def view_layout(
    first: int,
    nbytes: int,
    dense: bool,
    dtype: npt.DTypeLike,
    shape: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> tuple[np.dtype[Any], Layout]:
    """Return dtype and layout of a view of `nbytes` bytes from `first`, relative to where the view's element 0 will be.

    Args:
        first: the lowest byte; below 0 where the viewed buffer runs backwards.
        nbytes: bytes from there on.
        dense: the bytes are elements in C order without gaps, so that strides may be omitted.
    """
    resolved = _dtype(dtype)
    if shape is None:
        if strides is not None:
            raise ArgumentError.of("strides", strides, "a shape to go with them")
        if nbytes % resolved.itemsize:
            raise ArgumentError.of("dtype", resolved, f"an item size that divides {nbytes} bytes, or a shape")
        shape = (nbytes // resolved.itemsize,)
    if strides is None and not dense:
        raise ArgumentError("strides: this buffer is not dense in C order; give the view's strides in bytes")
    extents = tuple(whole_nbytes(length, "shape") for length in shape)
    if strides is None:
        steps, low, high = _c_order(extents, resolved.itemsize), 0, math.prod(extents) * resolved.itemsize
    else:
        steps = _steps(strides, len(extents))
        low, high = _span(extents, steps, resolved.itemsize)
    if low < first or high > first + nbytes:
        covered = f"covers bytes {low} to {high}, outside {first} to {first + nbytes}"
        raise ArgumentError(f"shape {extents} with strides {steps} of {resolved} {covered}")
    if strides is not None and _overlaps(extents, steps, resolved.itemsize):
        raise ArgumentError(f"strides {steps} let elements of shape {extents} and dtype {resolved} overlap")
    return resolved, Layout(0, high - low, extents, steps)


def lent_layout(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int
) -> tuple[Layout, bool]:
    """Return the layout of memory that somebody else describes, and whether its elements overlap.

    Args:
        address: of element ``[0, 0, ...]``; the layout's offset is 0.
        strides: bytes between elements; None for C order. Those of axes shorter than two elements mean nothing.

    Raises:
        ArgumentError: a length is negative, or the bytes do not fit into an address space.
    """
    if shape and min(shape) < 0:
        raise ArgumentError.of("obj", shape, "a shape without negative lengths")
    empty, order = 0 in shape, _c_order(shape, itemsize)
    steps, overlapping = order, False
    low, high = 0, 0 if empty else math.prod(shape) * itemsize
    if not (strides is None or strides == order or empty):
        triples = zip(shape, strides, order, strict=True)
        steps = tuple(expected if length == 1 else step for length, step, expected in triples)
        low, high = _span(shape, steps, itemsize)
        overlapping = _overlaps(shape, steps, itemsize)
    covered = order[0] * max(shape[0], 1) if shape else itemsize  # also where one length is 0
    if covered > LARGEST or high - low > LARGEST:
        raise ArgumentError.of("obj", f"shape {shape} with strides {steps}", "memory of at most 2**62 bytes")
    if high > low and not 0 < address + low <= address + high <= _LAST_ADDRESS:
        raise ArgumentError.of("obj", f"bytes {low} to {high} around address {address:#x}", "memory that can exist")
    return Layout(0, high - low, shape, steps), overlapping


def slice_bytes(key: slice, nbytes: int) -> Layout:
    """Return the layout of ``[a:b]`` of plain bytes; other steps than 1 need a dtype."""
    start, stop, step = _indices(key, nbytes)
    if step != 1:
        raise ArgumentError.of("key", key, "a slice of step 1; other steps need a typed view, buffer.view(dtype)")
    count = max(0, stop - start)
    return Layout(start, count, (count,), (1,))


def slice_elements(key: slice, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Layout:
    """Return the layout of ``[a:b:c]`` along axis 0."""
    if not shape:
        raise ArgumentError.of("key", key, "no slice: a buffer of shape () has no axis")
    start, stop, step = _indices(key, shape[0])
    count = len(range(start, stop, step))
    extents, steps = (count, *shape[1:]), (strides[0] * step, *strides[1:])
    low, high = _span(extents, steps, itemsize)
    return Layout(start * strides[0] if count else 0, high - low, extents, steps)


def _indices(key: slice, length: int) -> tuple[int, int, int]:
    try:
        return key.indices(length)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"key: {error}") from None


def _dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        resolved = np.dtype(dtype)
    except TypeError:
        raise ArgumentError.of("dtype", dtype, "something that numpy.dtype accepts") from None
    if resolved.hasobject or resolved.itemsize == 0:
        raise ArgumentError.of("dtype", resolved, "elements of a fixed size without Python objects")
    return resolved


def _c_order(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    steps = []
    step = itemsize
    for length in reversed(shape):
        steps.append(step)
        step *= max(length, 1)
    return tuple(reversed(steps))


def _steps(strides: Sequence[int], axes: int) -> tuple[int, ...]:
    try:
        steps = tuple(operator.index(step) for step in strides)
    except TypeError:
        raise ArgumentError.of("strides", strides, "whole numbers of bytes") from None
    if len(steps) != axes:
        raise ArgumentError.of("strides", strides, f"one for each of the {axes} axes")
    return steps


def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return the lowest byte and the end of the highest, relative to element ``[0, 0, ...]``."""
    if 0 in shape:
        return 0, 0
    reach = [(length - 1) * step for length, step in zip(shape, strides, strict=True)]
    return sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + itemsize


def _overlaps(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Tell whether elements may share bytes: each axis must step over all that the finer ones cover.

    Exact for every layout that slicing and transposing a dense array gives; unusual interleavings count as overlap.
    """
    if math.prod(shape) <= 1:
        return False
    covered = itemsize
    for step, length in sorted((abs(s), n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if step < covered:
            return True
        covered += step * (length - 1)
    return False
