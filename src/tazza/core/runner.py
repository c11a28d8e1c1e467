"""Who runs the head of a stream's FIFO: the caller, a worker thread, or (in `native`) the device.

The three are interchangeable under `Stream`; none of them knows what a submission is. Every wait here ends: host waits
by their timeout, waits of a stream's own thread when what they wait for ends, the stream is abandoned, or the device is
lost.
"""

from __future__ import annotations

import abc
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, final

from tazza.core.completion import frameless, now_ns, raise_copy, timeout_or_default
from tazza.core.event import Event, Waitable
from tazza.core.failures import Failure, Failures
from tazza.core.runtime import DeviceRuntime
from tazza.core.submission import Record, Submission, Wait
from tazza.core.waiting import QueuePlace, waiting_for
from tazza.errors import (
    BackendError,
    CancelledTaskError,
    CleanupWarning,
    ClosedError,
    DeadlockError,
    QueueFullError,
    WaitTimeoutError,
)
from tazza.hot import Buffer, Lane, point, top
from tazza.util.log import info
from tazza.util.report import report

__all__ = [
    "SLICE",
    "Fifo",
    "InlineRunner",
    "Runner",
    "StreamThread",
    "WorkerRunner",
    "on_event_loop",
    "wait_for_room",
]

SLICE = 0.25
"""Seconds between two looks of a waiting stream thread at whether its wait is still of use."""


class Runner(abc.ABC):
    """Runs submissions in order; lives until they are over, whatever became of the `Stream` that users held.

    Blocks of memory, events and the context know the runner, so that nothing depends on a dropped handle.

    Attributes:
        runtime: the device's.
        lane: where memory that the stream frees is reused.
        label: the stream's name.
        submitted: number of the last submission that entered.
        is_inline: work is done when `submit` returns.
        capture: the capture (`tazza.core.capture`) that takes note of what is submitted, or None.
        closed: nothing enters any more.
    """

    is_inline = False
    capture: Any = None

    def __init__(self, runtime: DeviceRuntime, lane: Lane, label: str, failures: Failures) -> None:
        self.runtime, self.lane, self.label = runtime, lane, label
        self.submitted = 0
        self.closed = self.abandoned = False
        # Weak: a thread that waits for work must not keep what its context has to report.
        self._failures = weakref.ref(failures)
        self._end: Event | None = None

    # What a stream does --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def submit(self, submission: Submission, timeout: float | None = None, *, bounded: bool = True) -> None:
        """Give it its number and put it into the FIFO, in one step; `bounded` waits for room first.

        Raises:
            ClosedError: the stream is closed.
        """

    def record_now(self, event: Event) -> bool:
        """Record an event at once, where a device's queue can (see `QueueCore`); False where it has to be submitted."""
        return False

    def wait_now(self, need: Waitable) -> bool:
        """Have the queue wait at once for what it can; False where the wait has to be submitted."""
        return False

    @abc.abstractmethod
    def reached(self, number: int) -> bool:
        """Tell whether everything up to `number` is over, as far as is known without recording anything."""

    def mark(self) -> Event:
        """An event after everything submitted so far; the same one while nothing was, and the last one once closed."""
        end = self._end
        if end is None or ((end.number != self.submitted or end.error is not None) and not self.closed):
            end = Event(self, 0, False)
            try:
                if not self.record_now(end):
                    self.submit(Record(self, end), bounded=False)
            except ClosedError:  # closed meanwhile: its last event is the one
                assert self._end is not None
                return self._end
            self._end = end
        return end

    def follow(self, event: Event) -> None:
        """Order what comes later after an event; nothing comes later on a closed stream."""
        if not self.closed and not self.wait_now(event):
            self.submit(Wait(self, "wait", needs=(event,)), bounded=False)

    def settle(self, timeout: float) -> None:
        """Wait for everything submitted so far, without looking at failures; raises where the driver does not tell."""
        if self.reached(self.submitted):
            return
        end = self.mark()
        end.refuse_waiting_for_oneself()
        if not end.block_told(timeout):
            raise WaitTimeoutError(f"{self.label!r} still has work after {timeout:g} s")
        if end.error is None:
            self.confirm(end.number)
        elif isinstance(end.error, BackendError) and self.runtime.lost() is None:
            raise_copy(end.error)  # nobody knows that the work is over; the next mark is a new one

    @property
    def thread(self) -> int:
        """The host thread that runs what is queued and nothing else; 0 where there is none."""
        return 0

    @property
    def current(self) -> int:
        """The number of what that thread is at."""
        return 0

    @property
    def is_working(self) -> bool:
        """Whether something is queued or under way, what it holds not let go of yet."""
        return not self.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether everything submitted so far is over. Does not block."""
        return self.reached(self.submitted) or self.mark().is_done

    @property
    def is_over(self) -> bool:
        """Whether it is closed and its work is done; then nobody asks it any more, and it lets go of what it held."""
        if not (self.closed and self.mark().is_done):
            return False
        if self.runtime.lost() is None:
            self.reached(0)
        return True

    def hold(self, number: int) -> Any | None:
        """What memory is kept for that it used up to `number`, a ticket of the pool; None where it is not any more."""
        return None if self.reached(number) else self.mark()

    def unfinished(self) -> Event | None:
        """See `mark`; None where that is over."""
        end = self.mark()
        return None if end.is_done else end

    def letting_go(self, wanted: Callable[[Buffer], bool]) -> Event | None:
        """An event after which none of the wanted buffers is held for queued work; None where none is."""
        return None

    def confirm(self, number: int) -> None:  # noqa: B027  a host thread counts for itself what it has run
        """Take note that everything up to `number` is over: somebody has seen an event there."""

    def undefer(self, timeout: float) -> bool:
        """Wait until nothing is deferred; tell whether that is so."""
        return True

    def remember(self, label: str, error: BaseException) -> None:
        """Keep a failure that has no caller."""
        (self._failures() or Failures()).add(Failure(label, frameless(error), self))

    # Life ----------------------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Stop waiting for anything and cancel what has not started."""
        self.abandoned = True

    def close(self) -> None:
        """Let nothing in any more and end after what is queued; the lane's free memory passes on. Never blocks."""
        if self._shut(Record(self, Event(self, 0, False))) and not self.lane.shared:
            self.lane.pool.close_lane(self.lane)

    @abc.abstractmethod
    def _shut(self, last: Record) -> bool:
        """Enter the last submission and close, in one step; False where it was closed before."""

    @property
    def runner(self) -> Runner:
        """Itself: events and tasks ask whatever they lie in, stream or runner."""
        return self

    @property
    def context(self) -> Any:
        """None: a runner belongs to no context."""
        return None

    def __repr__(self) -> str:
        return f"<Stream {self.label!r}{' (inline)' if self.is_inline else ''}>"

    # Running in a thread of the stream's own ------------------------------------------------------------------------

    def _await(self, need: Waitable) -> BaseException | None:
        """Wait in the stream's own thread; returns why it is of no use any more, if it is."""
        if need.poll():
            return None
        with need.told(self._standing_still):
            while not need.block(SLICE):
                if hopeless := self._hopeless():
                    return hopeless
        return None

    @property
    def _standing_still(self) -> Runner | None:
        """What stands still while the stream's own thread waits: the stream, or only that thread."""
        return self

    def _hopeless(self) -> BaseException | None:
        return CancelledTaskError("abandoned") if self.abandoned else self.runtime.lost()

    def _run(self, submission: Submission, needs: tuple[Waitable, ...], act: Callable[[Submission], None]) -> None:
        """Run one submission in the stream's own thread, where nobody can catch."""
        try:
            why = self._hopeless() if self.abandoned and submission.can_be_abandoned else None
            for need in needs:
                why = why or self._await(need)
            if why is not None:
                raise why
            act(submission)
        except BaseException as error:
            if self.abandoned and isinstance(error, CancelledTaskError):
                submission.abandon(CancelledTaskError(f"{submission.label!r} was abandoned before it ran"))
            else:
                self._fail(submission, error)

    def _fail(self, submission: Submission, error: BaseException) -> None:
        try:
            submission.fail(error)
        except BaseException as unclaimed:
            self.remember(submission.label, unclaimed)

    def _refuse(self) -> ClosedError:
        return ClosedError(f"{self!r} is closed; make another with ctx.new_stream()")


