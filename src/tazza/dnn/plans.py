"""A bounded cache of plans: each is made once, without a lock on anybody who wants another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar, final

from tazza.core.completion import timeout_or_default
from tazza.errors import ArgumentError, WaitTimeoutError

__all__ = ["CacheInfo", "PlanCache"]

T = TypeVar("T")


class CacheInfo(NamedTuple):
    """How a cache did: lookups that found a plan and that made one, plans that it holds, may hold, and has dropped.

    Threads that find plans at once may count as one.
    """

    hits: int
    misses: int
    size: int
    limit: int
    dropped: int


class _Entry(Generic[T]):
    __slots__ = ("plan", "used")

    def __init__(self, plan: T, used: int) -> None:
        self.plan, self.used = plan, used


@final
class PlanCache(Generic[T]):
    """The most recently used plans of one library on one device.

    Args:
        limit: plans that are kept, 1 or more.

    >>> cache = PlanCache[str](2)
    >>> [cache.get(key, lambda: key.upper()) for key in ("a", "b", "a", "c", "b")]
    ['A', 'B', 'A', 'C', 'B']
    >>> cache.info()
    CacheInfo(hits=1, misses=4, size=2, limit=2, dropped=2)
    """

    def __init__(self, limit: int = 1024) -> None:
        if type(limit) is not int or limit < 1:
            raise ArgumentError.of("limit", limit, "a number of plans, 1 or more")
        self._limit = limit
        self._entries: dict[Hashable, _Entry[T]] = {}
        self._making: dict[Hashable, threading.Event] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = self._dropped = 0
        self._clock = 0  # goes on with every use

    def find(self, key: Hashable) -> T | None:
        """Return the plan of a key if it is there. Without a lock: who drops the least used looks for it then."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._hits += 1
        self._clock = entry.used = self._clock + 1
        return entry.plan

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the plan of a key, made by ``make()`` where there is none; others that want it meanwhile wait.

        What `make` raises is raised to the caller alone, and the next one tries again.

        Raises:
            WaitTimeoutError: somebody else still made it after ``TAZZA_WAIT_TIMEOUT``.
        """
        while (plan := self.find(key)) is None:
            with self._lock:
                if key in self._entries:  # since a moment
                    continue
                made = self._making.get(key)
                if made is None:
                    self._making[key] = made = threading.Event()
                    self._misses += 1
                    break
            if not made.wait(timeout_or_default(None)):
                raise WaitTimeoutError(f"another thread still chooses a plan for {key}")
        else:
            return plan
        try:
            plan = make()
            with self._lock:
                self._clock += 1
                self._entries[key] = _Entry(plan, self._clock)
                while len(self._entries) > self._limit:
                    del self._entries[min(self._entries, key=lambda one: self._entries[one].used)]
                    self._dropped += 1
            return plan
        finally:
            with self._lock:
                del self._making[key]
            made.set()

    def clear(self) -> None:
        """Drop all plans; those in use live on until they are done."""
        with self._lock:
            self._dropped += len(self._entries)
            self._entries.clear()

    def info(self) -> CacheInfo:
        """The figures of now."""
        with self._lock:
            return CacheInfo(self._hits, self._misses, len(self._entries), self._limit, self._dropped)
