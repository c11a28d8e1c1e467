"""Streams: ordered queues of work on one device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn, cast, final

from tazza.core import registry
from tazza.core.completion import timeout_or_default
from tazza.core.event import Event, Waitable
from tazza.core.failures import Failures
from tazza.core.native import NativeRunner
from tazza.core.runner import InlineRunner, Runner, WorkerRunner
from tazza.core.runtime import DeviceRuntime
from tazza.core.submission import Record, Submission, Wait
from tazza.errors import ArgumentError, ClosedError, UnsupportedError, UsageError, WaitTimeoutError
from tazza.hot import Buffer, Lane, StreamCore, point
from tazza.hot.hooks import Operation, emit

__all__ = ["Stream", "make_runner", "making"]


@final
class Stream(StreamCore):
    """An ordered queue of work on one device, made by a context.

    Streams compare by identity. Any thread may submit to one. Submission is asynchronous to the host except on the
    CPU context's own stream, which is *inline*: there each call does its work before it returns.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     worker = ctx.new_stream()
    ...     task = ctx.launch(sum, [1, 2, 3], stream=worker)
    ...     worker.synchronize(timeout=10)
    ...     task.result()
    6
    """

    def __init__(self, context: Any, runner: Runner, *, own: bool = False, lent: bool = False) -> None:
        super().__init__()
        self.runner, self.lane = runner, runner.lane
        self._is_lent = lent  # the queue is a library state's: it outlives this stream, and serves other contexts
        # The context holds its own stream, so that one must not hold the context; every other stream does.
        self._context: Callable[[], Any] = weakref.ref(context) if own else lambda: context

    # Order ---------------------------------------------------------------------------------------------------------

    def record(self, *, timing: bool = False) -> Event:
        """Return an event that is over when everything submitted to this stream so far is.

        Args:
            timing: the event can be used with `Event.seconds_since`; needs ``Capabilities.timing``.
        """
        if timing and not self.runtime.capabilities.timing:
            raise UnsupportedError(f"{self.runtime.name} has no event times; time synchronize() in the host")
        event = Event(self, 0, timing)
        if point.listeners is not None:
            emit(Operation("record", stream=self, subject=event))
        pool = self.runner.lane.pool
        if pool.pending:
            pool.drain()
        with self._gate():
            if not self.runner.record_now(event):
                self.runner.submit(Record(self, event))
        return event

    def wait(self, what: Waitable | Stream) -> None:
        """Order what is submitted to this stream from now on after an event, a task, or another stream's work so far.

        Asynchronous to the host; on an inline stream the caller blocks, for at most ``TAZZA_WAIT_TIMEOUT``, and what
        failed is raised. On other streams a failed event does not stop what comes later: it is raised by
        `synchronize`.
        """
        if isinstance(what, Stream):
            if what is self:
                return
            if self.runner.capture is not None:
                self.runner.capture.refuse_outside(what)
            what = what.record()
        if type(what) is not Event and not isinstance(what, Waitable):  # of abstract classes it takes long to ask
            raise ArgumentError.of("what", what, "an Event, HostEvent, Task or Stream")
        what.check_use()
        if what.captured is not None:
            what.captured.admit(self, what)
        if getattr(what.stream, "runner", None) is self.runner and not self.is_inline:
            return
        if point.listeners is not None:
            emit(Operation("wait", stream=self, subject=what))
        with self._gate():
            if not self.runner.wait_now(what):
                self.runner.submit(Wait(self, "wait", needs=(what,)))

    def submit(self, submission: Submission) -> None:
        """Put a submission into the FIFO. Internal; users launch, copy, fill, record and wait."""
        with self._gate():
            self.runner.submit(submission)

    def _gate(self) -> Any:
        """What a submission passes through; raises where none can be made any more."""
        self.runner.runtime.check()
        context = self._context()
        if context is None:
            raise ClosedError(f"the context of {self!r} is gone; keep it while its streams are used")
        return context.gate

    def synchronize(self, timeout: float | None = None) -> None:
        """Block until everything submitted so far is over, then raise the first failure that nobody has seen.

        Raises:
            WaitTimeoutError: it is not over after `timeout` seconds (None: ``TAZZA_WAIT_TIMEOUT``).
            DeadlockError: called from a task of this very stream.
        """
        self.runtime.check()
        if point.listeners is not None:
            emit(Operation("wait", stream=self, subject=self))
        self.settle(timeout_or_default(timeout))
        context = self._context()
        if context is not None:
            context.failures.raise_first(self.runner)

    def capture(self) -> AbstractContextManager[Any]:
        """Take note of what this thread submits to the stream inside ``with stream.capture() as graph:``.

        Nothing of it runs; each ``graph.replay()`` afterwards runs all of it, as one submission. Makes the stream the
        current one. Memory allocated inside belongs to the graph. Waits until nothing of the stream is deferred.

        Inside, an event of `record` serves `wait` of streams of this device, which thereby take part, and must be
        waited for before the end. What comes from outside must be over. `native` is a queue of the capture's own, and
        what libraries put into it is captured. The body must not await.

        Raises:
            UnsupportedError: the device has no graphs, or the stream's queue is another library's.
            UsageError: in a task, or the stream is being captured already. Inside: a wait of the host for the stream,
                or another thread that uses it. At the end: a stream that took part was not waited for.
            What a task that was launched inside has failed with: at the end, which gives no graph.

        >>> import tazza as tz
        >>> with tz.open("cpu") as ctx:
        ...     try:
        ...         ctx.stream.capture()
        ...     except tz.errors.UnsupportedError as error:
        ...         "call the function again" in str(error)
        True
        """
        if not self.runtime.capabilities.capture:
            raise UnsupportedError(
                f"{self.runtime.name} has no graphs: call the function again, or capture on a device that has, such as "
                "cuda:0"
            )
        scope: AbstractContextManager[Any] = registry.load("capture")(self)
        return scope

    # For memory that the stream uses -------------------------------------------------------------------------------

    def mark(self) -> Event:
        """See `Runner.mark`. Internal."""
        return self.runner.mark()

    def follow(self, event: Event) -> None:
        """See `Runner.follow`. Internal."""
        self.runner.follow(event)

    def settle(self, timeout: float) -> None:
        """See `Runner.settle`; raises where the device was lost meanwhile, and the data with it. Internal."""
        self.runner.settle(timeout)
        self.runtime.check()

    def reached(self, number: int) -> bool:
        """See `Runner.reached`. Internal."""
        return self.runner.reached(number)

    # Life ----------------------------------------------------------------------------------------------------------

    @property
    def is_lent(self) -> bool:
        """Whether the queue is a library state's. Internal."""
        return self._is_lent

    def close(self) -> None:
        """Accept nothing more; helper threads end after what is queued. Idempotent, never blocks.

        Raises:
            UsageError: it is a library state's.
        """
        if self._is_lent:
            raise UsageError(f"{self!r} is a library state's; close the states with DnnWrapper(ctx).close()")
        self.runner.close()

    def __del__(self) -> None:
        # One append: closing calls the driver, and a finaliser may run anywhere.
        runner = getattr(self, "runner", None)
        if runner is not None and not self._is_lent and not runner.closed:
            runner.runtime.orphans.append(runner)

    def __repr__(self) -> str:
        return repr(self.runner)

    def __reduce__(self) -> NoReturn:
        raise UsageError("a stream cannot be pickled; send ctx.spec and make a context and its streams there")

    @property
    def label(self) -> str:
        """The stream's name in errors and reports."""
        return self.runner.label

    @property
    def runtime(self) -> DeviceRuntime:
        """What all contexts of the device share. Internal."""
        return self.runner.runtime

    @property
    def is_closed(self) -> bool:
        """Whether it accepts nothing more."""
        return self.runner.closed

    @property
    def is_inline(self) -> bool:
        """Whether every call on this stream does its work before it returns."""
        return self.runner.is_inline

    @property
    def is_done(self) -> bool:
        """Whether everything submitted so far is over. Does not block; an error is not mistaken for "busy"."""
        self.runtime.check()
        return self.runner.is_idle

    @property
    def submitted(self) -> int:
        """Number of submissions that entered the queue."""
        return self.runner.submitted

    @property
    def context(self) -> Any:
        """The context that made the stream, or None when it is gone."""
        return self._context()

    @property
    def device(self) -> Any:
        """The stream's device."""
        return self.runtime.device

    @property
    def native(self) -> object:
        """The queue as other libraries know it, after everything deferred was handed to it.

        Inside a capture of the stream that is the capture's, of no use afterwards.

        Raises:
            UnsupportedError: the device has no native queues (CPU).
            WaitTimeoutError: something is still deferred after ``TAZZA_WAIT_TIMEOUT``.
        """
        self.runtime.check()
        runner: Any = self.runner
        if not self.runtime.capabilities.queues:
            raise UnsupportedError(f"{self.runtime.name} has no native queues; launch a function on the stream instead")
        if not runner.undefer(timeout_or_default(None)):
            raise WaitTimeoutError(f"{self!r} still waits for something that only the host can resolve")
        return self.runtime.driver.queue_native(self.runtime.info, runner.handle)


