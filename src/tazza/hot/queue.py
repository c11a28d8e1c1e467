# cython: language_level=3, annotation_typing=False
"""A device's queue, as far as recording an event and waiting for one go: what a program does between any two steps."""

from __future__ import annotations

import threading

from tazza.errors import BackendError
from tazza.hot.event import EventCore, Placement
from tazza.hot.hooks import point
from tazza.spi import DeviceInfo, Driver, Handle

__all__ = ["QueueCore"]


class QueueCore:
    """Compiled base of the runner of a device's queue.

    `record_now` and `wait_now` do what a submission would, where that is no more than a call of the driver: nothing is
    deferred or being prepared, there is room, and nobody listens. Subclasses implement `_keep`.

    Args:
        driver, device: whose the queue is.
        handle: what the driver calls it.
        limit: submissions that it holds before it is full.

    Attributes:
        submitted: number of the last submission that entered.
        closed: nothing enters any more.

    >>> class Driver:
    ...     def event_record(self, device, queue, timed):
    ...         return "an event"
    ...     def event_destroy(self, device, event):
    ...         pass
    >>> queue, event = QueueCore(Driver(), "a device", "a queue", 64), EventCore(None, 0, False)
    >>> queue.record_now(event), event.number, event.placement.handle
    (True, 1, 'an event')
    """

    __slots__ = (
        "_deferred",
        "_limit",
        "_lock",
        "_preparing",
        "_reached",
        "_stride",
        "closed",
        "device",
        "driver",
        "handle",
        "submitted",
    )

    def __init__(self, driver: Driver, device: DeviceInfo, handle: Handle, limit: int) -> None:
        self.driver = driver
        self.device = device
        self.handle = handle
        self.submitted = 0
        self.closed = False
        self._limit = limit
        self._stride = max(1, limit // 8)
        # Reentrant: a finaliser of what a marker held may submit.
        self._lock = threading.RLock()
        self._deferred = 0
        self._reached = 0
        # Threads that prepare a submission, with its number where it has one: what they submit is part of it and must
        # neither wait for room that it occupies nor queue up behind it.
        self._preparing: dict[int, int | None] = {}

    def record_now(self, event: EventCore) -> bool:
        """Record an event of the stream; False, and without effect, where that takes more than a call."""
        with self._lock:
            if not self._is_open_road():
                return False
            number = self.submitted + 1
            self.submitted = number
            event.number = number
            end = Placement(self.driver, self.device, self.driver.event_record(self.device, self.handle, event.timed))
            event.place(end)
            if number % self._stride == 0:
                self._keep(number, end, ())
        return True

    def wait_now(self, need: EventCore) -> bool:
        """Have what comes later wait for an event of this device that has not failed; False where it takes more."""
        with self._lock:
            end = need.placement
            if end is None or not self._is_own(end) or need.error is not None or not self._is_open_road():
                return False
            number = self.submitted + 1
            self.submitted = number
            if self._must_wait(need, end):
                self.driver.queue_wait(self.device, self.handle, end.handle)
            if number % self._stride == 0:
                self._keep(number, None, ())
        return True

    def _is_open_road(self) -> bool:
        return (
            point.listeners is None
            and not self._deferred
            and not self._preparing
            and not self.closed
            and self.submitted - self._reached < self._limit
        )

    def _is_own(self, end: Placement) -> bool:
        return end.device is self.device and end.driver is self.driver and end.capture is None

    def _must_wait(self, need: EventCore, end: Placement) -> bool:
        """Whether the queue has to wait; asks the driver only where the answer is likely to spare that for good.

        Asking costs what the queue's wait costs. Another device may be lost, which its event must not tell this one.
        """
        if need._done.is_set:
            return False
        if end.device is self.device and not self._has_passed(need):
            return True
        try:
            return not need.poll()
        except BackendError:  # the driver cannot tell: the queue then waits, and goes on at once if it is over
            return True

    def _has_passed(self, need: EventCore) -> bool:
        """Whether the event's stream is known to be further than it."""
        home = getattr(need.stream, "runner", None)
        if not isinstance(home, QueueCore):
            return False
        queue = home
        return 0 < need.number <= queue._reached

    def _keep(self, number: int, end: Placement | None, holds: tuple[object, ...]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must implement _keep(number, end, holds)")
