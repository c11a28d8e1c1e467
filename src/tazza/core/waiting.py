"""Who waits in the host, and for what: a wait for memory asks whether anybody could still give some back.

Nothing is noted but while a thread blocks, so work that does not wait pays nothing.
"""

from __future__ import annotations

import threading
import weakref
from types import TracebackType
from typing import Any, NamedTuple, final

from tazza.hot import after_fork, top

__all__ = ["Blocked", "QueuePlace", "blocked", "note_taker", "takers", "waiting_for"]


class Blocked(NamedTuple):
    """One thread that waits.

    Attributes:
        what: the event, task or place in a queue that it waits for; None for memory.
        task: the innermost task that it runs, or None.
    """

    what: Any
    task: Any


class QueuePlace(NamedTuple):
    """Room in a full queue: it comes when what is queued goes on."""

    stream: Any
    number: int


blocked: dict[int, Blocked] = {}
"""Every thread that waits inside tazza now, by its identity."""

takers: dict[int, weakref.ref[threading.Thread]] = {}
"""Threads that have asked a task for its result, and so may hold what tasks made; identities are used again."""


def note_taker() -> None:
    """Note that the calling thread asks a task for its result."""
    thread = threading.current_thread()
    known = takers.get(threading.get_ident())
    if known is None or known() is not thread:
        takers[threading.get_ident()] = weakref.ref(thread)


@final
class waiting_for:
    """``with waiting_for(what):`` around a wait of the calling thread; None stands for memory."""

    __slots__ = ("_before", "_thread", "_what")

    def __init__(self, what: Any) -> None:
        self._what = what

    def __enter__(self) -> None:
        frame = top()
        self._thread = threading.get_ident()
        self._before = blocked.get(self._thread)
        blocked[self._thread] = Blocked(self._what, None if frame is None else frame.task)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is None:
            blocked.pop(self._thread, None)
        else:  # a finaliser waited while this thread did
            blocked[self._thread] = self._before


def _renew() -> None:
    blocked.clear()
    takers.clear()


after_fork(_renew)
