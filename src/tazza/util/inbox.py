"""What threads leave for one thread, which waits for it with a timeout that holds."""

from __future__ import annotations

import collections
import threading
from typing import Any, final

__all__ = ["Inbox"]


@final
class Inbox:
    """An unbounded queue for one reader.

    `queue.SimpleQueue.get` of CPython waits without end where its timeout passes between two looks at its lock, which
    happens to waits of less than a millisecond. Leaving something takes no lock that anybody holds for long, so that
    finalisers and signal handlers may.

    >>> inbox = Inbox()
    >>> inbox.put(1), inbox.put(2), inbox.take(timeout=1.0), inbox.take(timeout=0.001)
    (None, None, [1, 2], [])
    """

    def __init__(self) -> None:
        self._items: collections.deque[Any] = collections.deque()
        self._filled = threading.Lock()
        self._filled.acquire()

    def put(self, item: Any) -> None:
        """Leave something."""
        self._items.append(item)
        try:
            self._filled.release()
        except RuntimeError:  # somebody else has just done so, and the reader has not looked yet
            return

    def take(self, timeout: float) -> list[Any]:
        """Wait for something for at most `timeout` seconds; returns all that is there, the oldest first.

        May return nothing before that: what woke it had been taken by the call before.
        """
        self._filled.acquire(timeout=timeout)
        return [self._items.popleft() for _ in range(len(self._items))]
