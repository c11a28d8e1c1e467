"""What oneDNN's functions are given: addresses whole, wherever the interpreter's memory lies."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

from tazza.dnn.onednn.binding import Dnnl

COUNT = 12
"""Arguments; from the seventh on they travel on the stack."""


def test_small_addresses_arrive_whole_after_large_ones() -> None:
    """On a Python that is not position independent the heap begins below 2**31."""
    seen: list[tuple[int, ...]] = []
    words = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_uint64] * COUNT)
    target = words(lambda *arguments: seen.append(arguments) or 0)  # type: ignore[func-returns-value]
    untyped = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.cast(target, ctypes.c_void_p).value or 0)
    dnnl = object.__new__(Dnnl)
    dnnl._library = SimpleNamespace(asked=untyped)
    large, small = [0x7FFF_1234_5678 + i for i in range(COUNT)], [0x1234_5678 + i for i in range(COUNT)]
    for given in (large, small, large, [0] * COUNT):
        dnnl.do("asked", *given)
    assert seen == [tuple(large), tuple(small), tuple(large), (0,) * COUNT]


def test_other_arguments_are_passed_as_they_are() -> None:
    seen: list[tuple[object, ...]] = []
    types = (ctypes.c_void_p, ctypes.c_float, ctypes.c_int)
    target = ctypes.CFUNCTYPE(ctypes.c_int, *types)(
        lambda *arguments: seen.append(arguments) or 0  # type: ignore[func-returns-value]
    )
    dnnl = object.__new__(Dnnl)
    dnnl._library = SimpleNamespace(
        asked=ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.cast(target, ctypes.c_void_p).value or 0)
    )
    dnnl.do("asked", None, 0.5, -3)
    assert seen == [(None, 0.5, -3)]
