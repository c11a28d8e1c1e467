"""Tasks: functions launched on a stream, and what becomes of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, final

from tazza.core.arraylib import map_leaves
from tazza.core.completion import await_latch, keep_without_frames, raise_copy, timeout_or_default
from tazza.core.event import Placement, Waitable, several
from tazza.core.failures import Failure
from tazza.core.runner import Runner
from tazza.core.stream import Stream
from tazza.core.submission import Submission
from tazza.core.waiting import note_taker
from tazza.errors import (
    BackendError,
    CancelledTaskError,
    DeadlockError,
    EscapedViewError,
    OutOfMemoryError,
    UpstreamError,
    WaitTimeoutError,
    WrongDeviceError,
)
from tazza.hot import Buffer, Frame, run_in
from tazza.spi import Handle
from tazza.util.log import info

__all__ = ["InFlight", "Task", "TaskSubmission", "wait"]

_PENDING, _RUNNING, _OVER = range(3)


@final
class Task(Waitable):
    """A launched function: its result or its failure, later.

    Made by `Context.launch`. Giving a task to another launch, on any device, waits for it and passes its result on.
    Arguments are held until it is over. Its exception is kept without frames.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     first = ctx.launch(lambda: 20, stream=ctx.new_stream())
    ...     second = ctx.launch(lambda a, b: a + b, first, 1)
    ...     second.result(timeout=10)
    21
    """

    __slots__ = (
        "_children",
        "_failure",
        "_lock",
        "_outer",
        "_result",
        "_state",
        "context",
        "generator",
        "key",
        "label",
        "runs_at_submission",
    )

    def __init__(self, context: Any, stream: Stream, label: str, key: tuple[int, ...], outer: Task | None) -> None:
        super().__init__(stream, 0, False)
        self.context, self.label, self.key = context, label, key
        self.generator: Any = None  # made by the context when the function first asks for random numbers
        self._outer = outer
        self._children = 0
        self._state, self._lock = _PENDING, threading.Lock()
        self._result: Any = None
        self._failure: Failure | None = None
        able = stream.runtime.capabilities
        # The function runs at submission and only enqueues: the task ends when the queue has done that.
        self.runs_at_submission = able.queues and not able.host_functions

    # For users -----------------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> Any:
        """Wait and return what the function returned; on a device with its own memory, arrays are Buffers there.

        Raises:
            WaitTimeoutError: it is not over after `timeout` seconds (None: ``TAZZA_WAIT_TIMEOUT``).
            UpstreamError: something it needs failed, so it did not run.
            CancelledTaskError: it was cancelled before it started.
            DeadlockError: asked for by itself or by a task it is queued behind.
            Whatever the function raised, as a copy without frames.
        """
        note_taker()
        self._wait(timeout)
        self.raise_outcome()
        return self._result

    def cancel(self) -> bool:
        """Keep it from starting; False where it has started or is over. Tasks that need it fail with UpstreamError."""
        self.check_use()
        return self.call_off(CancelledTaskError(f"task {self.label!r} was cancelled before it started"))

    def __await__(self) -> Generator[Any, None, Any]:
        self.check_use()
        note_taker()
        self.refuse_waiting_for_oneself()
        self._watch()
        yield from await_latch(self._done)
        self.raise_outcome()
        return self._result

    @property
    def exception(self) -> BaseException | None:
        """The failure once it is over, or None; looking at it counts as having been told."""
        if self._failure is not None:
            self._failure.observed = True
        return self.error

    def __repr__(self) -> str:
        return f"<Task {self.label!r} on {self.stream.label!r}, {self._status_word()}>"

    def peek(self) -> Any:
        """The result so far, None while there is none. Internal."""
        return self._result

    # For streams and contexts --------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Start it; False where it was cancelled. Internal."""
        with self._lock:
            if self._state != _PENDING:
                return False
            self._state = _RUNNING
            return True

    def end(self, result: Any, error: BaseException | None) -> None:
        """End it with a result or a failure. Internal."""
        with self._lock:
            if self._state == _OVER:
                return
            self._state = _OVER
        self._end(result, error)

    def end_in_queue(self, placement: Placement, result: Any, error: BaseException | None) -> None:
        """The function has run and enqueued: end it, well or badly, when the device reaches the event. Internal."""
        with self._lock:
            if self._state == _OVER:
                return
            self._state = _OVER
        self._result = result
        if error is not None:
            self._keep(error)
        self.place(placement)

    @property
    def error(self) -> BaseException | None:
        """The failure, or None; that of the function is known before what it enqueued is over."""
        failure = self._failure
        return self._done.outcome if failure is None else failure.error

    def finish(self, error: BaseException | None = None) -> bool:
        """End it; that the queue got there well makes a failed function no success. Internal."""
        return super().finish(self.error if error is None else error)

    def call_off(self, error: CancelledTaskError) -> bool:
        """End it unless it has started; whoever does this knows, so nobody is told again. Internal."""
        with self._lock:
            if self._state != _PENDING:
                return False
            self._state = _OVER
        self._failure = Failure(self.label, error, self.stream.runner, observed=True)
        self.finish(error)
        return True

    def _end(self, result: Any, error: BaseException | None) -> None:
        self._result = result
        if error is not None:
            self._keep(error)
        self.finish(error)

    def _keep(self, error: BaseException) -> None:
        self._failure = Failure(self.label, error, self.stream.runner)
        self.context.failures.add(self._failure)
        info("tazza.task", "task %r failed on %r: %s: %s", self.label, self.stream, type(error).__name__, error)

    def next_child_key(self) -> tuple[int, ...]:
        """Key of the random numbers of a task launched from this one. Internal."""
        self._children += 1
        return (*self.key, self._children - 1)

    def runs_on(self, stream: Stream | Runner) -> bool:
        """Tell whether this task, or one it runs inside of, occupies the stream. Internal."""
        return any(task.stream.runner is stream.runner for task in self.chain())

    def belongs_to(self, context: object) -> bool:
        """Tell whether this task, or one it runs inside of, is the context's. Internal."""
        return any(task.context is context for task in self.chain())

    def refuse_waiting_for(self, stream: Stream | Runner, number: int, what: object) -> None:
        """Raise where this task, running here, would wait for itself or for work queued behind it. Internal."""
        for task in self.chain():
            behind = task.stream.runner is stream.runner and not stream.is_inline and number >= task.number
            if what is task or behind:
                raise DeadlockError(
                    f"task {task.label!r} would wait for {'itself' if what is task else 'work queued behind it'} "
                    f"({what!r}); launch on another stream or wait outside the task"
                )

    def chain(self) -> Iterable[Task]:
        """This task and those it is inside of, as far as they are not over: frames may outlive tasks. Internal."""
        task: Task | None = self
        while task is not None:
            if task._state != _OVER:
                yield task
            task = task._outer

    def _ends_with_placement(self) -> bool:
        return self.runs_at_submission  # else the function's own end decides, and the native event is for other queues

    def raise_outcome(self) -> None:
        """Raise a copy of the failure, if there is one, and count it as seen. Internal."""
        if self.error is not None:
            if self._failure is not None:
                self._failure.observed = True
            raise_copy(self.error)

    def _status_word(self) -> str:
        if self._state != _OVER or not self._done.is_set:
            return "pending" if self._state == _PENDING else "running"
        return "done" if self.error is None else f"failed with {type(self.error).__name__}"