@final
class InlineRunner(Runner):
    """The caller runs each submission at once: when a call returns, its work is done.

    It has no lock: an inline stream orders nothing between threads.
    """

    is_inline = True

    def submit(self, submission: Submission, timeout: float | None = None, *, bounded: bool = True) -> None:
        if self.closed:
            raise self._refuse()
        submission.enter(0)
        needs = (*submission.host_needs, *submission.needs)
        if not all(need.poll() for need in needs):
            try:
                self._wait(submission, needs, timeout_or_default(timeout))
            except (DeadlockError, WaitTimeoutError) as error:
                submission.fail(error)
                return
        if point.listeners is None:
            submission.run()
        else:
            submission.perform()

    def _wait(self, submission: Submission, needs: tuple[Waitable, ...], timeout: float) -> None:
        deadline = now_ns() + int(timeout * 1e9)
        for need in needs:
            if not need.poll():
                need.refuse_waiting_for_oneself()
                if not need.block_told(max(0.0, (deadline - now_ns()) * 1e-9), self):
                    raise WaitTimeoutError(
                        f"{submission.label!r} needs {need!r}, which was not over in time; nothing was cancelled"
                    )

    def reached(self, number: int) -> bool:
        return True

    def _shut(self, last: Record) -> bool:
        last.run()
        was, self.closed, self._end = self.closed, True, last.event
        return not was


class StreamThread(threading.Thread):
    """A thread that lives as long as its stream: what it holds, its tasks hold."""


