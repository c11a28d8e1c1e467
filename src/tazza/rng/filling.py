"""Kernels applied to arrays: cut into slices for threads and into blocks that stay in the cache."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from enum import Enum
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from tazza.rng.cursor import Cursor

__all__ = ["BLOCK", "Affine", "Fill", "Kernel", "Unit", "blocks"]

Kernel = Callable[[Cursor, NDArray[Any]], None]
"""Writes the values that belong to the cursor into a one-dimensional, contiguous array."""

BLOCK = 12 << 10
"""Elements that a kernel handles at a time: enough to hide the cost of calls; its scratch (half a MiB) fits the cache,
and each temporary array stays under 128 KiB, from which on malloc asks the system for fresh pages every time."""

_SLICE = 1 << 16
"""Fewest elements that are worth a thread (100 us of work for 50 us of starting it)."""


class Unit(Enum):
    """What one element of a draw takes from the stream."""

    WORD = "word"
    HALF = "half"
    WHOLE = "whole"  # the elements depend on each other: the kernel fills the array in one go

    def after(self, cursor: Cursor, count: int) -> Cursor:
        """Return the cursor behind ``count`` elements; of a draw as a whole, behind that many words."""
        return cursor.after_halves(count) if self is Unit.HALF else cursor.after_words(count)


class Affine(NamedTuple):
    """``scale * value + shift``, as two separately rounded operations in place (never one fused operation)."""

    scale: float
    shift: float

    def __call__(self, values: NDArray[Any]) -> None:
        np.multiply(values, values.dtype.type(self.scale), out=values)
        np.add(values, values.dtype.type(self.shift), out=values)


@final
class Fill:
    """Writes the values of one draw into an array, at any time and in any thread: it holds all it needs by value.

    Attributes:
        kernel: what writes a slice.
        cursor: the place of the array's first element.
        unit: how the cursor moves from element to element.
        threads: largest number of threads, the calling one included; without effect on the values.
    """

    __slots__ = ("cursor", "kernel", "threads", "unit")

    def __init__(self, kernel: Kernel, cursor: Cursor, unit: Unit, threads: int = 1) -> None:
        self.kernel, self.cursor, self.unit, self.threads = kernel, cursor, unit, threads

    def __call__(self, out: NDArray[Any]) -> None:
        """Fill ``out`` in C order; of the shape and dtype of the draw, with any strides."""
        if not out.flags.c_contiguous:
            packed = np.empty(out.shape, out.dtype)
            self(packed)
            np.copyto(out, packed)
            return
        flat = out.reshape(-1)
        parts = 1 if self.unit is Unit.WHOLE else max(1, min(self.threads, flat.size // _SLICE))
        edges = [flat.size * part // parts for part in range(parts + 1)]
        _in_threads([self._slice(flat, start, stop) for start, stop in pairwise(edges)])

    def _slice(self, flat: NDArray[Any], start: int, stop: int) -> Callable[[], None]:
        return lambda: self.kernel(self.unit.after(self.cursor, start), flat[start:stop])


def blocks(out: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield ``(offset, view)`` for consecutive short pieces of a one-dimensional array."""
    for start in range(0, out.size, BLOCK):
        yield start, out[start : start + BLOCK]


def _in_threads(jobs: list[Callable[[], None]]) -> None:
    """Run the first job here and each other one in a thread of its own; raise the first failure when all have ended."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs[1:]]
    for worker in workers:
        worker.start()
    try:
        jobs[0]()
    finally:
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]
