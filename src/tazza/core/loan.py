"""A loan: what keeps borrowed memory, and when that may be let go."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, final

from tazza.core.event import Event
from tazza.core.runner import Runner
from tazza.core.stream import Stream
from tazza.errors import LeakWarning
from tazza.hot import Block, Buffer, generation, top
from tazza.hot.process import process
from tazza.util.hostmemory import HostMemory
from tazza.util.report import report

__all__ = ["Loan"]

_VIEWS = 64  # weak references to views after which those that are gone are dropped


@final
class Loan:
    """Borrowed memory from its entry to the release of its owner.

    It belongs to its scope, then to `DeviceRuntime.loans`, then to whoever took it from there, so that nobody else can
    end it a second time.

    Args:
        what: the kind of object, for reports.
        owner: what keeps the memory; it is dropped,
        release: after this was called, where there is such a duty.
        block: knows the streams that used the memory.
        stream: for whose work it is lent.
        pooled: the block is the lender's, whose pool waits for its users by itself.
    """

    def __init__(
        self,
        what: str,
        owner: object,
        block: Block,
        stream: Stream,
        *,
        release: Callable[[], None] | None = None,
        pooled: bool = False,
    ) -> None:
        self.what, self.owner, self.pooled = what, owner, pooled
        self._release = release
        self.generation = generation()
        self.abandoned = False
        self._buffer: weakref.ref[Buffer] | None = None
        self._block, self._runner = block, stream.runner
        self._views: list[weakref.ref[HostMemory]] = []
        self._events: list[Event] | None = None

    def remember(self, buffer: Buffer) -> None:
        """Know the Buffer that the scope gives out, which knows the loan."""
        self._buffer = weakref.ref(buffer)

    def watch(self, memory: HostMemory) -> None:
        """Know a view that the host is about to get."""
        with process.lock:
            if len(self._views) >= _VIEWS:
                self._views = [view for view in self._views if view() is not None]
            self._views.append(weakref.ref(memory))

    @property
    def views(self) -> int:
        """How many views the host still has."""
        with process.lock:
            return sum(view() is not None for view in self._views) if self._views else 0

    def close(self) -> list[Event]:
        """Close the Buffer and return the ends of what is queued that may use the memory.

        That is the stream's queue and the uses on other streams. Inside a task of the stream the task itself does not
        count, as its code is the caller's, but what uses the memory behind it does.
        """
        buffer = None if self._buffer is None else self._buffer()
        if buffer is not None:
            buffer.close()
        if self._events is None:
            consumers = self._consumers()
            if consumers and self._runner.runtime.lost() is not None:
                consumers = []  # nothing queued there will ever run
            self._events = [one.mark() for one in consumers]
        return self._events

    @property
    def pending(self) -> list[Event]:
        """What the memory is kept for, as far as that was asked."""
        return self._events or []

    def _consumers(self) -> list[Runner]:
        used: list[Runner] = [user.runner for user, number in self._block.users or () if not user.reached(number)]
        own, frame = self._runner, top()
        inside = frame is not None and frame.task is not None and frame.task.runs_on(own)
        if own not in used and not inside and not own.reached(own.submitted):
            used.insert(0, own)
        return used

    @property
    def is_used(self) -> bool:
        """Whether queued work may still use the memory, of which the scope is over."""
        if self._events is None:
            self.close()
        if self._events:
            self._events = [event for event in self._events if not event.poll()]
        return bool(self._events)

    def end(self) -> bool:
        """Let the owner go if nothing can use the memory any more; tell whether that is so. Never waits.

        Calls foreign code: never under a lock.
        """
        if self.generation != generation():
            return True
        if self.abandoned and self._is_open():
            return False
        if not self.pooled and (self.is_used or self.views):
            return False
        release, self._release = self._release, None
        if release is not None:
            release()
        del release
        self.owner = None
        if self.abandoned:
            report(f"a borrow of {self.what} was dropped before its end; use it in a `with` statement", LeakWarning)
        return True

    def _is_open(self) -> bool:
        buffer: Any = None if self._buffer is None else self._buffer()
        return buffer is not None and not buffer.is_closed