@final
class TaskSubmission(Submission):
    """A task in its stream's FIFO."""

    is_host_function = True

    __slots__ = ("_args", "_frame", "_function", "_is_plain", "_moved", "_queue", "runs_at_submission", "task")

    def __init__(
        self,
        task: Task,
        frame: Frame,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        needs: tuple[Waitable, ...],
        host_needs: tuple[Waitable, ...],
        plain: bool,
    ) -> None:
        super().__init__(task.stream, task.label, needs=needs, host_needs=host_needs)
        self.task = task
        self._frame, self._function, self._args = frame, function, args
        self._is_plain = plain
        self.runs_at_submission = task.runs_at_submission
        self._moved: dict[int, Any] = {}
        self._queue: Handle = None

    def enter(self, number: int) -> None:
        self.number = self.task.number = number
        self.stream.runtime.in_flight[id(self)] = self.label

    def prepare(self) -> None:
        """Bring results that lie elsewhere, in this stream's order."""
        for need in self.host_needs:
            if isinstance(need, Task) and need.error is None and id(need) not in self._moved:
                self._moved[id(need)] = self._move(need)

    @property
    def kept(self) -> tuple[object, ...]:
        return self.holds[:1]  # the arguments; the rest says that it is in flight

    @property
    def end(self) -> Placement | None:
        return self.task.placement

    def hand_over(self, queue: Handle) -> None:
        runtime = self.stream.runtime
        if self.runs_at_submission:
            self._queue = queue
            self.perform()
            return
        try:
            runtime.driver.enqueue(runtime.info, queue, self.perform)
            handle = runtime.driver.event_record(runtime.info, queue, False)
        except BackendError as error:
            self.fail(runtime.lost() or error)  # the first cause, where this is only its echo
        else:
            self.task.place(Placement(runtime.driver, runtime.info, handle))

    def fail(self, error: BaseException) -> None:
        self._finish(None, keep_without_frames(error, f"task {self.label!r}"))

    def abandon(self, error: CancelledTaskError) -> None:
        self._release()
        self.task.call_off(error)

    def run(self) -> None:
        task = self.task
        if not task.begin():
            self._release()
            return
        # The queue uses them after the function; elsewhere nobody may see the task over and its arguments still there.
        arguments = self._args if self.runs_at_submission else ()
        outcome, error = self._outcome()
        try:
            if self.runs_at_submission:
                self._finish_in_queue(outcome, error, arguments)
            else:
                self._finish(outcome, error)
        finally:
            if (
                (self.stream.is_inline or self.runs_at_submission)
                and error is not None
                and not isinstance(error, Exception)
            ):
                task.raise_outcome()  # KeyboardInterrupt or SystemExit: this thread's own, not the task's alone

    def _outcome(self) -> tuple[Any, BaseException | None]:
        runtime = self.stream.runtime
        result: Any = None
        try:
            runtime.check()
            self._refuse_failed_needs()
            result = run_in(self._frame, self._call, (), {})
        except BaseException as error:
            return None, keep_without_frames(self._explained(error), f"task {self.label!r}")
        escaped = runtime.driver.escaped(runtime.info)
        if escaped:
            return None, EscapedViewError(
                f"task {self.label!r} kept {escaped} view(s) of memory of {runtime.name} beyond its end; "
                "return the array, or copy it, instead of storing it"
            )
        return result, None

    def _explained(self, error: BaseException) -> BaseException:
        """Say of an out-of-memory error what is said of one that leaves ``with ctx:``."""
        try:
            self.task.context._explain(error)
        except OutOfMemoryError as ours:
            return ours
        return error

    def _call(self) -> Any:
        """Run the function on resolved arguments, which die with this Python frame."""
        library = self.task.context.arrays
        seen: list[tuple[Any, Buffer]] = []
        if self._is_plain:
            result = self._function(*self._args)
        else:
            result = self._function(*(map_leaves(lambda leaf: self._resolve(leaf, seen), one) for one in self._args))
        return None if result is None else map_leaves(lambda leaf: library.outcome(leaf, seen), result)

    def _resolve(self, leaf: Any, seen: list[tuple[Any, Buffer]]) -> Any:
        context = self.task.context
        if isinstance(leaf, Task):
            if id(leaf) in self._moved:
                value = self._moved[id(leaf)]
            else:
                value = self._move(leaf) if _is_elsewhere(leaf, context) else leaf._result
            return map_leaves(lambda inner: self._resolve(inner, seen), value)
        if isinstance(leaf, Buffer):
            if leaf.device.memory_domain != context.device.memory_domain:
                raise WrongDeviceError(
                    f"task {self.label!r} on {context.device} was given memory of {leaf.device}; "
                    f"move it with ctx.asarray(x) of the context on {context.device}"
                )
            if not (self.stream.is_inline or leaf.is_closed):  # closed after the launch: the arguments are held
                leaf.used_on(self.stream)
            array = context.arrays.inside(leaf)
            seen.append((array, leaf))
            return array
        return leaf

    def _move(self, source: Task) -> Any:
        context = self.task.context
        if context.spec.transfer == "log":
            here, there = context.device, source.context.device
            info("tazza.transfer", "result of %r moves from %s to %s for %r", source.label, there, here, self.label)
        return run_in(self._frame, map_leaves, (context.private_copy, source._result), {})

    def _refuse_failed_needs(self) -> None:
        if not (self.needs or self.host_needs):
            return
        failed = [need for need in (*self.host_needs, *self.needs) if need.error is not None]
        if not failed:
            return
        for need in failed:
            if isinstance(need, Task) and need._failure is not None:
                need._failure.observed = True  # it goes on in this task's failure
        cause = failed[0].error
        while isinstance(cause, UpstreamError) and cause.cause is not None:
            cause = cause.cause
        raise UpstreamError(
            f"task {self.label!r} did not run because {failed[0]!r} failed: {type(cause).__name__}: {cause}", cause
        )

    def _finish_in_queue(self, result: Any, error: BaseException | None, arguments: tuple[Any, ...]) -> None:
        """End with what the function enqueued; until then the stream holds the arguments."""
        runtime = self.stream.runtime
        try:
            handle = runtime.driver.event_record(runtime.info, self._queue, False)
        except BackendError as lost:
            self._finish(None, error or keep_without_frames(runtime.lost() or lost, f"task {self.label!r}"))
            return
        self._release()
        self.holds = arguments, InFlight(runtime.in_flight, self.label)
        self.task.end_in_queue(Placement(runtime.driver, runtime.info, handle), result, error)

    def _finish(self, result: Any, error: BaseException | None) -> None:
        self._release()
        self.task.end(result, error)

    def _release(self) -> None:
        self._args, self._function = (), _nothing
        self._moved.clear()
        self.stream.runtime.in_flight.pop(id(self), None)


