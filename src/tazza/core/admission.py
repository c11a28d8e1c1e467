"""Admission: asyncio tasks that wait for the reserve of their budget, first come first served.

Whoever leaves a budget sets reserves aside on behalf of those who wait, and wakes their loops. One helper thread does
the same whenever memory comes back in another way, as nobody may block the event loop. A task that was cancelled
meanwhile gets nothing: what was set aside for it is given back.

Nobody is overtaken: a request waits where one that came earlier waits for the bytes of an account that it would take
bytes of too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, final

from tazza.core.patience import Waiter
from tazza.core.pool import MemoryPool
from tazza.errors import CleanupWarning
from tazza.hot import Account, after_fork, wake
from tazza.util.report import report

if TYPE_CHECKING:
    import asyncio

__all__ = ["admit", "serve"]


async def admit(
    pool: MemoryPool, account: Account, reserve: int, patience: float, is_closed: Callable[[], bool]
) -> None:
    """Set `reserve` bytes aside for `account`, waiting for at most `patience` seconds (0: not at all).

    Returns without the reserve where the context is closed meanwhile; the caller looks.

    Raises:
        OutOfMemoryError: they could not be had in time.
    """
    import asyncio  # late: only programs that use it pay for it

    pool.drain()
    refused = _queue.ahead_of(account, reserve) or account.set_aside(reserve)
    if refused is None:
        return
    if patience > 0 and _fits_ever(account, reserve):
        request = _Request(pool, account, reserve, refused, is_closed, asyncio.get_running_loop())
        _queue.add(request)
        try:
            # Not `wait_for`, which before Python 3.12 forgets a cancellation that meets the grant.
            async with asyncio.timeout(patience):
                await request.future
        except TimeoutError:  # not admitted in time: the error below says who holds the memory
            request.cancel()
            refused = request.refused
        except BaseException:
            request.cancel()
            raise
        else:
            return
    blocking = account.parent.refuses(reserve) if account.parent is not None else None
    raise pool.exhausted(reserve, blocking or refused, account)


def serve() -> None:
    """Admit who can be admitted now; for those who gave something back, so that nobody has to wait for the helper."""
    _queue.serve()


def _above(account: Account) -> Iterator[Account]:
    parent = account.parent
    while parent is not None:
        yield parent
        parent = parent.parent


def _fits_ever(account: Account, reserve: int) -> bool:
    return all(reserve <= above.cap for above in _above(account))


def _takes_from(account: Account, reserve: int, above: Account) -> bool:
    """Tell whether a reserve of `account` would take bytes of `above`; not where a reserve in between has them."""
    for parent in _above(account):
        if reserve <= 0:
            return False
        if parent is above:
            return True
        reserve = parent.live + reserve - max(parent.live, parent.reserve)
    return False


@final
class _Request:
    """One task's wish; decided once: granted, or given up.

    Attributes:
        refused: the account that had no room when it was last asked, or for which somebody waits who came earlier.
    """

    def __init__(
        self,
        pool: MemoryPool,
        account: Account,
        reserve: int,
        refused: Account,
        is_closed: Callable[[], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.pool, self.account, self.reserve, self.refused = pool, account, reserve, refused
        self.loop: asyncio.AbstractEventLoop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self._is_closed = is_closed
        self._lock = threading.Lock()
        self._granted = self._given_up = False

    def grant(self) -> bool:
        """Try to set the reserve aside and wake the task; called by the helper. True where it need wait no more."""
        with self._lock:
            if self._given_up:
                return True
            if not self._is_closed():
                refused = self.account.set_aside(self.reserve)
                if refused is not None:
                    self.refused = refused
                    return False
                self._granted = True
        try:
            self.loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self.cancel()
        return True

    def _wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def cancel(self) -> None:
        """Give up; what was set aside meanwhile goes back."""
        with self._lock:
            self._given_up = True
            granted, self._granted = self._granted, False
        if granted:
            self.account.set_aside(0)
        serve()

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up


@final
class _Queue:
    """The requests of the process, oldest first, and the thread that serves them while there are any.

    A coroutine that the collector closes may leave its budget anywhere, also where this thread holds a lock of the
    queue: `_lock` is reentrant, the list is changed in place, and `_turn` is only ever tried.
    """

    def __init__(self) -> None:
        self._requests: list[_Request] = []
        self._lock = threading.RLock()
        self._turn = threading.Lock()
        self._serving = False

    def ahead_of(self, account: Account, reserve: int) -> Account | None:
        """Return an account for whose bytes somebody waits who came earlier, and must not be overtaken; or None."""
        if not self._requests:
            return None
        with self._lock:
            for one in self._requests:
                if not one.is_given_up and _takes_from(account, reserve, one.refused):
                    return one.refused
        return None

    def add(self, request: _Request) -> None:
        """Append a request and see to it that somebody serves."""
        with self._lock:
            self._requests.append(request)
            if not self._serving:
                self._serving = True
                threading.Thread(target=self._serve, name="tazza-admission", daemon=True).start()

    def serve(self) -> None:
        """Grant what can be granted, in order for each account, unless another thread is at it."""
        if not self._requests:
            return
        if not self._turn.acquire(blocking=False):
            wake()  # the helper looks again
            return
        try:
            self._grant()
        finally:
            self._turn.release()

    def _serve(self) -> None:
        waiter = Waiter()
        try:
            while self._is_needed():
                self.serve()
                waiter.wait_calmly(60.0)
        except BaseException as error:  # nobody could catch it here, and the next request starts another thread
            report("the admission of asyncio tasks to budgets failed", CleanupWarning, error=error)
            with self._lock:
                self._serving = False
        finally:
            waiter.close()

    def _is_needed(self) -> bool:
        """Whether somebody waits; where nobody does the thread ends, and the next request starts another."""
        with self._lock:
            self._serving = bool(self._requests)
            return self._serving

    def _grant(self) -> None:
        with self._lock:
            requests = list(self._requests)
        for pool in {one.pool for one in requests}:
            pool.drain()
        waited: list[Account] = []
        parents, over = set[int](), list[_Request]()
        for one in requests:
            parent = id(one.account.parent)
            if parent in parents and not one.is_given_up:
                continue
            ahead = next((above for above in waited if _takes_from(one.account, one.reserve, above)), None)
            if ahead is not None and not one.is_given_up:
                one.refused = ahead
            elif one.grant():
                over.append(one)
                continue
            else:
                waited.append(one.refused)
            parents.add(parent)
        with self._lock:
            for one in over:
                self._requests.remove(one)


_queue = _Queue()


def _renew() -> None:
    global _queue
    _queue = _Queue()


after_fork(_renew)
