# cython: language_level=3, annotation_typing=False
"""Which process this is: a generation that every forked child raises by one, and the lock of uncompiled builds.

Objects that own work or memory keep the generation in which they were made and compare it on use: a forked child has
their bytes, but neither the threads nor the device behind them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from tazza.util.inbox import Inbox

__all__ = ["Process", "after_fork", "generation", "locked", "process", "wake"]


class Process:
    """State of this process, as attributes that compiled modules read without a call.

    Attributes:
        generation: see `generation`.
        lock: taken on the fast paths of accounts and pools where `locked` says so. One for all of them and reentrant,
            because the garbage collector may run a finaliser that allocates while this thread holds it: two locks
            could be taken in either order.
        waiters: None, or the queues of those who wait for memory; whatever gives memory back puts a token into each.
    """

    __slots__ = ("generation", "lock", "waiters")

    def __init__(self) -> None:
        self.generation = 0
        self.lock = threading.RLock()
        self.waiters: tuple[Inbox, ...] | None = None


process = Process()
_renewals: list[Callable[[], object]] = []


def generation() -> int:
    """Return 0 in the process that imported tazza, and one more in each forked child.

    >>> generation() >= 0
    True
    """
    return process.generation


def wake() -> None:
    """Tell everyone who waits for memory that some came back; safe in finalisers, as `SimpleQueue.put` is reentrant."""
    for waiter in process.waiters or ():
        waiter.put(None)


def after_fork(renew: Callable[[], object]) -> Callable[[], object]:
    """Call `renew` in every forked child, before any other of its code: modules make their locks anew with it.

    Args:
        renew: a module-level callable without arguments; it is kept for the life of the process.

    Returns:
        `renew`, so that this may be used as a decorator.
    """
    _renewals.append(renew)
    return renew


def locked(module_file: str) -> bool:
    """Return True where a hot module needs locks on its fast paths: uncompiled, or without a global interpreter lock.

    Compiled code that calls no Python code cannot be interrupted by another thread while there is such a lock.

    Args:
        module_file: the ``__file__`` of the module that asks.
    """
    compiled = not module_file.endswith((".py", ".pyc"))
    return not compiled or not getattr(sys, "_is_gil_enabled", lambda: True)()


def _in_child() -> None:
    process.generation += 1
    process.lock = threading.RLock()
    process.waiters = None
    for renew in _renewals:
        renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
