"""Waiting for room in an account: as long as somebody else may give memory back, and never longer than told.

A waiter owns a queue of tokens. Whatever gives memory back (a finaliser, NumPy freeing an array, the end of a budget)
puts a token into every waiter's queue and does nothing else; the waiter drains what finalisers left and looks again.
Memory that only a stream holds comes back without a token, so a waiter also looks from time to time.

Waiting is of no use, and is refused at once, where nobody could give anything back (`_may_come_back`), and on the
thread of an event loop, which would stand still. Several waiters may keep each other waiting: they look one at a time,
so that one is refused, and what it gives up lets the others go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, final

from tazza.core.completion import now_ns
from tazza.core.holders import charged_blocks, is_charged
from tazza.core.runner import StreamThread, on_event_loop
from tazza.core.runtime import live_runtimes
from tazza.core.waiting import blocked, takers, waiting_for
from tazza.hot import Account, after_fork
from tazza.hot.process import process
from tazza.util.inbox import Inbox

__all__ = ["Waiter", "wait_for_room"]

_LOOK = 0.05  # seconds between two looks of a waiter that gets no token
_CALM = 20_000_000  # nanoseconds that one who is in no hurry gives others to free more
_registry = threading.Lock()
_looking = threading.Lock()  # held while one waiter decides whether anybody could help it


def _renew() -> None:
    global _registry, _looking
    _registry, _looking = threading.Lock(), threading.Lock()


after_fork(_renew)


class Waiter:
    """Gets a token whenever memory comes back, from its making until `close`."""

    def __init__(self) -> None:
        self.tokens = Inbox()
        with _registry:
            process.waiters = (*(process.waiters or ()), self.tokens)

    def wait(self, seconds: float) -> None:
        """Return when something came back, at the latest after so many seconds, or when it is time to look again."""
        self.tokens.take(max(0.0, min(seconds, _LOOK)))

    def wait_calmly(self, seconds: float) -> None:
        """Like `wait`, and then let more come back for a moment: one look does for all of it."""
        self.wait(seconds)
        deadline = now_ns() + _CALM
        while (left := deadline - now_ns()) > 0:
            if not self.tokens.take(left * 1e-9):
                return

    def close(self) -> None:
        """Get no tokens any more."""
        with _registry:
            remaining = tuple(tokens for tokens in process.waiters or () if tokens is not self.tokens)
            process.waiters = remaining or None


def wait_for_room(runtime: Any, refused: Account, nbytes: int, seconds: float, drain: Callable[[], object]) -> bool:
    """Wait until `refused` takes `nbytes`; returns False where it will not, or not in time.

    Args:
        runtime: the device's.
        refused: the account whose limit was met.
        nbytes: bytes wanted.
        seconds: the longest time to wait.
        drain: takes back what finalisers left and streams are done with.
    """
    deadline = now_ns() + int(seconds * 1e9)
    waiter = Waiter()
    try:
        while True:
            drain()
            if refused.refuses(nbytes) is None:
                return True
            left = (deadline - now_ns()) * 1e-9
            if left <= 0 or nbytes > refused.cap or on_event_loop():
                return False
            with _looking:
                wait = waiting_for(None)
                wait.__enter__()
                if not _may_come_back(runtime, refused):
                    wait.__exit__(None, None, None)
                    drain()  # what came back meanwhile was given by somebody who has nothing more to give
                    return refused.refuses(nbytes) is None
            try:
                waiter.wait(left)
            finally:
                wait.__exit__(None, None, None)
    finally:
        waiter.close()


def _may_come_back(runtime: Any, refused: Account) -> bool:
    """Tell whether somebody besides the calling thread could give back what counts in `refused`."""
    stuck = _Stuck()
    return _is_pending(runtime, refused, stuck) or stuck.others_work() or _others_hold(runtime, refused, stuck)


@final
class _Stuck:
    """The threads that wait for memory, and whoever waits for one of them: none of these gives anything back.

    Attributes:
        threads: their identities.
    """

    def __init__(self) -> None:
        self._runners = [runner for runtime in live_runtimes() for runner in runtime.runners()]
        self._fronts: dict[int, int] = {}  # by runner: the number at which it is stuck
        self._tasks: set[int] = set()
        self.threads: set[int] = set()
        waiting = dict(blocked)
        found = [thread for thread, wait in waiting.items() if wait.what is None]
        while found:
            for thread in found:
                self._add(thread, waiting.pop(thread).task)
            found = [thread for thread, wait in waiting.items() if self.holds_up(wait.what)]

    def _add(self, thread: int, task: Any) -> None:
        self.threads.add(thread)
        for one in () if task is None else task.chain():
            self._tasks.add(id(one))
            if not one.stream.is_inline:
                self._stop(one.stream.runner, one.number)
        for runner in self._runners:
            if runner.thread == thread:  # it waits for what a submission needs that is no task
                self._stop(runner, runner.current)

    def _stop(self, runner: Any, number: int) -> None:
        self._fronts[id(runner)] = min(number, self._fronts.get(id(runner), number))

    def holds_up(self, what: Any) -> bool:
        """Tell whether an event, a task or a place in a queue comes only after something that is stuck."""
        if id(what) in self._tasks:
            return True
        stream = what.stream  # None for a host event: the user ends it
        return stream is not None and not stream.is_inline and self.stops(stream.runner, what.number)

    def stops(self, runner: Any, number: int) -> bool:
        """Tell whether a runner cannot reach a number."""
        return self._fronts.get(id(runner), number + 1) <= number

    def others_work(self) -> bool:
        """Tell whether a stream goes on with something. Another library's is not asked: it may be gone by now."""
        ours = [runner for runner in self._runners if not runner.runtime.exports_to(runner)]
        return any(id(runner) not in self._fronts and runner.is_working for runner in ours)


def _is_pending(runtime: Any, refused: Account, stuck: _Stuck) -> bool:
    sharing = runtime.sharing()
    pools = [pool.pool for one in sharing for pool in list(one.pools.values())]
    for block in (block for pool in pools for block in pool.waiting() if is_charged(block, refused)):
        if not any(stuck.stops(runner, number) for runner, number in block.users or ()):
            return True
    lent = [event for one in sharing for loan in list(one.loans) for event in loan.pending]
    if any(not (event.is_done or stuck.holds_up(event)) for event in lent):
        return True  # another library has let go of memory that its stream still uses
    runners = [runner for one in sharing for runner in one.runners()]
    held = (runner.letting_go(lambda held: is_charged(held.block, refused)) for runner in runners)
    return any(event is not None and not stuck.holds_up(event) for event in held)


def _others_hold(runtime: Any, refused: Account, stuck: _Stuck) -> bool:
    """Tell whether another thread that lives, and is not stuck, holds a charge.

    What tasks made may be held by whoever asks tasks for their results.
    """
    me = threading.get_ident()
    users = {thread.ident for thread in threading.enumerate() if not isinstance(thread, StreamThread)}
    others = users - stuck.threads - {me}
    reserving = [budget for one in runtime.sharing() for budget in one.reserving()]
    if any(budget.thread in others and budget.account.counts_in(refused) for budget in reserving):
        return True
    askers = [(ident, known()) for ident, known in list(takers.items())]
    of_tasks = any(ident in others and thread is not None and thread.is_alive() for ident, thread in askers)
    blocks = charged_blocks(runtime, refused)
    return any(block.thread in others or (of_tasks and block.thread not in users) for block in blocks)
