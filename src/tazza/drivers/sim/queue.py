"""A queue of a simulated device: a thread that runs late on purpose."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable

from tazza.errors import BackendError

__all__ = ["SimEvent", "SimQueue"]

_PATIENCE = 0.5  # seconds


class SimEvent:
    """Done when the queue has reached it."""

    __slots__ = ("done", "time_ns")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.time_ns = 0

    def reach(self) -> None:
        """Mark it done now."""
        self.time_ns = time.perf_counter_ns()
        self.done.set()


class SimQueue:
    """Runs functions in order, each after a delay drawn from the seed.

    A program that forgot to wait sees old data with high probability, under some seeds always.
    """

    def __init__(self, name: str, seed: str, lateness: float) -> None:
        # SimpleQueue and not Condition: `put` may be called by a finaliser that interrupts another `put`.
        self._items: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._random = random.Random(seed)
        self._lateness = lateness
        self._pause = threading.Event()
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def put(self, operation: Callable[[], None]) -> None:
        """Append an operation; it must not raise.

        Raises:
            BackendError: the queue was destroyed, by whoever lent it: the operation would never run.
        """
        if self._closed:
            raise BackendError("the queue was destroyed", backend="sim", call="put", symbol="SIM_DESTROYED_QUEUE")
        self._items.put(operation)

    def close(self) -> None:
        """End the thread after what is queued now; does not wait."""
        self._closed = True
        self._items.put(None)

    def wait(self, event: SimEvent) -> None:
        """Make later operations wait for an event of any queue."""
        self.put(lambda: self._await(event))

    def _await(self, event: SimEvent) -> None:
        # Ends: an event belongs to a queue that was there before this wait was queued, so waits cannot form a cycle.
        # In slices, because a daemon thread in an endless wait cannot be ended by an interpreter that shuts down.
        while not event.done.wait(_PATIENCE):
            pass

    def _run(self) -> None:
        while (operation := self._items.get()) is not None:
            if self._lateness and self._random.random() < 0.5:
                self._pause.wait(self._lateness * self._random.random())
            operation()
            del operation  # what it refers to must die now, not when the next one comes