@final
class InFlight:
    """Names work among what is in flight until the stream lets go of this."""

    __slots__ = ("_labels",)

    def __init__(self, labels: dict[int, str], label: str) -> None:
        self._labels = labels
        labels[id(self)] = label

    def __del__(self) -> None:
        self._labels.pop(id(self), None)


def _nothing() -> None:
    """Stands in for a function that was released."""


def _is_elsewhere(task: Task, context: Any) -> bool:
    return bool(task.context.device.memory_domain != context.device.memory_domain)


def wait(tasks: Iterable[Task], timeout: float | None = None) -> list[Any]:
    """Wait for all tasks, then return their results in order, or raise the first failure in that order.

    Args:
        tasks: any number of tasks, on any devices.
        timeout: seconds for all together; None is ``TAZZA_WAIT_TIMEOUT``.

    Raises:
        WaitTimeoutError: some are not over; nothing was cancelled.
    """
    waited = several(tasks, argument="tasks")
    note_taker()
    deadline = time.monotonic() + timeout_or_default(timeout)
    for task in waited:
        try:
            task._wait(max(0.0, deadline - time.monotonic()))
        except WaitTimeoutError:
            left = sum(not other.is_done for other in waited)
            raise WaitTimeoutError(
                f"{left} of {len(waited)} are not over after {timeout_or_default(timeout):g} s, the first is {task!r}"
            ) from None
    for task in waited:
        task.raise_outcome()
    return [task._result if isinstance(task, Task) else None for task in waited]
