"""Captures: a scope in which a stream's work is taken note of, and becomes a graph."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, final

from tazza.core.completion import timeout_or_default
from tazza.core.event import Event, Placement, Waitable
from tazza.core.failures import Failures
from tazza.core.graph import Executable, Graph, Replays, claimed
from tazza.core.native import NativeRunner
from tazza.core.runner import Runner
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import Stream
from tazza.core.submission import Record, Submission, Wait
from tazza.core.task import Task, TaskSubmission
from tazza.errors import BackendError, CleanupWarning, ClosedError, UnsupportedError, UsageError, WaitTimeoutError
from tazza.hot import Account, Buffer, Frame, Lane, Scope, frame_of, generation, top
from tazza.spi import Handle
from tazza.util.report import report

__all__ = ["Capture", "CaptureRunner", "CaptureScope"]


@final
class CaptureScope(Scope):
    """What `Stream.capture` returns; entering it gives the graph."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._capture: Capture | None = None

    def __enter__(self) -> Graph:  # type: ignore[override]
        capture = Capture(self._stream)
        self._capture = capture
        try:
            super().__enter__()
        except BaseException as error:
            capture.abort(error)
            raise
        return capture.graph

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        capture = self._capture
        if capture is None or capture.generation != generation():
            super().__exit__(exc_type, exc, traceback)
            return
        self._capture = None
        try:
            super().__exit__(exc_type, exc, traceback)
        except UsageError as error:
            capture.abort(error)
            raise
        if exc is None:
            capture.end()
        else:
            capture.abort(exc)

    def _frame(self, parent: Frame | None) -> Frame:
        context = self._stream.context
        inner = frame_of(context)
        account = context.account if inner is None or inner.account is None else inner.account
        return Frame(self, context, self._stream, account, None, parent)

    def __repr__(self) -> str:
        return f"<capture of {self._stream!r}>"


class _Part:
    """A stream that takes part: what it is outside of the capture, and what stands in for that."""

    def __init__(self, stream: Stream, real: NativeRunner, runner: CaptureRunner) -> None:
        self.stream, self.real, self.runner = stream, real, runner


