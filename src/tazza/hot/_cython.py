"""Stands in for the `cython` module where Cython is not installed: its decorators, without effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["cclass", "compiled", "freelist", "no_gc"]

compiled = False

T = TypeVar("T")


def cclass(cls: type[T]) -> type[T]:
    """Compiled: make it an extension type, laid out by the ``.pxd`` file."""
    return cls


def no_gc(cls: type[T]) -> type[T]:
    """Compiled: leave instances out of the garbage collector. Sound where they cannot be part of cyclic garbage."""
    return cls


def freelist(size: int) -> Callable[[type[T]], type[T]]:
    """Compiled: keep up to `size` dead instances for reuse."""
    return lambda cls: cls
