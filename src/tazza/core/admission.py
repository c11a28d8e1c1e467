"""Admission: asyncio tasks that wait for the reserve of their budget, first come first served.

One helper thread serves them all, as nobody may block the event loop. It gets a token whenever memory comes back,
sets reserves aside on behalf of those who wait, and wakes their loops. A task that was cancelled meanwhile gets
nothing: what was set aside for it is given back.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, final

from tazza.core.patience import Waiter
from tazza.core.pool import MemoryPool
from tazza.errors import CleanupWarning
from tazza.hot import Account, after_fork, wake
from tazza.util.report import report

if TYPE_CHECKING:
    import asyncio

__all__ = ["admit"]


async def admit(pool: MemoryPool, account: Account, reserve: int, patience: float) -> None:
    """Set `reserve` bytes aside for `account`, waiting for at most `patience` seconds (0: not at all).

    Raises:
        OutOfMemoryError: they could not be had in time.
    """
    import asyncio  # late: only programs that use it pay for it

    pool.drain()
    refused = account if _queue.has_waiters(account) else account.set_aside(reserve)
    if refused is None:
        return
    if patience > 0 and _fits_ever(account, reserve):
        request = _Request(pool, account, reserve, asyncio.get_running_loop())
        _queue.add(request)
        try:
            await asyncio.wait_for(request.future, patience)
        except TimeoutError:  # not admitted in time: the error below says who holds the memory
            request.cancel()
        except BaseException:
            request.cancel()
            raise
        else:
            return
    blocking = account.parent.refuses(reserve) if account.parent is not None else None
    raise pool.exhausted(reserve, blocking or account, account)


def _fits_ever(account: Account, reserve: int) -> bool:
    parent = account.parent
    while parent is not None:
        if reserve > parent.cap:
            return False
        parent = parent.parent
    return True


@final
class _Request:
    """One task's wish; decided once: granted, or given up."""

    def __init__(self, pool: MemoryPool, account: Account, reserve: int, loop: asyncio.AbstractEventLoop) -> None:
        self.pool, self.account, self.reserve = pool, account, reserve
        self.loop: asyncio.AbstractEventLoop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self._lock = threading.Lock()
        self._granted = self._given_up = False

    def grant(self) -> bool:
        """Try to set the reserve aside and wake the task; called by the helper. True where it need wait no more."""
        with self._lock:
            if self._given_up:
                return True
            if self.account.set_aside(self.reserve) is not None:
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
        wake()

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._given_up


@final
class _Queue:
    """The requests of the process, oldest first, and the thread that serves them while there are any."""

    def __init__(self) -> None:
        self._requests: list[_Request] = []
        self._lock = threading.Lock()
        self._serving = False

    def has_waiters(self, account: Account) -> bool:
        """Tell whether somebody waits already for the same parent's bytes: a newcomer must not overtake."""
        with self._lock:
            return any(one.account.parent is account.parent and not one.is_given_up for one in self._requests)

    def add(self, request: _Request) -> None:
        """Append a request and see to it that somebody serves."""
        with self._lock:
            self._requests.append(request)
            if not self._serving:
                self._serving = True
                threading.Thread(target=self._serve, name="tazza-admission", daemon=True).start()

    def _serve(self) -> None:
        waiter = Waiter()
        try:
            while self._round():
                waiter.wait(60.0)
        except BaseException as error:  # nobody could catch it here, and the next request starts another thread
            report("the admission of asyncio tasks to budgets failed", CleanupWarning, error=error)
            with self._lock:
                self._serving = False
        finally:
            waiter.close()

    def _round(self) -> bool:
        """Grant what can be granted, in order for each parent; False where nobody waits and the thread may end."""
        with self._lock:
            requests = list(self._requests)
        for pool in {id(one.pool): one.pool for one in requests}.values():
            pool.drain()
        blocked, over = set[int](), set[int]()
        for one in requests:
            if id(one.account.parent) not in blocked:
                if one.grant():
                    over.add(id(one))
                else:
                    blocked.add(id(one.account.parent))
        with self._lock:
            self._requests = [one for one in self._requests if id(one) not in over]
            self._serving = bool(self._requests)
            return self._serving


_queue = _Queue()


def _renew() -> None:
    global _queue
    _queue = _Queue()


after_fork(_renew)