@final
class Capture:
    """One capture, from its begin to its end. Belongs to the thread that began it.

    Args:
        stream: whose work is captured.

    Attributes:
        graph: what it will come to; not there any more afterwards.
        lane: the memory of the graph.
        replays: of the graph.
        tasks: launched inside.
        marks: events that the core itself recorded.
        holds: what the graph has to keep.
    """

    def __init__(self, stream: Stream) -> None:
        self.generation, self.thread = generation(), threading.get_ident()
        self._context, self._runtime, self._label = stream.context, stream.runtime, stream.label
        self._check(stream)
        self.graph = Graph(self._context, self._runtime, f"graph of {stream.label}")
        self.replays = Replays()
        self.tasks: list[Task] = []
        self.marks: list[Event] = []
        self.holds: list[object] = []
        self._buffers: dict[int, Buffer] = {}
        self._parts: list[_Part] = []
        self._over = False
        self._account: Account = self._charged()
        real = self._undeferred(stream)
        driver, info = self._runtime.driver, self._runtime.info
        self._queue = driver.queue_create(info, 0)
        try:
            driver.capture_begin(info, self._queue)
        except BaseException:
            _destroy(self._runtime, self._queue)
            raise
        self.lane: Lane = self._context.pool.new_lane()
        try:
            self._take(stream, real, self._queue, self.lane)
        except BaseException as error:
            self.abort(error)
            raise
        home = self._parts[0].runner
        self.lane.home = lambda: home

    def _check(self, stream: Stream) -> None:
        if self._context is None:
            raise ClosedError(f"the context of {stream!r} is gone; keep it while its streams are used")
        self._context._check_open()
        frame = top()
        if frame is not None and frame.task is not None:
            raise UsageError(
                f"task {frame.task.label!r} cannot capture: capture outside, and launch inside the capture"
            )
        if stream.runner.capture is not None:
            raise UsageError(f"{stream!r} is being captured already")
        self._check_queue(stream)

    def _check_queue(self, stream: Stream) -> None:
        runner = stream.runner
        if runner.closed:
            raise runner._refuse()
        if stream.is_lent:
            raise UsageError(
                f"{stream!r} is a library state's, whose scratch memory serves other calls too: its work cannot be "
                "captured"
            )
        if isinstance(runner, NativeRunner) and runner.is_adopted:
            raise UnsupportedError(
                f"{stream!r} is another library's, which uses the queue without a word; capture on ctx.new_stream() "
                "and give that library `stream.native` inside the capture"
            )

    def _charged(self) -> Account:
        frame = frame_of(self._context)
        account: Account = self._context.account if frame is None or frame.account is None else frame.account
        return account

    def _undeferred(self, stream: Stream) -> NativeRunner:
        runner = stream.runner
        assert isinstance(runner, NativeRunner)
        if not runner.undefer(timeout_or_default(None)):
            raise WaitTimeoutError(f"{stream!r} still waits for something that only the host can resolve")
        return runner

    def _take(self, stream: Stream, real: NativeRunner, queue: Handle, lane: Lane) -> None:
        """Put a runner of the capture in the stream's, for this thread."""
        runner = CaptureRunner(self, real, queue, lane, stream.context.failures)
        with self._runtime.lock:
            if stream.runner is not real:
                raise UsageError(f"{stream!r} is being captured already")
            self._parts.append(_Part(stream, real, runner))
            self.replays.runners.append(runner)
            stream.captor, stream.arena = self.thread, self.lane
            stream.runner = runner

    # Inside --------------------------------------------------------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the one that captures."""
        return self.thread == threading.get_ident()

    def check_thread(self) -> None:
        """Raise in every other thread."""
        if not self.is_here:
            raise UsageError(
                f"stream {self._label!r} is being captured by another thread; use another stream, or wait until that "
                "is over"
            )

    def uses(self, buffer: Buffer, runner: Runner) -> tuple[Event, ...]:
        """Have the graph hold memory that a stream of the capture is about to use; returns what comes before that."""
        self.check_thread()
        block = buffer.block
        if block.lane is not self.lane:
            if buffer._is_lent():
                raise UsageError(f"{buffer!r} is borrowed and goes back before the graph does; copy it: ctx.asarray(x)")
            domain = buffer.device.memory_domain
            if domain not in (self._runtime.info.memory_domain, "host"):
                raise UnsupportedError(
                    f"{buffer!r} is memory of another device; a graph holds work of one: copy it before the capture"
                )
            self._buffers[id(buffer)] = buffer
            buffer.used_on(runner)
        made: Event | None = block.made
        if made is None or made.captured is not self or made.stream.runner is runner:
            return ()  # what comes from outside is waited for by each replay
        return (made,)

    def admit(self, stream: Stream, what: Waitable) -> None:
        """Have a stream that is to wait for what was captured take part.

        Raises:
            UsageError: it cannot.
        """
        if self._over or not self.is_here:
            raise self.refusal(what)
        capture = stream.runner.capture
        if capture is self:
            return
        if capture is not None or stream.runtime is not self._runtime:
            raise UsageError(f"{stream!r} cannot wait for {what!r}, which is part of a capture on {self._runtime.name}")
        self._check_queue(stream)
        real, placement = self._undeferred(stream), what.placement
        assert placement is not None
        driver, info = self._runtime.driver, self._runtime.info
        queue = driver.queue_create(info, 0)
        try:
            driver.capture_join(info, queue, self._queue, placement.handle)
            self._take(stream, real, queue, real.lane)
        except BaseException:
            _destroy(self._runtime, queue)
            raise

    def refuse_outside(self, stream: Stream) -> None:
        """Raise unless a stream, for whose work so far one of the capture is to wait, takes part in that."""
        self.check_thread()
        if stream.runner.capture is not self:
            raise UsageError(
                f"{stream!r} takes no part in the capture of {self._label!r}; wait for it before the capture, or have "
                "it wait for the captured stream first"
            )

    def refuse_waiting(self) -> None:
        """Raise in the thread that captures, as nothing of it runs."""
        if self.is_here:
            raise UsageError(
                f"stream {self._label!r} is being captured: nothing runs that could be waited for; do it after the "
                "capture, behind a replay"
            )

    def refusal(self, what: Waitable) -> UsageError:
        """Why something that was captured cannot be waited for, or asked."""
        if self._over:
            text = "which is over: it was of use inside only; record on the stream of the replay"
        else:
            text = "of which nothing runs before a replay; only streams of the device can wait for it, inside"
        return UsageError(f"{what!r} is part of the capture of {self._label!r}, {text}")

    # The end -------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Make the graph of what was captured."""
        failed = next((task for task in self.tasks if task.error is not None), None)
        if failed is not None:
            self._abort()
            failed.raise_outcome()
        runtime, made = self._runtime, False
        try:
            handle = runtime.driver.capture_end(runtime.info, self._queue)
            executable = Executable(runtime, handle, self.replays, self.lane)
            try:
                executable.blocks = claimed(self.lane, self._account, self.graph.label)
            except BaseException:
                executable._destroy()
                raise
            executable.holds, executable.buffers = self.holds, list(self._buffers.values())
            self.graph.made(executable)
            made = True
        finally:
            self._leave(made)

    def abort(self, cause: BaseException) -> None:
        """End without a graph; a failure of that becomes a note of what led to it."""
        if self._over:
            return
        try:
            self._abort()
        except BackendError as error:
            cause.add_note(f"then {error}")

    def _abort(self) -> None:
        try:
            self._runtime.driver.capture_abort(self._runtime.info, self._queue)
        finally:
            self._leave(made=False)

    def _leave(self, made: bool) -> None:
        """Give the streams back what they were, and let go of everything."""
        self._over = True
        parts, tasks, marks = self._parts, self.tasks, self.marks
        for part in parts:
            part.stream.runner, part.stream.arena, part.stream.captor = part.real, None, 0
            part.runner.capture, part.runner.closed = None, True
            self.replays.also_after(part.real)
        why = None if made else UsageError(f"the capture of {self._label!r} gave no graph, so nothing of it ever runs")
        for task in tasks:
            task.finish(why)
        for event in marks:
            event.finish()
        if not made:
            self.replays.forget(self._buffers.values())
        self._parts, self.tasks, self.marks, self.holds, self._buffers = [], [], [], [], {}
        self._context = None
        del self.graph  # blocks know events of the capture, and those know it: it must not hold what the graph holds
        for queue in {id(queue): queue for queue in (self._queue, *(part.runner.handle for part in parts))}.values():
            _destroy(self._runtime, queue)
        if not made:
            self.replays.over = True
            self.lane.pool.close_lane(self.lane)


