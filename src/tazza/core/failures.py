"""The failures of a context's work that nobody has seen yet."""

from __future__ import annotations

import threading
from typing import final

from tazza.core.completion import raise_copy
from tazza.errors import CleanupWarning
from tazza.hot import generation
from tazza.util.report import report

__all__ = ["Failure", "Failures"]

_KEPT = 100


@final
class Failure:
    """One failure; `observed` once somebody was shown it."""

    __slots__ = ("error", "label", "observed", "queue")

    def __init__(self, label: str, error: BaseException, queue: object, observed: bool = False) -> None:
        self.label, self.error, self.queue, self.observed = label, error, queue, observed


@final
class Failures:
    """The failures on all streams of one context, in the order in which they happened.

    The first unseen one is raised by whoever synchronises; what is left when the context dies is reported once.
    """

    __slots__ = ("__weakref__", "_generation", "_items", "_lock")

    def __init__(self) -> None:
        self._items, self._lock = list[Failure](), threading.Lock()
        self._generation = generation()

    def add(self, failure: Failure) -> None:
        """Remember a failure; beyond a hundred unseen ones only the first hundred are kept."""
        with self._lock:
            self._items = [item for item in self._items if not item.observed]
            if len(self._items) < _KEPT:
                self._items.append(failure)

    def raise_first(self, queue: object = None) -> None:
        """Raise the first failure that nobody has seen, of one stream's queue or of all."""
        with self._lock:
            unseen = (item for item in self._items if not item.observed and queue in (None, item.queue))
            failure = next(unseen, None)
            if failure is not None:
                failure.observed = True
        if failure is not None:
            raise_copy(failure.error)

    def forget(self) -> None:
        """Take all as seen."""
        with self._lock:
            self._items.clear()

    def __del__(self) -> None:
        for failure in self._items:
            if not failure.observed and self._generation == generation():
                failure.observed = True
                what = f"{failure.label!r} failed on {failure.queue} and nobody asked"
                report(what, CleanupWarning, error=failure.error)
