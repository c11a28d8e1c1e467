"""What users pass to draws: shapes, dtypes, shards and numbers, checked and made canonical."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tazza.errors import ArgumentError, UnsupportedError

__all__ = [
    "Part",
    "Shard",
    "Size",
    "float_dtype",
    "integer",
    "integer_dtype",
    "integer_range",
    "number",
    "output",
    "part",
    "shape",
    "text",
]

Size = SupportsIndex | Iterable[SupportsIndex] | None
"""The shape of a draw; None for one value."""

Shard = tuple[int, int] | None
"""``(rank, size)``: which of how many slices of the global draw; None for all of it."""

_MOST_BYTES = 1 << 62
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Part(NamedTuple):
    """The slice of a global draw that this process gets.

    Attributes:
        shape: the slice's shape.
        start: index of its first element in the global draw, in C order.
    """

    shape: tuple[int, ...]
    start: int


def integer(name: str, value: object, *, least: int | None = None) -> int:
    """Return the argument as an int that is at least ``least``, or raise `ArgumentError`."""
    expected = "an integer" if least is None else f"an integer of at least {least}"
    if isinstance(value, (bool, np.bool_)):
        raise ArgumentError.of(name, value, expected)
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ArgumentError.of(name, value, expected) from error
    if least is not None and result < least:
        raise ArgumentError.of(name, value, expected)
    return result


def number(name: str, value: object, dtype: np.dtype[Any], *, least: float = -math.inf) -> float:
    """Return a distribution's parameter as a float that is finite in the dtype, or raise.

    Raises:
        UnsupportedError: for an array of parameters.
        ArgumentError: for anything else that is not a finite number of at least ``least``.
    """
    if getattr(value, "ndim", 0) or isinstance(value, (list, tuple)):
        raise UnsupportedError(
            f"{name}: arrays of parameters are not supported; draw standard values and scale them, "
            "for example mean + deviation * generator.standard_normal(shape)"
        )
    expected = f"a finite {dtype.name} number" + ("" if least == -math.inf else f" of at least {least}")
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError.of(name, value, expected) from error
    if isinstance(value, str) or not (abs(result) <= float(np.finfo(dtype).max) and result >= least):
        raise ArgumentError.of(name, value, expected)
    return result


def shape(size: Size, itemsize: int = 8) -> tuple[int, ...]:
    """Return ``size`` as a shape, or raise `ArgumentError` if it is negative or no array can be that large."""
    if size is None:
        return ()
    # An array without axes says that it can be iterated, but is a number.
    lengths = size if isinstance(size, Iterable) and getattr(size, "ndim", None) != 0 else (size,)
    result = tuple(integer("size", length, least=0) for length in lengths)
    if math.prod(result) * itemsize > _MOST_BYTES:
        raise ArgumentError.of("size", size, f"a shape of at most 2**62 bytes ({itemsize} for each element)")
    return result


def part(whole: tuple[int, ...], shard: Shard) -> Part:
    """Cut a global shape along axis 0: contiguous slices, the first ``n % size`` ranks get one row more.

    >>> [part((5, 2), (rank, 3)) for rank in range(3)]
    [Part(shape=(2, 2), start=0), Part(shape=(2, 2), start=4), Part(shape=(1, 2), start=8)]
    """
    if shard is None:
        return Part(whole, 0)
    rank, size = _rank_and_size(shard)
    if not whole:
        raise ArgumentError.of("shard", shard, "None for a single value: it has no axis 0 to cut")
    rows, more = divmod(whole[0], size)
    first = rank * rows + min(rank, more)
    return Part((rows + (rank < more), *whole[1:]), first * math.prod(whole[1:]))


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return float32 or float64, or raise: `UnsupportedError` names the nearest, `ArgumentError` meets no dtype."""
    result = _native_dtype(dtype, "float32 or float64")
    if result not in _FLOATS:
        nearest = "float32" if result.kind == "f" and result.itemsize < 4 else "float64"
        raise UnsupportedError(f"dtype: {result} values cannot be drawn; draw {nearest} and convert")
    return result


def integer_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return an integer dtype or bool, or raise as `float_dtype` does."""
    result = _native_dtype(dtype, "an integer dtype or bool")
    if result.kind not in "iub":
        raise UnsupportedError(f"dtype: integers cannot be drawn as {result}; draw int64 and convert")
    return result


def integer_range(low: object, high: object, dtype: np.dtype[Any], *, endpoint: bool) -> tuple[int, int]:
    """Return ``(low, span)`` of a non-empty range that fits the dtype, or raise `ArgumentError`.

    With ``high`` None the range is ``[0, low)``; ``endpoint`` includes the upper end.
    """
    for name, bound in (("low", low), ("high", high)):
        if getattr(bound, "ndim", 0) or isinstance(bound, (list, tuple)):
            raise UnsupportedError(f"{name}: arrays of bounds are not supported; draw once for each pair of bounds")
    first, last = (0, integer("low", low)) if high is None else (integer("low", low), integer("high", high))
    last -= not endpoint
    least, most = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if not least <= first <= last <= most:
        raise ArgumentError(
            f"low, high: got the range from {first} to {last} (both included), "
            f"expected a non-empty one within {dtype}, that is {least} to {most}"
        )
    return first, last - first + 1


def text(name: str, value: object) -> str:
    """Return the argument if it is a non-empty string, or raise `ArgumentError`."""
    if not isinstance(value, str) or not value:
        raise ArgumentError.of(name, value, "a non-empty string")
    return value


def output(value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the argument if values of the dtype can be written into it, or raise `ArgumentError`."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or not value.flags.writeable:
        raise ArgumentError.of("out", value, f"a writable NumPy array of {dtype}")
    return value


def _rank_and_size(shard: object) -> tuple[int, int]:
    expected = "(rank, size) with 0 <= rank < size"
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise ArgumentError.of("shard", shard, expected)
    rank, size = integer("shard rank", shard[0], least=0), integer("shard size", shard[1], least=1)
    if rank >= size:
        raise ArgumentError.of("shard", shard, expected)
    return rank, size


def _native_dtype(dtype: object, expected: str) -> np.dtype[Any]:
    try:
        result: np.dtype[Any] = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError as error:
        raise ArgumentError.of("dtype", dtype, expected) from error
    if dtype is None or not result.isnative:
        raise ArgumentError.of("dtype", dtype, f"{expected} in native byte order")
    return result
