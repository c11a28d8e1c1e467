"""A DNN library's primitives, run one after another: `tazza.hot.primitives`, or uncompiled the same through ctypes.

Best of 15 on an AMD EPYC: the smallest convolution with its three reorders takes 2.5 us compiled and 34 us through
ctypes, the smallest matrix product 1.5 and 19 us. A training step of the demo makes nine such calls.
"""

from __future__ import annotations

import ctypes
from collections.abc import Hashable, Sequence
from typing import Any, final

import numpy as np

from tazza.errors import UsageError

__all__ = ["PrimitiveSequence", "call_key"]

_EXECUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_SET_HANDLE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_GET_THREADS = ctypes.CFUNCTYPE(ctypes.c_int)
_SET_THREADS = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _call_key(kind: bytes, arrays: list[Any], options: tuple[Any, ...], more: int) -> Hashable:
    """Return what tells a call from all others that need another plan; to look up plans by.

    Args:
        kind: what is done, and how it is chosen.
        arrays: of which the layouts matter; some may be None.
        options: None, numbers, strings and tuples of such. An option is told by its type too: True and 1.0 equal 1.
        more: whatever else matters.

    Raises:
        TypeError, OverflowError: an option, or an array, is nothing of that.
    """
    # Made of numbers: to hash a dtype or a dataclass takes longer than all the rest.
    layouts = [None if one is None else (one.dtype.num, one.dtype.isnative, one.shape, one.strides) for one in arrays]
    key = kind, tuple(layouts), options, _types(options), more
    hash(key)
    return key


def _types(options: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([_types(one) if type(one) is tuple else type(one) for one in options])


class _Argument(ctypes.Structure):
    _fields_ = [("name", ctypes.c_int32), ("memory", ctypes.c_void_p)]


@final
class _PrimitiveSequence:
    """Primitives with memory objects of their own, for one caller at a time.

    Args:
        functions: addresses of execute(primitive, stream, count, arguments), set_handle(memory, data), get_threads()
            and set_threads(count), the latter two for the calling thread.
        threads: what `run` sets for as long as it takes.
        slots: memory objects, each with the number of the array that it lies in, -1 for the scratch memory, and the
            first byte there.
        steps: primitives, each with the names of its arguments and their memory objects.
        expected: for each array its dtype, shape and strides in bytes; None where any will do.
        owner: kept as long as this.
    """

    def __init__(
        self,
        functions: tuple[int, int, int, int],
        threads: int,
        slots: Sequence[tuple[int, int, int]],
        steps: Sequence[tuple[int, Sequence[tuple[int, int]]]],
        expected: tuple[tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...]] | None, ...],
        owner: object,
    ) -> None:
        execute, set_handle, get_threads, set_threads = functions
        self._execute, self._set_handle = _EXECUTE(execute), _SET_HANDLE(set_handle)
        self._get_threads, self._set_threads = _GET_THREADS(get_threads), _SET_THREADS(set_threads)
        self._threads, self._slots, self._expected, self._owner = threads, tuple(slots), expected, owner
        self._steps = [
            (primitive, len(arguments), (_Argument * len(arguments))(*[_Argument(*one) for one in arguments]))
            for primitive, arguments in steps
        ]

    def run(self, arrays: Sequence[Any], stream: int, scratch: int) -> int:
        """Do the steps in order; returns the library's status, 0 where all went well.

        Raises:
            UsageError: an array does not lie as was expected. Nothing was called.
        """
        if len(arrays) != len(self._expected):
            raise UsageError(f"got {len(arrays)} arrays, expected {len(self._expected)}: inputs, then outputs")
        for number, (array, want) in enumerate(zip(arrays, self._expected, strict=True)):
            if want is not None and not _lies_as(array, want):
                came = (array.dtype, array.shape, array.strides) if type(array) is np.ndarray else type(array).__name__
                raise UsageError(
                    f"array {number}: got {came}, expected {want} (dtype, shape, strides in bytes), the layout that "
                    "this plan was made for"
                )
        for memory, number, offset in self._slots:
            start = scratch if number < 0 else arrays[number].__array_interface__["data"][0]
            status = self._set_handle(memory, start + offset)
            if status:
                return int(status)
        before = self._get_threads()
        if before != self._threads:
            self._set_threads(self._threads)
        try:
            for primitive, count, arguments in self._steps:
                status = self._execute(primitive, stream, count, arguments)
                if status:
                    return int(status)
        finally:
            if before != self._threads:
                self._set_threads(before)
        return 0


def _lies_as(array: Any, want: tuple[Any, tuple[int, ...], tuple[int, ...]]) -> bool:
    dtype, shape, strides = want
    if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
        return False
    return all(
        extent <= 1 or step == wanted for extent, step, wanted in zip(shape, array.strides, strides, strict=True)
    )


try:
    from tazza.hot.primitives import PrimitiveSequence, call_key
except ImportError:  # not compiled: the same, slower
    PrimitiveSequence = _PrimitiveSequence  # type: ignore[assignment, misc]
    call_key = _call_key  # type: ignore[assignment]
