"""What the compiled form takes from CPython's C interface; `_native.pxd` has the same names for the compiler."""

from __future__ import annotations

from contextvars import ContextVar, Token
from threading import get_ident as thread_ident
from typing import Any, NoReturn, TypeVar

__all__ = [
    "BufferView",
    "Entry",
    "call_entry",
    "get_buffer",
    "get_variable",
    "no_entry",
    "reset_variable",
    "set_variable",
    "thread_ident",
]

T = TypeVar("T")
BufferView = Any
"""``Py_buffer *``."""
Entry = Any
"""A C function without arguments."""


def get_buffer(exporter: object, view: BufferView, flags: int) -> NoReturn:
    """Fill `view` with the buffer of `exporter`: only C code has such a view to fill."""
    raise NotImplementedError("uncompiled buffers offer __buffer__ instead")


def no_entry() -> Entry:
    """NULL."""
    return None


def call_entry(entry: Entry) -> None:
    """Call `entry` where there is one: only C code can be."""


def get_variable(variable: ContextVar[T]) -> T:
    """``variable.get()``."""
    return variable.get()


def set_variable(variable: ContextVar[T], value: T) -> Token[T]:
    """``variable.set(value)``."""
    return variable.set(value)


def reset_variable(variable: ContextVar[T], token: Token[T]) -> None:
    """``variable.reset(token)``."""
    variable.reset(token)
