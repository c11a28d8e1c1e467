"""Orders and samples without replacement, from one word an element, and what they select from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from tazza.errors import ArgumentError
from tazza.rng.arguments import integer
from tazza.rng.bounded import Redraw, bounded
from tazza.rng.cursor import Cursor

__all__ = ["Gather", "Source", "fill_order", "fill_sample", "sample_words"]


class Source(NamedTuple):
    """What a permutation or a choice selects from.

    Attributes:
        array: a NumPy array, an array of another library that array-api-compat knows, or None for ``range(total)``.
        axis: the axis along which elements are selected, at least 0.
        total: how many there are.
    """

    array: Any
    axis: int
    total: int

    @classmethod
    def of(cls, name: str, value: Any, axis: int, *, sharded: bool) -> Source:
        """Make one from an integer, an array or nested sequences, or raise `ArgumentError`."""
        if not hasattr(value, "shape") and isinstance(value, (list, tuple)):
            value = _packed(name, value)
        shape = tuple(getattr(value, "shape", ()))
        if not shape:
            return cls(None, 0, integer(name, value, least=0))
        if not isinstance(value, np.ndarray) and _namespace(value) is None:
            raise ArgumentError.of(name, value, "an integer, a NumPy array or one with an Array API namespace")
        place = integer("axis", axis)
        if not -len(shape) <= place < len(shape):
            raise ArgumentError.of("axis", axis, f"an axis of an array with {len(shape)} axes")
        place %= len(shape)
        if sharded and place:
            raise ArgumentError.of("axis", axis, "axis 0 together with shard, which cuts that axis")
        return cls(value, place, int(shape[place]))

    def selected(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what indices of the given shape select."""
        whole = tuple(self.array.shape)
        return (*whole[: self.axis], *shape, *whole[self.axis + 1 :])

    def take(self, indices: Any, shape: tuple[int, ...]) -> Any:
        """Select from another library's array by its indices of the given shape (its take wants one axis of them)."""
        library: Any = _namespace(self.array)
        if isinstance(indices, np.ndarray) and not hasattr(self.array, "__array_namespace__"):
            indices = library.asarray(indices)  # PyTorch does not take NumPy's
        flat = library.take(self.array, library.reshape(indices, (-1,)), axis=self.axis)
        return library.reshape(flat, self.selected(shape))


@final
class Gather:
    """Writes the elements of a NumPy array that drawn indices select; like `Fill`, at any time and in any thread."""

    __slots__ = ("fill", "shape", "source")

    def __init__(self, source: Source, shape: tuple[int, ...], fill: Callable[[NDArray[Any]], None]) -> None:
        self.source, self.shape, self.fill = source, shape, fill

    def __call__(self, out: NDArray[Any]) -> None:
        """Fill ``out``, of the source's dtype and the shape ``source.selected(shape)``."""
        indices = np.empty(self.shape, np.int64)
        self.fill(indices)
        np.take(self.source.array, indices, axis=self.source.axis, out=out)


def fill_order(cursor: Cursor, out: NDArray[np.int64], *, total: int, start: int) -> None:
    """Write elements ``start`` and following of a random order of ``range(total)``.

    The order is that of ``total`` words of the stream; equal words (one pair in 2**64) keep the order of their indices.
    """
    words = cursor.bit_generator().random_raw(total)
    order = np.argsort(words)
    ranked = words[order]
    if np.any(ranked[1:] == ranked[:-1]):
        order = np.argsort(words, kind="stable")
    out[:] = order[start : start + out.size]


def sample_words(total: int, count: int) -> int:
    """Return how many words a sample of ``count`` out of ``total`` takes."""
    return count if _is_sparse(total, count) else total


def fill_sample(cursor: Cursor, out: NDArray[np.int64], *, total: int, count: int, start: int) -> None:
    """Write elements ``start`` and following of ``count`` distinct integers of ``range(total)`` in random order."""
    if _is_sparse(total, count):
        out[:] = _distinct(cursor, total, count)[start : start + out.size]
    else:
        fill_order(cursor, out, total=total, start=start)


def _is_sparse(total: int, count: int) -> bool:
    """Tell whether collisions are rare enough for independent draws to be faster than a whole order."""
    return 16 * count < total


def _distinct(cursor: Cursor, total: int, count: int) -> NDArray[np.uint64]:
    """Draw values independently, then redraw those that an earlier one has taken, until all differ.

    Which slots are redrawn depends only on which values are equal, so renaming the values commutes with the procedure:
    all sequences of distinct values are equally likely.
    """
    values = bounded(cursor.bit_generator().random_raw(count), total, Redraw(cursor))
    ranking, turn = np.arange(count), 0
    while True:
        first = np.zeros(count, np.bool_)
        first[np.unique(values[ranking], return_index=True)[1]] = True
        settled, pending = ranking[first], ranking[~first]
        if not pending.size:
            return values
        turn += 1
        redraw = Redraw(cursor, turn, pending)
        values[pending] = bounded(redraw(np.arange(pending.size), 0), total, redraw)
        ranking = np.concatenate((settled, pending))


def _namespace(array: Any) -> Any:
    """The Array API namespace of another library's array, or None."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    import array_api_compat  # late: only arrays of libraries without a namespace of their own need it

    try:
        return array_api_compat.array_namespace(array)
    except TypeError:  # of no library that it knows
        return None


def _packed(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ArgumentError.of(name, value, "nested sequences of equal lengths") from error
