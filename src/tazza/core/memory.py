"""What ``ctx.memory`` offers: figures, limits, budgets, charges, handlers, snapshots and recordings."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

from tazza.core.budget import Budget
from tazza.core.charge import Charge, checked_label
from tazza.core.completion import timeout_or_default
from tazza.core.hostmemory import PinnedMemory, SharedMemory
from tazza.core.pool import MemoryPool, host_lane
from tazza.core.pressure import Handler, Pressure
from tazza.errors import ArgumentError, ClosedError, ForkedError
from tazza.hot import Account, frame_of
from tazza.hot.process import process
from tazza.memory.stats import MemoryStats
from tazza.util.text import parse_nbytes

if TYPE_CHECKING:
    from tazza.core.recording import Recording
    from tazza.core.snapshot import MemorySnapshot, RecordedBlock

__all__ = ["Memory"]


@final
class Memory:
    """What a context holds: ``ctx.memory``.

    >>> import tazza as tz
    >>> with tz.open("cpu", memory_limit="1MiB") as ctx:
    ...     buffer = ctx.allocate(1000, label="weights")
    ...     ctx.memory.stats().live, ctx.memory.limit, ctx.memory.holders()
    (1024, 1048576, (('weights', 1024, 1),))
    """

    def __init__(self, context: Any, pool: MemoryPool, account: Account) -> None:
        self._owner = weakref.ref(context)  # which holds this: a strong reference would be a cycle
        self._pool = pool
        self._account = account

    def __repr__(self) -> str:
        return f"<Memory of {self._account.name}: {self._account!r} in the {self.pool} pool>"

    @property
    def pool(self) -> str:
        """The kind of the pool: ``"caching"``, ``"direct"`` or ``"driver"``."""
        return self._pool.kind

    @property
    def pinned(self) -> PinnedMemory:
        """Page-locked host memory, in a pool of its own beside this one."""
        return PinnedMemory(self._context(), partial(host_lane, self._pool.runtime, "pinned"))

    @property
    def shared(self) -> SharedMemory:
        """Host memory that other processes map by name."""
        return SharedMemory(self._context(), partial(host_lane, self._pool.runtime, "shared"))

    @property
    def limit(self) -> int | None:
        """The most bytes that may be live at once, or None.

        Setting takes what ``memory_limit=`` takes: bytes, a text like ``"2GiB"``, or None.

        Raises:
            ArgumentError: on setting, where it is no size or less than what is live.
            ForkedError: on setting, in a process forked from the one of the context.
        """
        return self._account.limit

    @limit.setter
    def limit(self, limit: int | str | None) -> None:
        self._check_process()
        nbytes = None if limit is None else parse_nbytes(limit, argument="limit")
        self._pool.drain()
        if nbytes is not None and nbytes < self._account.live:
            raise ArgumentError.of("limit", limit, f"at least the {self._account.live} bytes that are live; drop some")
        self._account.limit = nbytes

    def stats(self) -> MemoryStats:
        """Return the figures of now; takes back first what was freed since the last allocation.

        Raises:
            ForkedError: in a process forked from the one of the context.
        """
        self._check_process()
        pool, account = self._pool.pool, self._account
        self._pool.drain()
        idle = self._pool.idle_nbytes()
        pending, live, peak, requested, allocations, blocks, all_live, reserved, reserved_peak = pool.figures(account)
        return MemoryStats(
            live=live,
            peak=peak,
            pending=pending,
            limit=account.limit,
            allocated_bytes=live - pending,
            requested_bytes=requested,
            reserved_bytes=reserved,
            reserved_bytes_peak=reserved_peak,
            inactive_split_bytes=max(0, reserved - all_live - idle),
            allocations=allocations,
            frees=allocations - blocks,
            num_alloc_retries=pool.retries,
            num_ooms=account.ooms,
        )

    def trim(self, keep: int | str = 0) -> int:
        """Give unused memory of the pool back to the device while more than `keep` bytes are reserved.

        Events and the like that the driver keeps for reuse go back too. Waits for nothing: memory that a queue still
        uses stays, and goes back with a trim after `Context.synchronize`.

        Returns:
            Bytes given back.

        Raises:
            ForkedError: in a process forked from the one of the context.
        """
        self._check_process()
        nbytes = self._pool.pool.trim(parse_nbytes(keep, argument="keep"))
        self._pool.runtime.trim()
        return nbytes

    def reset_peak(self) -> None:
        """Let the peak start again from what is live now; raises ForkedError in a forked process."""
        self._check_process()
        self._pool.drain()
        self._account.reset_peak()

    def holders(self, count: int = 10) -> tuple[tuple[str, int, int], ...]:
        """Return the largest holders of this context's memory as (label, bytes, blocks), largest first."""
        self._check_process()
        return self._pool.holders(count, self._account)

    def budget(
        self,
        limit: int | str | None,
        *,
        name: str = "budget",
        on_full: Literal["raise", "wait"] = "raise",
        timeout: float | None = None,
        reserve: int | str = 0,
    ) -> Budget:
        """Make a budget for ``with`` or ``async with``, below the one that is current here.

        Args:
            limit: the most bytes that may be live in it at once, or None for none of its own.
            name: in errors and reports.
            on_full: ``"raise"``, or ``"wait"`` until others give back enough.
            timeout: seconds that an allocation, or the reserve, waits then; None is ``TAZZA_WAIT_TIMEOUT``.
            reserve: bytes to set aside on entry, in the budgets and the context around it, so that they cannot be taken
                by others meanwhile; ``async with`` waits for them whatever `on_full` says.

        Raises:
            ArgumentError: a size that is none, or a reserve above the limit.
        """
        self._check_process()
        nbytes = None if limit is None else parse_nbytes(limit, argument="limit")
        aside = parse_nbytes(reserve, argument="reserve")
        if nbytes is not None and aside > nbytes:
            raise ArgumentError.of("reserve", reserve, f"at most the limit of {nbytes} bytes")
        if on_full not in ("raise", "wait"):
            raise ArgumentError.of("on_full", on_full, "'raise' or 'wait'")
        patience = timeout_or_default(timeout)
        account = Account(str(checked_label(name, "name")), nbytes, self._current())
        account.patience = patience if on_full == "wait" else 0.0
        return Budget(self._context(), self._pool, account, aside, patience)

    def charge(self, nbytes: int | str, *, label: str | None = None, library: str = "other") -> Charge:
        """Count bytes that another library takes, in the current budget, until the charge is closed or dropped.

        Args:
            nbytes: how many.
            label: what they are for, in reports.
            library: who takes them.

        Raises:
            OutOfMemoryError: a limit refuses them after all relief.
        """
        self._check_process()
        size = parse_nbytes(nbytes, argument="nbytes")
        return Charge(self._pool, self._current(), size, checked_label(label), str(checked_label(library, "library")))

    def on_pressure(self, handler: Handler, *, priority: int = 0) -> Callable[[], None]:
        """Have ``handler(nbytes)`` called where memory is short, to free what it can, before an error is raised.

        It is called in the thread that wants memory, without a lock, and may allocate, but gets no relief itself. What
        it raises is reported once and the next one is called.

        Args:
            handler: told how many bytes are wanted.
            priority: larger is called earlier.

        Returns:
            A function that removes it; calling that again does nothing.
        """
        self._check_process()
        if not callable(handler):
            raise ArgumentError.of("handler", handler, "a function of the bytes that are wanted")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ArgumentError.of("priority", priority, "an integer")
        pressure: Pressure = self._pool.runtime.pressure
        return pressure.add(self._account, handler, priority)

    def snapshot(self) -> MemorySnapshot:
        """Take the account of the whole device: headings that add up, owners, segments, and what was recorded."""
        from tazza.core.survey import survey  # late: its values cost as much to make as the pool

        self._check_process()
        return survey(self._pool.runtime)

    def record(self, *, sites: bool = True, events: int = 100_000) -> Recording:
        """Start to record the device's allocations; one recording a device at a time.

        Args:
            sites: keep where in the program each was made.
            events: so many are kept, the latest.

        Raises:
            BusyError: the device is being recorded already.
        """
        self._check_process()
        if isinstance(events, bool) or not isinstance(events, int) or events < 1:
            raise ArgumentError.of("events", events, "a positive integer")
        from tazza.core.recording import Recording  # late, as in `snapshot`

        return Recording(self._pool.runtime, sites=bool(sites), most=events)

    def leaks(self) -> tuple[RecordedBlock, ...]:
        """What is live in this context, largest first, with call sites if recorded: after `close` it should be nothing.

        Arrays that a program keeps on purpose count too.
        """
        self._check_process()
        from tazza.core.survey import leaked_blocks  # late, as in `snapshot`

        return leaked_blocks(self._pool.runtime, self._account)

    def _context(self) -> Any:
        context = self._owner()
        if context is None:
            raise ClosedError(f"the context of {self!r} is gone; keep it while its memory is used")
        return context

    def _current(self) -> Account:
        frame = frame_of(self._context())
        return self._account if frame is None or frame.account is None else frame.account

    def _check_process(self) -> None:
        if self._pool.pool.generation != process.generation:
            raise ForkedError(f"{self!r} was made before this process was forked; make a new context here")
