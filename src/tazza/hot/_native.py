"""What the compiled form takes from CPython's C interface; `_native.pxd` has the same names for the compiler."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, NoReturn, TypeVar

__all__ = ["BufferView", "get_buffer", "reset_variable", "set_variable"]

T = TypeVar("T")
BufferView = Any
"""``Py_buffer *``."""


def get_buffer(exporter: object, view: BufferView, flags: int) -> NoReturn:
    """Fill `view` with the buffer of `exporter`: only C code has such a view to fill."""
    raise NotImplementedError("uncompiled buffers offer __buffer__ instead")


def set_variable(variable: ContextVar[T], value: T) -> Token[T]:
    """``variable.set(value)``."""
    return variable.set(value)


def reset_variable(variable: ContextVar[T], token: Token[T]) -> None:
    """``variable.reset(token)``."""
    variable.reset(token)
