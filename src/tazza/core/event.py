"""Events: points in a stream that can be waited for, and the one that user code completes.

```
             record            reached
 (stream) ───────────▶ SCHEDULED ─────▶ SUCCESS
                           └── driver ▶ FAILED
 HostEvent: INITIALIZED ── succeed/fail ▶ SUCCESS/FAILED
```
"""

from __future__ import annotations

import abc
import contextlib
import enum
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NoReturn, final

from tazza.core.completion import (
    await_latch,
    call_later,
    frameless,
    now_ns,
    poll,
    raise_copy,
    timeout_or_default,
)
from tazza.core.waiting import waiting_for
from tazza.errors import (
    ArgumentError,
    BackendError,
    DeviceLostError,
    UnsupportedError,
    UsageError,
    WaitTimeoutError,
)
from tazza.hot import EventCore, Placement, point, top
from tazza.hot.hooks import Operation, emit

__all__ = ["Event", "EventStatus", "HostEvent", "Placement", "Waitable", "several"]


class EventStatus(enum.Enum):
    """The states of an event, as in Caffe2.

    >>> import tazza as tz
    >>> tz.HostEvent().status is tz.EventStatus.INITIALIZED
    True
    """

    INITIALIZED = 0
    SCHEDULED = 1
    SUCCESS = 2
    FAILED = 3


class Waitable(EventCore, abc.ABC):
    """Anything that ends: the common half of events and tasks.

    `stream` (or its runner) and `number` say where it lies, for the rule that nobody waits for himself.
    """

    __slots__ = ()

    # For streams ---------------------------------------------------------------------------------------------------

    def finish(self, error: BaseException | None = None) -> bool:
        """End it; the first outcome wins."""
        ended = self._done.set(error)
        if self._placed is not None:
            self._placed.set()
        return ended

    def poll(self) -> bool:
        """Ask the driver whether it is over; where the device was lost before it, it ends as failed.

        Raises:
            BackendError: the driver cannot tell, on a device that is well. It may be over or not, and is asked again.
            UsageError: it is part of a capture.
        """
        placement = self.placement
        if not self._done.is_set and placement is not None and self._ends_with_placement():
            if placement.capture is not None:
                raise placement.capture.refusal(self)
            try:
                if placement.driver.event_query(placement.device, placement.handle):
                    self.finish()
            except BackendError as error:
                self._lose(error)
        return self._done.is_set

    @abc.abstractmethod
    def _ends_with_placement(self) -> bool:
        """Whether the native event's end is this one's, rather than a call of `finish`."""

    def block(self, timeout: float) -> bool:
        """Wait in the host without looking at the outcome; tell whether it is over."""
        if self.poll():
            return True
        with waiting_for(self):
            return self._block(timeout)

    def _block(self, timeout: float) -> bool:
        deadline = now_ns() + int(timeout * 1e9)
        if not self._ends_with_placement():
            return self._done.wait(timeout)
        if self.placement is None and not self.placed.wait(timeout):
            return False
        placement = self.placement
        if placement is not None and not self._done.is_set:
            left = max(0.0, (deadline - now_ns()) * 1e-9)
            try:
                if placement.driver.event_synchronize(placement.device, placement.handle, left):
                    self.finish()
            except BackendError as error:
                self._lose(error)
        return self._done.is_set

    def block_told(self, timeout: float, stream: Any = None) -> bool:
        """Call `block` and say to whoever listens that a stream stands still for it, or else this thread."""
        if point.listeners is None:
            return self.block(timeout)
        with self.told(stream):
            return self.block(timeout)

    @contextlib.contextmanager
    def told(self, stream: Any = None) -> Iterator[None]:
        """Say around the body that a stream, or this thread, stands still until this is over."""
        self.tell("begin", stream)
        try:
            yield
        finally:
            self.tell("end", stream)

    def tell(self, kind: str, stream: Any = None) -> None:
        """Say that standing still for it begins or ends now."""
        if point.listeners is not None:
            emit(Operation(kind, stream, "wait", subject=self))

    def _lose(self, error: BackendError) -> None:
        """End it where the device is lost, which every context of that is to know at once; else nobody knows."""
        placement = self.placement
        if isinstance(error, DeviceLostError) or placement is None or placement.driver.poison(placement.device):
            self.finish(error)
            if self.stream is not None:
                self.stream.runtime.lost()
        else:
            raise error

    # For users -----------------------------------------------------------------------------------------------------

    def synchronize(self, timeout: float | None = None) -> None:
        """Block the calling thread until it is over.

        Args:
            timeout: seconds; None is ``TAZZA_WAIT_TIMEOUT``.

        Raises:
            WaitTimeoutError: it is not over yet; nothing was cancelled.
            DeadlockError: called from a task that this is queued behind, at once.
            BackendError, or what `HostEvent.fail` was given: it failed.
        """
        self._wait(timeout)
        self.raise_outcome()

    def _wait(self, timeout: float | None) -> None:
        self.check_use()
        if point.listeners is not None:
            emit(Operation("wait", stream=self.stream, subject=self))
        if self.poll():
            return
        self.refuse_waiting_for_oneself()
        seconds = timeout_or_default(timeout)
        if not self.block_told(seconds):
            raise WaitTimeoutError(f"{self!r} is not over after {seconds:g} s; nothing was cancelled")

    def raise_outcome(self) -> None:
        """Raise a copy of the failure, if there is one. Internal."""
        if self.error is not None:
            raise_copy(self.error)

    def refuse_waiting_for_oneself(self) -> None:
        frame = top()
        if self.stream is not None and frame is not None and frame.task is not None:
            frame.task.refuse_waiting_for(self.stream, self.number, self)

    def on_done(self, function: Callable[[Any], object]) -> None:
        """Call ``function(self)`` on the helper thread when it is over, well or badly; at once if it is.

        What the function raises becomes a `CleanupWarning`.
        """
        self.check_use()
        self._watch()
        self._done.listen(lambda: call_later(function, self))

    def _watch(self) -> None:
        """Have the poller ask the driver, now that somebody listens."""
        if not self._watched and not self.poll() and self._ends_with_placement():
            self._watched = True
            self.placed.listen(lambda: None if self._done.is_set else poll(_Listened(self)))

    def __await__(self) -> Generator[Any, None, Any]:
        self.check_use()
        self.refuse_waiting_for_oneself()
        self._watch()
        yield from await_latch(self._done)
        self.raise_outcome()

    def __reduce__(self) -> NoReturn:
        raise UsageError(f"{type(self).__name__} cannot be pickled; wait for it here and send what came of it")

    @property
    def is_done(self) -> bool:
        """Whether it is over, well or badly. Does not block."""
        self.check_use()
        return self.poll()

    @property
    def status(self) -> EventStatus:
        """The state now. Does not block."""
        if not self.poll():
            return self._unfinished_status
        return EventStatus.SUCCESS if self.error is None else EventStatus.FAILED

    @property
    def _unfinished_status(self) -> EventStatus:
        return EventStatus.SCHEDULED

    @property
    def error_message(self) -> str:
        """The text of the failure, ``"No error"`` without one."""
        return "No error" if self.error is None else str(self.error)


