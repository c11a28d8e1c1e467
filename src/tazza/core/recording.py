"""Recordings: what was allocated and freed on a device, when, by whom and where in the program."""

from __future__ import annotations

import collections
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, final

from tazza.core.snapshot import MemoryEvent
from tazza.errors import BusyError
from tazza.hot import Account, settle_frees
from tazza.hot.hooks import Operation, listen
from tazza.util.sites import Site, capture, written

__all__ = ["Recording"]


class _Event(NamedTuple):
    """As `MemoryEvent`, before anything is written out."""

    time_ns: int
    kind: str
    address: int
    nbytes: int
    owner: tuple[str, ...]
    label: str | None
    library: str
    site: Site


@final
class Recording:
    """Listens to a device's memory until it is stopped; made by ``ctx.memory.record``.

    While it runs, snapshots and leak reports have call sites and a history. It holds no memory of the program alive.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx, ctx.memory.record() as recording:
    ...     x = ctx.allocate(64, label="x")
    ...     del x
    ...     y = ctx.allocate(64, label="y")
    ...     [event.kind for event in ctx.memory.snapshot().events]
    ['allocate', 'free', 'allocate']
    """

    def __init__(self, runtime: Any, *, sites: bool, most: int) -> None:
        self._runtime, self._depth = runtime, 8 if sites else 0
        self._events: collections.deque[_Event] = collections.deque(maxlen=most)
        self._count = 0
        self._live: dict[int, _Event] = {}
        self._lock = threading.Lock()
        with runtime.lock:
            if runtime.recording is not None:
                raise BusyError(f"the memory of {runtime.name} is being recorded already; stop that recording first")
            runtime.recording = self
        self._unsubscribe = listen(self._hear)

    def _hear(self, operation: Operation) -> None:
        """Keep one operation; the lock is never held while other code runs."""
        kind = operation.kind
        if kind not in ("allocate", "free", "oom"):
            return
        block = getattr(operation.subject, "block", operation.subject)
        account: Account | None = operation.subject if kind == "oom" else block.account
        if kind == "free":
            self._free(block.address, operation.nbytes)
        elif account is not None and account.counts_in(self._runtime.account):
            site = capture(self._depth) if self._depth else ()
            library = "tazza" if kind == "oom" else block.library
            address = 0 if kind == "oom" else block.address
            event = _Event(
                time.time_ns(), kind, address, operation.nbytes, account.path, operation.label, library, site
            )
            if kind == "allocate":
                self._live[address] = event
            self._keep(event)

    def _free(self, address: int, nbytes: int) -> None:
        made = self._live.pop(address, None)
        if made is not None:  # else it is older than the recording, or another device's
            self._keep(made._replace(time_ns=time.time_ns(), kind="free", site=()))

    def _keep(self, event: _Event) -> None:
        self._events.append(event)  # atomic; a full deque drops its oldest
        self._count += 1

    def site_of(self, address: int) -> tuple[str, ...]:
        """Where the block that lies at an address now was allocated, if that was recorded. Internal."""
        made = self._live.get(address)
        return () if made is None else written(made.site)

    def events(self) -> tuple[tuple[MemoryEvent, ...], int]:
        """The events so far, oldest first, and how many had no room. Internal."""
        settle_frees()
        kept, count = list(self._events), self._count  # other threads go on meanwhile
        return tuple(MemoryEvent(*event[:-1], written(event.site)) for event in kept), max(0, count - len(kept))

    def stop(self) -> None:
        """Listen no longer; snapshots have no history from now on. Idempotent."""
        self._unsubscribe()
        with self._runtime.lock:
            if self._runtime.recording is self:
                self._runtime.recording = None

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Recording of {self._runtime.name}: {self._count} events>"
