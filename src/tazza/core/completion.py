"""What becomes of work: one latch under every event and task, and the two threads that serve waiters.

Problem: a waiter may be a blocked thread, an asyncio task, a callback, or another stream; work may end in the caller, a
worker thread, a device queue or a helper; finalisers and signals may interrupt any of them.

- No callback runs under a lock. Internal listeners (wake a thread, wake a loop) run in the thread that ends the work
  and do nothing that can block; users' callbacks go to one helper thread.
- A native event ends when somebody asks the driver. Listeners alone do not ask, so the poller does, and only while
  somebody listens. It pauses between rounds, growing to a millisecond: drivers offer no better portable way that also
  has a timeout (`cuLaunchHostFunc` blocks the device's own thread and forbids calls into the driver).
"""

from __future__ import annotations

import contextlib
import copy
import math
import numbers
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

from tazza import config
from tazza.errors import ArgumentError, CleanupWarning
from tazza.hot import Latch, after_fork
from tazza.util.inbox import Inbox
from tazza.util.report import report

__all__ = [
    "Pollable",
    "await_latch",
    "call_later",
    "frameless",
    "keep_without_frames",
    "now_ns",
    "poll",
    "raise_copy",
    "timeout_or_default",
]

_FIRST_PAUSE, _LAST_PAUSE = 50e-6, 1e-3
_IDLE = 60.0


def timeout_or_default(timeout: float | None) -> float:
    """The seconds of a wait: the caller's, else ``TAZZA_WAIT_TIMEOUT``; never more than a lock can wait."""
    if timeout is None:
        return config.wait_timeout()
    if isinstance(timeout, bool) or not isinstance(timeout, numbers.Real) or math.isnan(timeout):
        raise ArgumentError.of("timeout", timeout, "seconds, or None for TAZZA_WAIT_TIMEOUT")
    return min(max(0.0, float(timeout)), threading.TIMEOUT_MAX)


class Pollable(Protocol):
    """What the poller asks again and again."""

    def poll(self) -> bool:
        """Ask the driver; tell whether it is over, well or badly. Never raises."""
        ...


class _Helpers:
    """The process's helper threads, started when first needed and made anew in a forked child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads: dict[str, Inbox] = {}

    def inbox_of(self, name: str, loop: Callable[[Inbox], None]) -> Inbox:
        with self.lock:
            items = self.threads.get(name)
            if items is None:
                items = Inbox()
                threading.Thread(target=loop, args=(items,), name=name, daemon=True).start()
                self.threads[name] = items
            return items


_helpers = _Helpers()
after_fork(lambda: _helpers.__init__())  # type: ignore[misc]


def call_later(function: Callable[..., object], *args: object) -> None:
    """Run a user's callback on the helper thread; what it raises becomes a `CleanupWarning`."""
    _helpers.inbox_of("tazza-callbacks", _run_callbacks).put((function, args))


def poll(item: Pollable) -> None:
    """Have the poller ask `item` until it is over."""
    _helpers.inbox_of("tazza-poller", _run_poller).put(item)


def _run_callbacks(inbox: Inbox) -> None:
    while True:
        came = inbox.take(_IDLE)
        while came:
            function, args = came.pop(0)
            try:
                function(*args)
            except BaseException as error:  # SystemExit too: it must not end the thread that serves everybody
                report(f"callback {getattr(function, '__qualname__', function)!r} failed", CleanupWarning, error=error)
            del function, args  # nothing is held while nothing comes


def _run_poller(inbox: Inbox) -> None:
    watched: list[Pollable] = []
    pause = _FIRST_PAUSE
    while True:
        came = inbox.take(pause if watched else _IDLE)
        pause = _FIRST_PAUSE if came else min(2 * pause, _LAST_PAUSE)
        watched = [item for item in (*watched, *came) if not item.poll()]
        del came


def await_latch(latch: Latch) -> Generator[Any, None, None]:
    """Suspend the asyncio task until the latch is set; cancelling abandons the wait, not the work."""
    import asyncio  # late: only programs that use it pay for it

    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        # The loop may be closed by now; then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(resolve)

    latch.listen(wake)
    try:
        yield from future.__await__()
    finally:
        latch.ignore(wake)


def keep_without_frames(error: BaseException, where: str) -> BaseException:
    """Strip the frames from an exception and its causes, keeping their text as a note: frames keep memory alive."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        sites = _call_sites(one)
        if sites:
            one.add_note(f"In {where}, most recent call last:\n" + "\n".join(sites))
        one.__traceback__ = None
        if isinstance(one, AttributeError | NameError):
            one.obj = None  # type: ignore[union-attr]  # the interpreter keeps the object that lacked the name
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        pending += [one.__cause__, one.__context__]
    return error


def _call_sites(error: BaseException) -> list[str]:
    sites, frame = [], error.__traceback__
    while frame is not None:
        code = frame.tb_frame.f_code
        sites.append(f"  {code.co_filename}:{frame.tb_lineno} in {code.co_qualname}")
        frame = frame.tb_next
    return sites


def frameless(error: BaseException) -> BaseException:
    """Copy an exception without its frames, so that whoever keeps or raises it does not change the original."""
    try:
        clone = copy.copy(error)
    except Exception:  # its __init__ does not take its own args back; what it holds can still be copied
        clone = type(error).__new__(type(error), *error.args)
        clone.args = error.args
        clone.__dict__.update(error.__dict__)
    if notes := getattr(error, "__notes__", None):
        clone.__notes__ = list(notes)
    clone.__cause__ = error.__cause__
    clone.__suppress_context__ = True
    return clone.with_traceback(None)


def raise_copy(error: BaseException) -> None:
    """Raise a copy: a stored exception would collect the frames of everybody who sees it."""
    raise frameless(error)


def now_ns() -> int:
    """The clock of host-side event times."""
    return time.perf_counter_ns()