@final
class _Listened:
    """What the poller asks: where the driver cannot tell, nobody is there to raise it to, and listeners hear of it."""

    __slots__ = ("_what",)

    def __init__(self, what: Waitable) -> None:
        self._what = what

    def poll(self) -> bool:
        try:
            return self._what.poll()
        except BackendError as error:
            self._what.finish(error)
            return True


@final
class Event(Waitable):
    """A point in a stream, made by `Stream.record`; an unrecorded event cannot exist.

    Asynchronous to the host: it is over when everything queued on the stream before it is.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     event = ctx.stream.record()
    ...     event.synchronize(timeout=1)
    ...     event.status.name
    'SUCCESS'
    """

    __slots__ = ()

    def _ends_with_placement(self) -> bool:
        return True

    def finish(self, error: BaseException | None = None) -> bool:
        """End it and note the host's time."""
        self._time_ns = self._time_ns or now_ns()
        return super().finish(error)

    def seconds_since(self, earlier: Event) -> float:
        """Seconds between two events of one device that were recorded with ``timing=True`` and are over.

        Raises:
            UsageError: one of them is not over, or was recorded without timing.
            UnsupportedError: the events are of different devices, whose clocks are not comparable.
        """
        for event in (earlier, self):
            if not event.timed:
                raise UsageError(f"{event!r} has no time; record it with stream.record(timing=True)")
            if not event.is_done:
                raise UsageError(f"{event!r} is not over; call synchronize() first")
            event.raise_outcome()
        ends = self.placement, earlier.placement
        if ends[0] is not None and ends[1] is not None and ends[0].device == ends[1].device:
            return ends[0].driver.event_elapsed_ns(ends[0].device, ends[1].handle, ends[0].handle) * 1e-9
        if ends == (None, None):
            return (self._time_ns - earlier._time_ns) * 1e-9
        raise UnsupportedError("events of different devices have no common clock; time each device by itself")

    def __repr__(self) -> str:
        word = "captured" if self.captured is not None else self.status.name.lower()
        return f"<Event {self.number} of {self.stream!r}, {word}>"


@final
class HostEvent(Waitable):
    """An event that user code completes or fails; streams and tasks can wait for it.

    The first outcome wins; every later one is ignored and returns False.

    >>> import tazza as tz
    >>> ready = tz.HostEvent()
    >>> ready.status.name, ready.succeed(), ready.fail(ValueError("late")), ready.status.name
    ('INITIALIZED', True, False, 'SUCCESS')
    """

    __slots__ = ("label",)

    def __init__(self, label: str = "") -> None:
        super().__init__(None, 0, False)
        self.label = label

    def _ends_with_placement(self) -> bool:
        return False

    def succeed(self) -> bool:
        """End it well; wakes every waiter. Returns whether this was the first outcome."""
        self.check_use()
        return self.finish()

    def fail(self, error: BaseException) -> bool:
        """End it badly; waiters get a copy of `error`. Returns whether this was the first outcome."""
        self.check_use()
        if not isinstance(error, BaseException):
            raise UsageError(f"HostEvent.fail takes an exception, got {error!r}")
        return self.finish(frameless(error))

    @property
    def _unfinished_status(self) -> EventStatus:
        return EventStatus.INITIALIZED

    def __repr__(self) -> str:
        return f"<HostEvent {self.label!r}, {self.status.name.lower()}>"


def several(what: Waitable | Iterable[Waitable], argument: str) -> list[Waitable]:
    """One event or task, or any number of them, as a list. Internal.

    Raises:
        ArgumentError: something else, named as `argument`.
    """
    if isinstance(what, Waitable):
        return [what]
    found = list(what) if isinstance(what, Iterable) else [what]
    for one in found:
        if not isinstance(one, Waitable):
            raise ArgumentError.of(argument, one, "an event, a task, or any number of them")
    return found