class Fifo:
    """A bounded FIFO emptied by one daemon thread, which starts with the first item and ends with None.

    Args:
        name: of the thread.
        limit: so many bounded submissions are in it at most.
        attach: prepares the thread for its device.
        run: runs a submission.
        over: is told the number of one that has run, when the thread holds nothing of it any more: whoever waits for
            the stream may then count on what the submission held being free.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        attach: Callable[[], None],
        run: Callable[[Submission], None],
        over: Callable[[int], None],
    ) -> None:
        self._name, self._limit, self._attach, self._run, self._over = name, limit, attach, run, over
        self._items: queue.SimpleQueue[tuple[Submission, bool] | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(limit)
        self._started = False
        self.thread = 0

    def take_room(self, runner: Runner, timeout: float | None) -> None:
        """Reserve a place, waiting for one where that can end."""
        if not self._room.acquire(blocking=False):
            with waiting_for(QueuePlace(runner, runner.submitted)):
                wait_for_room(runner, self._limit, timeout, lambda seconds: self._room.acquire(timeout=seconds))

    def give_room(self) -> None:
        """Give a place back that was reserved and not used."""
        self._room.release()

    def put(self, submission: Submission, *, bounded: bool) -> None:
        """Append; where it is `bounded` a place was reserved."""
        self._items.put((submission, bounded))
        if not self._started:
            self._started = True
            StreamThread(target=self._loop, name=self._name, daemon=True).start()

    def end(self) -> None:
        """End the thread after what is queued."""
        self._items.put(None)

    def _loop(self) -> None:
        self.thread = threading.get_ident()
        try:
            self._attach()
        except (BackendError, OSError) as error:  # slower or elsewhere, but right: the work is done all the same
            report(f"thread {self._name!r} could not be prepared for its device", CleanupWarning, error=error)
        while (item := self._items.get()) is not None:
            submission, bounded = item
            number = submission.number
            self._run(submission)
            del item, submission
            self._over(number)
            if bounded:
                self._room.release()


@final
class WorkerRunner(Runner):
    """A daemon thread runs the submissions; what they need is waited for there."""

    def __init__(self, runtime: DeviceRuntime, lane: Lane, label: str, failures: Failures, limit: int) -> None:
        super().__init__(runtime, lane, label, failures)
        driver, info = runtime.driver, runtime.info
        self._fifo = Fifo(label, limit, lambda: driver.thread_attach(info), self._step, self._finish)
        self._lock = threading.Lock()
        self._finished = 0

    def submit(self, submission: Submission, timeout: float | None = None, *, bounded: bool = True) -> None:
        if bounded:
            self._fifo.take_room(self, timeout)
        with self._lock:
            if not self.closed:
                self._put(submission, bounded=bounded)
                return
        if bounded:
            self._fifo.give_room()
        raise self._refuse()

    def _put(self, submission: Submission, *, bounded: bool) -> None:
        self.submitted += 1
        submission.enter(self.submitted)
        self._fifo.put(submission, bounded=bounded)

    def _step(self, submission: Submission) -> None:
        self._run(submission, (*submission.host_needs, *submission.needs), lambda entry: entry.perform())

    def _finish(self, number: int) -> None:
        self._finished = number

    def reached(self, number: int) -> bool:
        return self._finished >= number

    @property
    def is_working(self) -> bool:
        return self._finished < self.submitted

    @property
    def thread(self) -> int:
        return self._fifo.thread

    @property
    def current(self) -> int:
        return self._finished + 1

    def _shut(self, last: Record) -> bool:
        with self._lock:
            if self.closed:
                return False
            if self.submitted == self._finished:  # also where no thread can be started any more, at exit
                last.enter(self.submitted)
                last.run()
            else:
                self._put(last, bounded=False)
            self._end, self.closed = last.event, True
            self._fifo.end()
            return True


def wait_for_room(runner: Runner, limit: int, timeout: float | None, wait: Callable[[float], bool]) -> None:
    """Wait for room in a full queue, where that can end and the calling thread may block."""
    frame = top()
    full = f"the queue of {runner!r} is full ({limit} submissions)"
    if frame is not None and frame.task is not None and frame.task.runs_on(runner):
        raise DeadlockError(f"{full} and only the task that submits here could drain it; use another stream")
    if on_event_loop():
        raise QueueFullError(f"{full}; await an earlier task, or submit from a worker thread (asyncio.to_thread)")
    seconds = timeout_or_default(timeout)
    info("tazza.stream", "%s; the submitter waits for room, for at most %g s", full, seconds)
    if not wait(seconds):
        raise WaitTimeoutError(f"{full} and got no room in {seconds:g} s; nothing was submitted")


def on_event_loop() -> bool:
    """Tell whether an event loop runs in the calling thread, which therefore must not block."""
    asyncio = sys.modules.get("asyncio")  # not imported: no loop runs
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # no loop runs in this thread
        return False
    return True
