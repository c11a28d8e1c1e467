"""What the compiled form takes from CPython's C interface; `_native.pxd` has the same names for the compiler."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["BufferView", "get_buffer"]

BufferView = Any
"""``Py_buffer *``."""


def get_buffer(exporter: object, view: BufferView, flags: int) -> NoReturn:
    """Fill `view` with the buffer of `exporter`: only C code has such a view to fill."""
    raise NotImplementedError("uncompiled buffers offer __buffer__ instead")
