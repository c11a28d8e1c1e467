"""The unit of a stream: what it needs, what it does, and what becomes of its failure."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, final

from tazza.core.event import Event, Placement, Waitable
from tazza.errors import CancelledTaskError
from tazza.hot import Operation, emit, point
from tazza.spi import Handle

__all__ = ["Call", "Record", "Submission", "Wait"]


class Submission(abc.ABC):
    """One entry of a stream's FIFO.

    Attributes:
        needs: must be over before it runs; a queue may wait for them by itself.
        host_needs: must be over before it can even be handed to a queue.
        holds: objects that must live until it is over, where a device queue cannot hold them itself.
        number: its place in the stream, given when it enters.
        nbytes: bytes that it moves or fills, for listeners.
        runs_at_submission: `hand_over` calls a function of the user's, which may itself submit to this stream, on a
            device whose queue cannot call it.
        is_host_function: a device's queue calls `perform` when its turn comes; the others are the device's own work.
        is_silent: listeners are not told when it runs, as it does nothing that takes time.
    """

    can_be_abandoned = True
    is_host_function = is_silent = runs_at_submission = False
    nbytes = 0

    __slots__ = ("holds", "host_needs", "label", "needs", "number", "stream")

    def __init__(
        self, stream: Any, label: str, *, needs: tuple[Waitable, ...] = (), host_needs: tuple[Waitable, ...] = ()
    ) -> None:
        self.stream, self.label = stream, label
        self.needs, self.host_needs = needs, host_needs
        self.holds: tuple[object, ...] = ()
        self.number = 0

    @property
    def kept(self) -> tuple[object, ...]:
        """Objects that must live as long as it may be repeated, where it was captured."""
        return self.holds

    @property
    def end(self) -> Placement | None:
        """The event at its end, where `hand_over` has recorded one itself."""
        return None

    def enter(self, number: int) -> None:
        """Take the place in the stream; called under the stream's lock."""
        self.number = number

    @abc.abstractmethod
    def run(self) -> None:
        """Do it in the calling host thread; everything needed is over."""

    def perform(self) -> None:
        """Call `run` and say to whoever listens when it begins and ends."""
        if point.listeners is None or self.is_silent:
            self.run()
            return
        self.tell("begin")
        try:
            self.run()
        finally:
            self.tell("end")

    def tell(self, kind: str) -> None:
        """Say that it begins or ends now."""
        emit(Operation(kind, self.stream, self.label, self.nbytes, subject=self))

    def prepare(self) -> None:  # noqa: B027  most have nothing to prepare
        """Submit what must come before it, once `host_needs` are over; may be called twice, never under a lock."""

    @abc.abstractmethod
    def hand_over(self, queue: Handle) -> None:
        """Put it into the device's queue; what is needed is over or waited for by the queue."""

    def fail(self, error: BaseException) -> None:
        """It can not run. Raising makes it the stream's failure, or the caller's on an inline stream."""
        raise error

    def abandon(self, error: CancelledTaskError) -> None:  # noqa: B027  most have nobody waiting for them
        """It will not run, because somebody closed without waiting for it, who need not be told."""


@final
class Wait(Submission):
    """Nothing but needs: orders what comes later on the stream after them."""

    is_silent = True

    __slots__ = ()

    def run(self) -> None:
        for need in self.needs:
            need.raise_outcome()

    def hand_over(self, queue: Handle) -> None:
        # The runner has told the queue to wait; a need that failed by now has no caller to raise it to.
        for need in self.needs:
            try:
                need.raise_outcome()
            except Exception as error:
                self.stream.runner.remember(self.label, error)


@final
class Record(Submission):
    """Ends an event when the stream reaches it, also on an abandoned one: others rely on what it says."""

    can_be_abandoned = False

    __slots__ = ("event",)

    def __init__(self, stream: Any, event: Event) -> None:
        super().__init__(stream, "record")
        self.event = event

    @property
    def end(self) -> Placement | None:
        return self.event.placement

    def enter(self, number: int) -> None:
        self.number = self.event.number = number

    def run(self) -> None:
        self.event.finish()

    def hand_over(self, queue: Handle) -> None:
        runtime = self.stream.runtime
        handle = runtime.driver.event_record(runtime.info, queue, self.event.timed)
        self.event.place(Placement(runtime.driver, runtime.info, handle))

    def fail(self, error: BaseException) -> None:
        self.event.finish(error)

    def abandon(self, error: CancelledTaskError) -> None:
        self.event.finish(error)


@final
class Call(Submission):
    """A host function of tazza's own at its turn in the stream; what it raises is the stream's failure."""

    is_host_function = True

    __slots__ = ("_function",)

    def __init__(
        self, stream: Any, label: str, function: Callable[[], object], *, needs: tuple[Waitable, ...] = ()
    ) -> None:
        super().__init__(stream, label, needs=needs)
        self._function = function

    def run(self) -> None:
        self._function()

    def hand_over(self, queue: Handle) -> None:
        runtime = self.stream.runtime
        runtime.driver.enqueue(runtime.info, queue, self._run_in_queue)

    def _run_in_queue(self) -> None:
        try:
            self.perform()
        except Exception as error:
            self.stream.runner.remember(self.label, error)
