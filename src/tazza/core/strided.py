"""Strided memory in copies and fills: which boxes the device moves, and what the host puts into order around them.

What the host sees is laid out as the device's side is, so that a view of whatever axes takes few boxes. Memory that
arrives in ordinary arrays can always come with its gaps; other copies are refused where they would take too many boxes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tazza.core.runtime import DeviceRuntime
from tazza.core.side import Array, Side
from tazza.errors import UnsupportedError
from tazza.memory.boxes import Moves, Spread, dense_strides, plan, span, spread

__all__ = ["Landing", "arranged", "landing", "moves_between", "overlap", "spread_over"]

_MOST_COPIES = 1024
"""Calls of the driver for one copy or fill; each is a few microseconds of the host's time."""

_WITH_GAPS = 4
"""Bytes that may be brought for each byte that is wanted, rather than to bring several boxes."""


class _Layouts(NamedTuple):
    """Two sides of the same elements, one of which may be plain bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    dst: tuple[int, ...]
    src: tuple[int, ...]


class Landing(NamedTuple):
    """Where strided memory of a device arrives in the host.

    Attributes:
        target: the array to copy into, or its bytes.
        source: what is copied there.
        view: the elements in it, in the shape of the array that wants them; None where they are in that array already.
    """

    target: Side
    source: Side
    view: Array | None


def moves_between(target: Side, source: Side, runtime: DeviceRuntime) -> Moves | None:
    """The boxes that a device copies between two sides of equal bytes, which are not empty; None where both are dense.

    Raises:
        UnsupportedError: the device copies no boxes, or too many would be needed.
    """
    if target.is_contiguous and source.is_contiguous:
        return None
    kind = _layouts(target, source)
    moves = plan(kind.dtype.itemsize, kind.shape, kind.dst, kind.src)
    if moves.is_one_run:
        return moves
    _check(runtime, target if source.is_contiguous else source, moves.copies)
    return moves


def spread_over(target: Side, runtime: DeviceRuntime) -> Spread:
    """How one element fills strided memory of a device.

    Raises:
        UnsupportedError: as `moves_between`.
    """
    assert target.dtype is not None
    found = spread(target.dtype.itemsize, target.shape, target.strides)
    if found.steps:
        _check(runtime, target, sum(moves.copies for moves in found.steps))
    return found


def arranged(target: Side, source: Side, *, like: Side) -> Array:
    """An uninitialised host array for the elements of two sides, without gaps and in the order of one of the two."""
    kind = _layouts(target, source)
    first, strides = dense_strides(kind.dtype.itemsize, kind.shape, kind.dst if like is target else kind.src)
    return _seen(np.empty(target.size, np.uint8), kind, first, strides)


def landing(target: Side, source: Side) -> Landing:
    """Choose how strided memory comes into an ordinary array, or dense memory into a strided one."""
    kind = _layouts(target, source)
    itemsize, boxes = kind.dtype.itemsize, source.runtime.capabilities.boxes
    first, strides = dense_strides(itemsize, kind.shape, kind.src)
    low, high = span(itemsize, kind.shape, kind.src)
    moves = plan(itemsize, kind.shape, strides, kind.src)
    few = moves.copies == 1 or (moves.copies <= _MOST_COPIES and high - low > _WITH_GAPS * target.size)
    if moves.is_one_run or (boxes and few):
        if strides == kind.dst:
            return Landing(target, source, None)
        view = _seen(np.empty(target.size, np.uint8), kind, first, strides)
        return Landing(Side(view, argument="dst", write=True), source, view)
    memory = np.empty(high - low, np.uint8)
    view = _seen(memory, kind, -low, kind.src)
    return Landing(Side(memory, argument="dst", write=True), source.bytes_around(low, high - low), view)


def overlap(target: Side, source: Side) -> bool:
    """Tell whether the ranges of two sides of one domain meet, gaps included."""
    (a, b), (c, d) = (
        (side.address, side.address + side.size)
        if side.is_contiguous
        else tuple(side.address + edge for edge in _span_of(side))
        for side in (target, source)
    )
    return a < d and c < b


def _span_of(side: Side) -> tuple[int, int]:
    assert side.dtype is not None
    return span(side.dtype.itemsize, side.shape, side.strides)


def _layouts(target: Side, source: Side) -> _Layouts:
    typed = target if target.dtype is not None else source
    assert typed.dtype is not None, "bytes without a dtype are dense"
    dense = dense_strides(typed.dtype.itemsize, typed.shape, [1] * len(typed.shape))[1]
    dst, src = (tuple(side.strides) if side.dtype is not None else dense for side in (target, source))
    return _Layouts(typed.dtype, tuple(typed.shape), dst, src)


def _seen(memory: Array, kind: _Layouts, first: int, strides: tuple[int, ...]) -> Array:
    return np.ndarray(kind.shape, kind.dtype, buffer=memory, offset=first, strides=strides)


def _check(runtime: DeviceRuntime, side: Side, count: int) -> None:
    layout = f"shape {tuple(side.shape)} with strides {tuple(side.strides)}"
    if not runtime.capabilities.boxes:
        raise UnsupportedError(
            f"{runtime.name} copies and fills contiguous memory only, got {layout}; copy it to a contiguous array on "
            "its own device first, or use a kernel"
        )
    if count > _MOST_COPIES:
        raise UnsupportedError(
            f"{layout} would take {count} copies on {runtime.name}, more than {_MOST_COPIES}; use a kernel, or "
            "go through the host with ctx.to_numpy"
        )
