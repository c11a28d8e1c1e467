# cython: language_level=3, annotation_typing=False
"""What lies under every event and task: its end, and the native event that queues can wait for.

A program that orders its streams makes one of each for every step, and drops it soon.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from tazza.errors import ForkedError
from tazza.hot.process import process
from tazza.spi import DeviceInfo, Driver, Handle

__all__ = ["EventCore", "Latch", "Placement"]


class Latch:
    """Set once, with an outcome; wakes whoever waits or listens.

    >>> latch = Latch()
    >>> latch.set(), latch.set(ValueError("late")), latch.outcome is None
    (True, False, True)
    """

    __slots__ = ("_listeners", "is_set", "lock", "outcome")

    def __init__(self) -> None:
        self.is_set = False
        self.outcome: BaseException | None = None
        self.lock = threading.Lock()
        self._listeners: tuple[Callable[[], object], ...] = ()  # most have none, and a list takes longer to make

    def set(self, outcome: BaseException | None = None) -> bool:
        """Set it and call the listeners; False, and without effect, where it was set before."""
        with self.lock:
            if self.is_set:
                return False
            self.outcome = outcome
            self.is_set = True
            listeners, self._listeners = self._listeners, ()
        for listener in listeners:
            listener()
        return True

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` once when set, at once if it is; it must be short and must not raise."""
        with self.lock:
            if not self.is_set:
                self._listeners = (*self._listeners, listener)
                return
        listener()

    def ignore(self, listener: Callable[[], object]) -> None:
        """Forget a listener that was not called yet."""
        with self.lock:
            self._listeners = tuple([one for one in self._listeners if one != listener])

    def wait(self, timeout: float) -> bool:
        """Block for at most `timeout` seconds; tell whether it is set."""
        if self.is_set or timeout <= 0:
            return self.is_set
        gate = threading.Lock()
        gate.acquire()
        self.listen(gate.release)
        if not gate.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            self.ignore(gate.release)
        return self.is_set


class Placement:
    """Where a native event lies, so that queues of the same driver can wait for it without the host.

    Attributes:
        driver, device, handle: whose it is, and what the driver calls it.
        capture: the capture in which it was recorded, outside of which it is of no use, or None.
    """

    __slots__ = ("__weakref__", "_generation", "capture", "device", "driver", "handle")

    def __init__(self, driver: Driver, device: DeviceInfo, handle: Handle, capture: Any = None) -> None:
        self.driver = driver
        self.device = device
        self.handle = handle
        self.capture = capture
        self._generation = process.generation

    def __del__(self) -> None:
        if self._generation == process.generation:
            self.driver.event_destroy(self.device, self.handle)


class EventCore:
    """Compiled base of events and tasks, which implement `poll`.

    Attributes:
        stream: the stream it lies in (or its runner), or None.
        number: its place there.
        timed: whether its native event carries a time.
        placement: the native event, once there is one.

    >>> EventCore(None, 0, False).ended
    False
    """

    __slots__ = (
        "__weakref__",
        "_done",
        "_generation",
        "_placed",
        "_time_ns",
        "_watched",
        "number",
        "placement",
        "stream",
        "timed",
    )

    def __init__(self, stream: Any, number: int, timed: bool) -> None:
        self._done = Latch()
        self._placed: Latch | None = None  # see `placed`
        self._generation = process.generation
        self._watched = False
        self.placement: Placement | None = None
        self.stream = stream
        self.number = number
        self.timed = timed
        self._time_ns = 0  # the host's, of its end

    @property
    def ended(self) -> bool:
        """Whether it is known to be over; asks nobody."""
        return self._done.is_set

    @property
    def error(self) -> BaseException | None:
        """The failure, or None."""
        return self._done.outcome

    @property
    def captured(self) -> Any:
        """The capture that it is part of and that alone can wait for it, or None."""
        placement = self.placement
        return None if placement is None or self._done.is_set else placement.capture

    @property
    def placed(self) -> Latch:
        """Set when the native event exists or everything is over.

        Made for the first who asks: most events are placed before anybody does. Who places it looks for a latch after
        that, and who makes a latch looks for a placement after that, so that one of the two sees the other.
        """
        latch = self._placed
        if latch is None:
            with self._done.lock:
                latch = self._placed
                if latch is None:
                    latch = self._placed = Latch()
        if self.placement is not None or self._done.is_set:
            latch.set()
        return latch

    def place(self, placement: Placement) -> None:
        """Attach the native event that ends with this."""
        self.placement = placement
        if self._placed is not None:
            self._placed.set()

    def poll(self) -> bool:
        """Ask whoever knows whether it is over."""
        raise NotImplementedError(f"{type(self).__name__} must implement poll()")

    def check_use(self) -> None:
        """Raise in a process that was forked after it was made."""
        if self._generation != process.generation:
            raise ForkedError(f"{type(self).__name__} was made before this process was forked; make a new context here")