def making(buffer: Buffer, stream: Stream | Runner) -> tuple[Event, ...]:
    """What the first use of a buffer on another than its home stream comes after: its making.

    That is the copy or draw that filled it, and the last use of the same memory before it was handed out again: nobody
    but the pool can know of that. Later uses are ordered by whoever makes them.
    """
    capture = stream.runner.capture
    if capture is not None:
        return cast("tuple[Event, ...]", capture.uses(buffer, stream.runner))
    made: Event | None = buffer.block.made
    if made is None or stream.lane is buffer.block.lane or made.stream.runner is stream.runner:
        return ()
    if made.poll() and made.error is None:  # else nobody knows: whoever needs it says so
        buffer.block.made = None
        return ()
    return (made,)


def make_runner(
    runtime: DeviceRuntime,
    lane: Lane,
    failures: Failures,
    *,
    label: str,
    priority: int,
    max_queued: int,
    worker: bool,
    native: object = None,
) -> Runner:
    """Choose who runs a new stream of a device: the device itself, or on hosts a worker thread or the caller."""
    driver, info = runtime.driver, runtime.info
    runner: Runner
    if runtime.capabilities.queues:
        owned = native is None
        handle = driver.queue_create(info, priority) if owned else driver.queue_adopt(info, native)
        runner = NativeRunner(runtime, lane, label, failures, max_queued, handle, owned=owned)
    elif worker:
        runner = WorkerRunner(runtime, lane, label, failures, max_queued)
    else:
        runner = InlineRunner(runtime, lane, label, failures)
    if not lane.shared:
        lane.home = lambda: runner
    runtime.add_runner(runner)
    return runner