@final
class CaptureRunner(Runner):
    """Has the device take note of submissions; afterwards stands for the replays, for memory whose home it is.

    Args:
        capture: that it is part of.
        real: what the stream's submissions go to outside of the capture.
        handle: the queue that captures.
        lane: the memory that it is at home in.
        failures: of the stream's context.
    """

    def __init__(self, capture: Capture, real: NativeRunner, handle: Handle, lane: Lane, failures: Failures) -> None:
        super().__init__(real.runtime, lane, real.label, failures)
        self.capture: Capture | None = capture
        self.handle, self.replays = handle, capture.replays

    def submit(self, submission: Submission, timeout: float | None = None, *, bounded: bool = True) -> None:
        capture = self._here()
        if isinstance(submission, Record):
            self._enter(submission)
            self._record(submission.event, capture)
            return
        waits = self._waits(submission, capture)
        if submission.host_needs and not self._prepare(submission):
            return
        self._enter(submission)
        for handle in waits:
            self.runtime.driver.queue_wait(self.runtime.info, self.handle, handle)
        if isinstance(submission, TaskSubmission):
            self._hand_over_task(submission, capture)
        else:
            submission.hand_over(self.handle)
        capture.holds.extend(submission.kept)

    def _here(self) -> Capture:
        capture = self.capture
        if capture is None:
            raise UsageError(f"{self!r} was a part of a capture that is over")
        capture.check_thread()
        return capture

    def _enter(self, submission: Submission) -> None:
        self.submitted += 1
        submission.enter(self.submitted)

    def _record(self, event: Event, capture: Capture) -> None:
        if event.timed:
            raise UsageError("an event recorded in a capture has no time; record around a replay")
        runtime = self.runtime
        handle = runtime.driver.event_record(runtime.info, self.handle, False)
        event.place(Placement(runtime.driver, runtime.info, handle, capture))

    def _waits(self, submission: Submission, capture: Capture) -> list[Handle]:
        """The events of the capture that come before; everything else that somebody asked for has to be over."""
        for need in submission.host_needs:
            self._check_over(submission, need)
            if isinstance(need, Task) and need.context.device.memory_domain != "host":
                raise UnsupportedError(
                    f"{need!r} is on another device; a graph holds work of one: move it before the capture"
                )
        asked = isinstance(submission, (Wait, TaskSubmission))  # else it is of buffers, whose order each replay renews
        waits: list[Handle] = []
        for need in submission.needs:
            if need.captured is capture:
                placement = need.placement
                if placement is not None and need.stream.runner is not self:
                    waits.append(placement.handle)
            elif asked:
                self._check_over(submission, need)
        return waits

    def _check_over(self, submission: Submission, need: Waitable) -> None:
        if not need.poll():
            raise UsageError(
                f"{submission.label!r} needs {need!r}, which is not over; have the stream wait for it before the "
                "capture, each replay comes after that"
            )

    def _prepare(self, submission: Submission) -> bool:
        try:
            submission.prepare()
        except Exception as error:
            if isinstance(submission, TaskSubmission) and self.capture is not None:
                self.capture.tasks.append(submission.task)
            submission.fail(error)  # the capture gives no graph then
            return False
        return True

    def _hand_over_task(self, submission: TaskSubmission, capture: Capture) -> None:
        task = submission.task
        capture.tasks.append(task)
        try:
            submission.hand_over(self.handle)
        finally:
            if task.placement is not None:
                task.placement.capture = capture

    # What blocks and streams ask -----------------------------------------------------------------------------------

    def mark(self) -> Event:
        capture, event = self.capture, Event(self, 0, False)
        if capture is None or not capture.is_here:
            last = self.replays.last
            if last is not None:
                return last.mark()
            event.finish()  # nothing of it is under way
            return event
        self._record(event, capture)
        capture.marks.append(event)
        return event

    def unfinished(self) -> Event | None:
        return self.mark() if self.capture is not None else super().unfinished()

    def reached(self, number: int) -> bool:
        return self.capture is None and self.replays.last is None

    def hold(self, number: int) -> Any | None:
        return None if self.replays.is_done else self.replays

    def settle(self, timeout: float) -> None:
        if self.capture is not None:
            self.capture.refuse_waiting()
        last = self.replays.last
        if last is not None:
            last.settle(timeout)

    def follow(self, event: Event) -> None:
        """Order what is replayed later after an event."""
        with self.replays.lock:
            self.replays.after = [*(one for one in self.replays.after if not one.poll()), event]

    @property
    def is_idle(self) -> bool:
        if self.capture is not None:
            self.capture.refuse_waiting()
        return self.replays.last is None

    @property
    def is_working(self) -> bool:
        return self.replays.last is not None

    def undefer(self, timeout: float) -> bool:
        self._here()
        return True

    def close(self) -> None:
        if self.capture is not None:
            raise UsageError(f"{self!r} is being captured; close it after that")

    def _shut(self, last: Record) -> bool:
        return False


def _destroy(runtime: DeviceRuntime, queue: Handle) -> None:
    try:
        runtime.driver.queue_destroy(runtime.info, queue)
    except BackendError as error:  # the capture is over, well or badly; the driver tries again when it trims
        if runtime.lost() is None:
            report(f"a queue for a capture on {runtime.name} could not be given back", CleanupWarning, error=error)
