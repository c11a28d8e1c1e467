"""The runner of devices with queues of their own."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import final

from tazza.core.completion import timeout_or_default
from tazza.core.event import Event, Placement, Waitable
from tazza.core.failures import Failures
from tazza.core.runner import SLICE, Fifo, Runner, wait_for_room
from tazza.core.runtime import DeviceRuntime
from tazza.core.submission import Record, Submission
from tazza.errors import BackendError, CleanupWarning, WaitTimeoutError
from tazza.hot import Buffer, Lane, QueueCore, point
from tazza.spi import Handle
from tazza.util.report import report

__all__ = ["NativeRunner"]


@final
class NativeRunner(QueueCore, Runner):
    """The device's queue runs the submissions; one that only the host can release makes the stream defer.

    How many are in the queue is known from markers, looked at from the oldest on: an event every few submissions, and
    after each that holds objects, which are let go of when the marker is seen to be over.
    """

    def __init__(
        self,
        runtime: DeviceRuntime,
        lane: Lane,
        label: str,
        failures: Failures,
        limit: int,
        handle: Handle,
        *,
        owned: bool,
    ) -> None:
        Runner.__init__(self, runtime, lane, label, failures)
        QueueCore.__init__(self, runtime.driver, runtime.info, handle, limit)
        self._owned = owned
        attach = partial(self.driver.thread_attach, self.device)
        self._fifo = Fifo(f"{label} submitter", limit, attach, self._step, self._undefer_one)
        self._idle = threading.Condition(self._lock)
        self._markers: collections.deque[tuple[int, Placement, tuple[object, ...]]] = collections.deque()
        # The thread in which a function of a task runs that the queue cannot call, and the task's number: what it
        # submits goes to the queue at once, what other threads submit meanwhile is deferred.
        self._turn, self._turn_number = 0, 0

    @property
    def is_adopted(self) -> bool:
        """Whether another library made the queue, and may use it without a word."""
        return not self._owned

    def submit(self, submission: Submission, timeout: float | None = None, *, bounded: bool = True) -> None:
        thread = threading.get_ident()
        if self._turn == thread:
            self._submit_inside(submission)
            return
        if thread in self._preparing:
            bounded = False
            number = self._preparing[thread]
            # A record is for the pool, which asks for the end of all that was submitted, the deferred included.
            if number is not None and not isinstance(submission, Record):
                submission.enter(number - 1)
                self._hand_over_late(submission)
                return
        if bounded:
            self._make_room(timeout)
        # Asked once: a need that ends between two looks must not let an unprepared submission through.
        resolved = not self._deferred and _are_over(submission.host_needs)
        if resolved and submission.host_needs and not self._prepare(submission, None):
            return
        with self._lock:
            if self.closed:
                raise self._refuse()
            if resolved and not self._deferred and self._ready(submission):
                self._enter(submission)
                if not submission.runs_at_submission:
                    self._hand_over(submission)
                    return
                self._turn, self._turn_number = thread, submission.number
                self._deferred += 1  # so that nothing enters the queue meanwhile but what the function submits
        if self._turn == thread:
            self._run_turn(submission)
        else:
            self._defer(submission, timeout, bounded)

    def _run_turn(self, submission: Submission) -> None:
        """Run a function in the thread that submits it, without the lock: it may wait for other threads."""
        try:
            self._hand_over(submission)
        finally:
            with self._lock:
                self._turn = 0
                self._undefer_one(submission.number)

    def _submit_inside(self, submission: Submission) -> None:
        """What the running function submits: to the queue at once, after a wait for what only the host can resolve."""
        record = isinstance(submission, Record)
        if record and self._deferred > 1:  # a record is of all that was submitted, by others meanwhile too
            self._defer(submission, None, bounded=False)
            return
        if (submission.host_needs or submission.needs) and not self._resolve_inside(submission):
            return
        # Part of the function, so before its end, and before what others have submitted meanwhile.
        submission.enter(self._turn_number if record else self._turn_number - 1)
        self._hand_over(submission, self._turn_number - 1)

    def _resolve_inside(self, submission: Submission) -> bool:
        """Wait, with a timeout, until the queue can have it; False where it could not be prepared."""
        deadline = time.monotonic() + timeout_or_default(None)
        for need in submission.host_needs:
            self._wait_inside(submission, need, need.poll, deadline)
        if submission.host_needs and not self._prepare(submission, None):
            return False
        for need in submission.needs:
            self._wait_inside(submission, need, partial(self._is_queueable, need), deadline)
        return True

    def _wait_inside(self, submission: Submission, need: Waitable, over: Callable[[], bool], deadline: float) -> None:
        while not over():
            need.refuse_waiting_for_oneself()
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(f"{submission.label!r} needs {need!r}, which was not over in time")
            if need.placement is None:
                need.placed.wait(min(SLICE, left))
            else:
                need.block(min(SLICE, left))
            if hopeless := self._hopeless():
                raise hopeless

    def _is_queueable(self, need: Waitable) -> bool:
        return self._queue_can_wait(need) or need.poll()

    def _defer(self, submission: Submission, timeout: float | None, bounded: bool) -> None:
        if bounded:
            self._fifo.take_room(self, timeout)
        with self._lock:
            if not self.closed:
                self._enter(submission)
                self._deferred += 1
                self._fifo.put(submission, bounded=bounded)
                return
        if bounded:
            self._fifo.give_room()
        raise self._refuse()

    def _enter(self, submission: Submission) -> None:
        self.submitted += 1
        submission.enter(self.submitted)

    @property
    def _standing_still(self) -> None:
        """The submitter thread alone: what it handed over goes on in the queue."""
        return None

    def _prepare(self, submission: Submission, number: int | None) -> bool:
        thread = threading.get_ident()
        self._preparing[thread] = number
        try:
            submission.prepare()
        except Exception as error:
            self._fail(submission, error)
            return False
        finally:
            del self._preparing[thread]
        return True

    def _ready(self, submission: Submission) -> bool:
        return _are_over(submission.host_needs) and all(map(self._is_queueable, submission.needs))

    def _queue_can_wait(self, need: Waitable) -> bool:
        placement = need.placement
        if placement is None or placement.driver is not self.driver or placement.capture is not None:
            return False
        return (
            placement.device is self.device
            or placement.device == self.device
            or self.runtime.capabilities.cross_device_wait
        )

    def _hand_over(self, submission: Submission, number: int | None = None) -> None:
        """Give it to the queue; that is then over up to `number` (the submission's own) when it is."""
        # The device's own work cannot say when it runs: host functions before and after it do.
        told = point.listeners is not None and self.runtime.capabilities.host_functions
        if submission.needs:
            with self._lock:
                self._hand_over_waits(submission, told)
        told = told and not (submission.is_host_function or submission.is_silent)
        if told:
            self._call(partial(submission.tell, "begin"))
        try:
            submission.hand_over(self.handle)
        finally:
            if told:
                self._call(partial(submission.tell, "end"))
            if submission.runs_at_submission:
                self._mark_turn(submission, number)
        if not submission.runs_at_submission and (submission.holds or submission.number % self._stride == 0):
            self._mark(submission, number)

    def _mark_turn(self, submission: Submission, number: int | None) -> None:
        with self._lock:
            if not self.closed:
                self._end = None  # recorded in the middle of the function, it may not stand for its end
            try:
                self._mark(submission, number)
            except BackendError:  # the task has failed with it, or the device is lost, which everybody is told
                return

    def _hand_over_waits(self, submission: Submission, told: bool) -> None:
        for need in submission.needs:
            placement = need.placement
            if placement is not None and self._must_wait(need, placement):
                if told:
                    self._call(partial(need.tell, "begin", self))
                self.driver.queue_wait(self.device, self.handle, placement.handle)
                if told:
                    self._call(partial(need.tell, "end", self))

    def _mark(self, submission: Submission, number: int | None) -> None:
        with self._lock:
            self._keep(submission.number if number is None else number, submission.end, submission.holds)

    def _keep(self, number: int, end: Placement | None, holds: tuple[object, ...]) -> None:
        """Keep an event that tells when the queue is so far: the submission's own, where it has one."""
        self._advance()
        if end is None:
            end = Placement(self.driver, self.device, self.driver.event_record(self.device, self.handle, False))
        self._markers.append((number, end, holds))

    def _call(self, function: Callable[[], None]) -> None:
        self.driver.enqueue(self.device, self.handle, function)

    # Deferred ------------------------------------------------------------------------------------------------------

    def _step(self, submission: Submission) -> None:
        with self._lock:
            while self._turn and not self._hopeless():
                self._idle.wait(SLICE)
        self._run(submission, submission.host_needs, self._prepare_and_hand_over)

    def _undefer_one(self, number: int) -> None:
        with self._lock:
            self._deferred -= 1
            self._idle.notify_all()
            if self.closed and not self._deferred:
                self._destroy()

    def _prepare_and_hand_over(self, submission: Submission) -> None:
        if self._prepare(submission, submission.number):
            self._hand_over_late(submission)

    def _hand_over_late(self, submission: Submission) -> None:
        for need in submission.needs:
            if not self._is_queueable(need):
                with need.told(self._standing_still):
                    self._wait_for_placement(need)
        with self._lock:
            if not submission.runs_at_submission:
                self._hand_over(submission)
                return
            self._turn, self._turn_number = threading.get_ident(), submission.number
        try:
            self._hand_over(submission)
        finally:
            self._turn = 0

    def _wait_for_placement(self, need: Waitable) -> None:
        while not self._is_queueable(need):
            # Not even placed yet, or placed where this queue cannot wait for it.
            if need.placement is None:
                need.placed.wait(SLICE)
            else:
                need.block(SLICE)
            if hopeless := self._hopeless():
                raise hopeless

    def undefer(self, timeout: float) -> bool:
        if self._turn == threading.get_ident():
            return True  # what this thread submits goes to the queue at once
        with self._lock:
            return self._idle.wait_for(lambda: not self._deferred, timeout)

    def allocate(self, nbytes: int) -> tuple[int, Event]:
        """Take memory of the driver's own pool in the queue's order, and the event after which other queues may use it.

        At once, before what is deferred: fresh memory need not wait for that.

        Raises:
            ClosedError: the stream is closed.
        """
        driver, event = self.driver, Event(self, 0, False)
        with self._lock:
            if self.closed:
                raise self._refuse()
            address = driver.memory_allocate_ordered(self.device, self.handle, nbytes)
            try:
                event.place(Placement(driver, self.device, driver.event_record(self.device, self.handle, False)))
            except BackendError:
                driver.memory_free_ordered(self.device, self.handle, address)
                raise
        return address, event

    # How far it is -------------------------------------------------------------------------------------------------

    def _make_room(self, timeout: float | None) -> None:
        if self.submitted - self._reached < self._limit:  # without the lock: what is not so any more is so again later
            return
        with self._lock:
            self._advance()
            if self.submitted - self._reached < self._limit or not self._markers:
                return
            oldest = self._markers[0][1]
        wait_for_room(
            self,
            self._limit,
            timeout,
            lambda seconds: self.driver.event_synchronize(self.device, oldest.handle, seconds),
        )

    def _advance(self) -> None:
        while self._markers:
            number, placement, _ = self._markers[0]
            if not self.driver.event_query(self.device, placement.handle):
                return
            self._reached = max(self._reached, number)
            self._markers.popleft()

    def reached(self, number: int) -> bool:
        with self._lock:
            self._advance()  # always: relief asks in order to have what is over let go of
            if self._turn and number >= self._turn_number:
                return False  # of a function that still runs only the beginning can be over
            return self._reached >= number

    def letting_go(self, wanted: Callable[[Buffer], bool]) -> Event | None:
        with self._lock:
            held = [held for _, _, holds in self._markers for held in holds if isinstance(held, Buffer)]
        return self.mark() if any(map(wanted, held)) else None

    def confirm(self, number: int) -> None:
        # Markers go by their own events: one that a preparation left may have a lower number and be later in the queue.
        with self._lock:
            self._advance()
            self._reached = max(self._reached, number)

    # Life ----------------------------------------------------------------------------------------------------------

    def _shut(self, last: Record) -> bool:
        lost = self.runtime.lost()
        with self._lock:
            if self.closed:
                return False
            self._end, self.closed = last.event, True
            self._enter(last)
            if lost is not None:
                last.event.finish(lost)
            elif self._deferred:
                self._deferred += 1
                self._fifo.put(last, bounded=False)
            else:
                try:
                    self._hand_over(last)
                except BackendError as error:
                    last.event.finish(error)
                    if self._owned:  # whoever owns an adopted one may have destroyed it
                        self.remember("close", error)
            self._fifo.end()
            if not self._deferred:
                self._destroy()
            return True

    def _destroy(self) -> None:
        if not self._owned:
            return
        try:
            self.driver.queue_destroy(self.device, self.handle)
        except BackendError as error:  # nobody's call: the stream is over, and whoever closes it goes on with the next
            report(f"the queue of {self!r} could not be given back", CleanupWarning, error=error)


def _are_over(needs: tuple[Waitable, ...]) -> bool:
    """Whether all are over; most submissions need nothing, for which this takes half as long as `all`."""
    for need in needs:  # noqa: SIM110  that is what takes longer
        if not need.poll():
            return False
    return True
