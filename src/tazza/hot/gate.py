# cython: language_level=3, annotation_typing=False
"""The door of a context: open, closing, closed.

A launch either passes before the door closes, and is then drained, or is refused. Work nested in a task that is being
drained may still pass.
"""

from __future__ import annotations

import threading
import weakref
from types import TracebackType

from tazza.errors import ClosedError
from tazza.hot.frame import top
from tazza.hot.process import locked

__all__ = ["Gate"]

LOCKED = locked(__file__)


class Gate:
    """Counts who is inside; entered around each submission.

    Compiled, an open door is passed without a lock, as no other thread can run between the look at it and the count.

    >>> class Owner:
    ...     pass
    >>> owner = Owner()
    >>> gate = Gate(owner, "a context")
    >>> with gate:
    ...     gate.wait_empty(0.0)
    False
    """

    __slots__ = ("_closed", "_empty", "_inside", "_lock", "_name", "_owner", "_shut")

    def __init__(self, owner: object, name: str) -> None:
        self._owner = weakref.ref(owner)
        self._name = name
        self._lock = threading.Lock()
        self._empty = threading.Condition(self._lock)
        self._inside = 0
        self._shut = False
        self._closed = False

    def __enter__(self) -> None:
        if not LOCKED and not self._shut:
            self._inside += 1
            return
        with self._lock:
            if self._shut and (self._closed or not self._is_nested()):
                raise ClosedError(f"{self._name} is closed and takes no new work; make another with tz.context(...)")
            self._inside += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not LOCKED and not self._shut:
            self._inside -= 1
            return
        with self._lock:
            self._inside -= 1
            if self._shut and not self._inside:
                self._empty.notify_all()

    def shut(self) -> None:
        """Let nobody in any more except for work nested in the owner's own tasks."""
        with self._lock:
            self._shut = True

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._shut = self._closed = True

    def wait_empty(self, timeout: float) -> bool:
        """Wait until nobody is inside, after `shut`; tell whether that is so."""
        with self._lock:
            return self._empty.wait_for(self._is_empty, timeout)

    def _is_empty(self) -> bool:
        return not self._inside

    def _is_nested(self) -> bool:
        frame = top()
        return frame is not None and frame.task is not None and bool(frame.task.belongs_to(self._owner()))
