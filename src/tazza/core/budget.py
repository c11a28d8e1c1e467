"""Budgets: a cap on what is live inside a scope, in a thread, a task or for a tenant, nested as scopes are."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, NoReturn, Self, final

from tazza.core.admission import admit, serve
from tazza.core.pool import MemoryPool
from tazza.errors import BusyError, UsageError
from tazza.hot import Account, Frame, Scope, frame_of, wake

__all__ = ["Budget"]


@final
class Budget(Scope):
    """A limit inside a context's own; made by ``ctx.memory.budget``.

    Everything that is allocated inside ``with budget:`` counts in it until it is freed, wherever that happens, and in
    the budgets and the context around it too. It may be entered several times and by several threads at once, which
    then share it, unless it has a reserve. ``async with`` waits for the reserve without blocking the event loop.

    >>> import tazza as tz
    >>> with tz.open("cpu", memory_limit="1MiB") as ctx:
    ...     with ctx.memory.budget("64KiB", name="decode") as decode:
    ...         frame = ctx.allocate(1 << 15)
    ...         decode.live, ctx.memory.stats().live
    (32768, 32768)
    """

    def __init__(self, context: Any, pool: MemoryPool, account: Account, reserve: int, patience: float) -> None:
        self._context, self._pool, self.account = context, pool, account
        self._reserve, self._patience = reserve, patience
        self._entries = 0
        self._lock = threading.Lock()
        self.thread = 0  # who entered last, for those who wait
        pool.runtime.budgets.add(self)

    # Entering ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Make it the current budget of its context here, which becomes the current context too.

        Raises:
            UsageError: it would escape a limit in force here, as it was not made inside that budget.
            BusyError: it has a reserve and is entered already.
            OutOfMemoryError: the reserve cannot be had.
        """
        self._check()
        self._count_entry()
        try:
            if self._reserve:
                self._set_aside()
            self.thread = threading.get_ident()
            return super().__enter__()
        except BaseException:
            self._leave()
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the budget around it; what is still live stays counted until it is freed."""
        try:
            super().__exit__(exc_type, exc, traceback)
        finally:
            self._leave()

    async def __aenter__(self) -> Self:
        """Enter once the reserve can be had, in the order of asking; other tasks of the event loop go on meanwhile.

        Cancelling the wait gives everything back.

        Raises:
            OutOfMemoryError: the reserve could not be had in time.
            UsageError: as with ``with``.
            ClosedError: the context was closed meanwhile.
        """
        self._check()
        self._count_entry()
        try:
            if self._reserve:
                await admit(self._pool, self.account, self._reserve, self._patience, self._is_refused)
                self._context._check_open()
            self.thread = threading.get_ident()
            return super().__enter__()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _count_entry(self) -> None:
        with self._lock:
            if self._reserve and self._entries:
                raise BusyError(f"{self!r} has a reserve and is entered already; make a budget for each request")
            self._entries += 1

    def _set_aside(self) -> None:
        attempt = 0
        while (refused := self.account.set_aside(self._reserve)) is not None:
            if not self._pool.relieve(self._reserve, refused, attempt):
                raise self._pool.exhausted(self._reserve, refused, self.account)
            attempt += 1

    def _leave(self) -> None:
        with self._lock:
            self._entries -= 1
            last = self._entries == 0
        if last and self.account.reserve:
            self.account.set_aside(0)
            serve()
            wake()

    def _check(self) -> None:
        self._context._check_open()
        inner = frame_of(self._context)
        current = self._context.account if inner is None else inner.account
        if not self.account.counts_in(current):
            raise UsageError(
                f"{self!r} does not count in {current.name!r}, whose limit is in force here; make it inside that scope"
            )

    def _is_refused(self) -> bool:
        """Tell whether the context takes no new work any more."""
        return bool(self._context.phase)

    def _frame(self, parent: Frame | None) -> Frame:
        inner = frame_of(self._context)
        stream = self._context.stream0 if inner is None else inner.stream
        task = None if parent is None else parent.task
        return Frame(self, self._context, stream, self.account, task, parent)

    # Figures -------------------------------------------------------------------------------------------------------

    @property
    def context(self) -> Any:
        """The context whose budget it is."""
        return self._context

    @property
    def name(self) -> str:
        """What errors and reports call it."""
        return self.account.name

    @property
    def limit(self) -> int | None:
        """The most bytes that may be live in it at once, or None."""
        return self.account.limit

    @property
    def live(self) -> int:
        """Bytes live in it now, freed ones that a stream may still use included."""
        self._pool.drain()
        return self.account.live

    @property
    def peak(self) -> int:
        """The most bytes that were live in it at once."""
        return self.account.peak

    def __repr__(self) -> str:
        limit = "no limit" if self.limit is None else f"limit {self.limit}"
        return f"<Budget {self.name!r} of {self._context!r}: {self.account.live} bytes live, {limit}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a budget cannot be pickled; make one in the process that spends it")
