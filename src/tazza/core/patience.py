"""Waiting for room in an account: as long as somebody else may give memory back, and never longer than told.

A waiter owns a queue of tokens. Whatever gives memory back (a finaliser, NumPy freeing an array, the end of a budget)
puts a token into every waiter's queue and does nothing else; the waiter drains what finalisers left and looks again.
Memory that only a stream holds comes back without a token, so a waiter also looks from time to time.

Waiting is of no use, and is refused at once, where nobody could give anything back: nothing is pending, no other task
is unfinished, no other thread that lives holds a charge; and on the thread of an event loop, which would stand still.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from tazza.core.completion import now_ns
from tazza.core.holders import charged_blocks, is_charged
from tazza.core.runner import StreamThread, on_event_loop
from tazza.core.runtime import live_runtimes
from tazza.hot import Account, top
from tazza.hot.process import process

__all__ = ["Waiter", "wait_for_room"]

_LOOK = 0.05  # seconds between two looks of a waiter that gets no token
_CALM = 1_000_000  # nanoseconds that one who is in no hurry gives others to free more
_registry = threading.Lock()


class Waiter:
    """Gets a token whenever memory comes back, from its making until `close`."""

    def __init__(self) -> None:
        self.tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        with _registry:
            process.waiters = (*(process.waiters or ()), self.tokens)

    def wait(self, seconds: float) -> None:
        """Return when something came back, at the latest after so many seconds, or when it is time to look again."""
        try:
            self.tokens.get(timeout=max(0.0, min(seconds, _LOOK)))
        except queue.Empty:  # nothing came back by itself: the caller looks
            return

    def wait_calmly(self, seconds: float) -> None:
        """Like `wait`, and then let more come back for a moment: one look does for all of it."""
        self.wait(seconds)
        deadline = now_ns() + _CALM
        try:
            while (left := deadline - now_ns()) > 0:
                self.tokens.get(timeout=left * 1e-9)
        except queue.Empty:  # nothing more came
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
            if left <= 0 or not _may_come_back(runtime, refused):
                return False
            waiter.wait(left)
    finally:
        waiter.close()


def _may_come_back(runtime: Any, refused: Account) -> bool:
    """Tell whether somebody besides the calling thread could give back what counts in `refused`."""
    if on_event_loop():
        return False
    return _is_pending(runtime, refused) or _others_work() or _others_hold(runtime, refused)


def _is_pending(runtime: Any, refused: Account) -> bool:
    if any(is_charged(block, refused) for pool in list(runtime.pools.values()) for block in pool.pool.waiting()):
        return True
    held = (runner.letting_go(lambda held: is_charged(held.block, refused)) for runner in runtime.runners())
    return any(event is not None for event in held)


def _others_work() -> bool:
    """Tell whether a task is unfinished that is none of those in which the caller runs."""
    frame = top()
    task = None if frame is None else frame.task
    own = 0 if task is None else task.depth
    return sum(len(runtime.in_flight) for runtime in live_runtimes()) > own


def _others_hold(runtime: Any, refused: Account) -> bool:
    """Tell whether another thread that lives holds a charge; streams' own threads hold what their tasks do."""
    me = threading.get_ident()
    others = {
        thread.ident for thread in threading.enumerate() if thread.ident != me and not isinstance(thread, StreamThread)
    }
    if any(budget.thread in others and budget.account.counts_in(refused) for budget in runtime.reserving()):
        return True
    return any(block.thread in others for block in charged_blocks(runtime, refused))
