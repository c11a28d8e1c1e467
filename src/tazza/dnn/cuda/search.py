"""Timing algorithms of cuDNN on a device, for ``algorithm="measure"``: `docs/design/0026-measure-on-cuda.md`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, final

import numpy as np

from tazza.contexts.cuda_handles import call_library, handles_of
from tazza.core.event import Event
from tazza.core.failures import Failures
from tazza.core.pool import pool_of
from tazza.core.runtime import DeviceRuntime
from tazza.core.stream import make_runner
from tazza.core.submission import Record
from tazza.dnn.cuda.calls import Algorithm, pointer
from tazza.dnn.library import Layout
from tazza.dnn.measuring import fastest, span
from tazza.dnn.workspace import DnnWorkspace, Lease
from tazza.drivers.cuda.libraries import NativeLibrary
from tazza.errors import BackendError, OutOfMemoryError, UnsupportedError, UsageError, WaitTimeoutError
from tazza.hot import top

__all__ = ["Run", "Search", "refuse_in_capture"]

Run = Callable[[Any, Algorithm, int], None]
"""Queues one execution: given the handle, the algorithm, and the address of its scratch memory."""

_TOGETHER: Final = 3  # executions between two events, so that what an event costs is a small part
_MOST_QUEUED: Final = 1024
_NOT_SUPPORTED: Final = range(3000, 4000)  # https://docs.nvidia.com/deeplearning/cudnn/ (cudnnStatus_t)
_NO_MEMORY: Final = (4003, 4004)  # of the host, of the device


def refuse_in_capture() -> None:
    """Raise where the calling thread is in the scope of a capture: what is timed has to run.

    Raises:
        UsageError: it is.
    """
    frame = top()
    while frame is not None:
        capture = None if frame.stream is None else frame.stream.runner.capture
        if capture is not None and capture.is_here:
            raise UsageError(
                f"{frame.stream!r} is being captured, and algorithms are timed by running them: call the operation "
                "once before the capture, or use algorithm='heuristic'"
            )
        frame = frame.parent


@final
class Search:
    """Where algorithms are timed: a queue, a handle and memory that nobody else has, for the time of a ``with``.

    No library state is held, so nobody waits for a search but who wants the same plan. Memory is the device's, counted
    as workspaces are. Every wait ends after ``TAZZA_WAIT_TIMEOUT``.

    Args:
        runtime: the device's.
        library: cuDNN.
    """

    def __init__(self, runtime: DeviceRuntime, library: NativeLibrary) -> None:
        self._runtime, self._library = runtime, library
        self._held: Any = handles_of(runtime).spare_cudnn()
        self._handle = pointer(self._held.handle)
        self._failures: Failures | None = Failures()  # the runner's reference is weak
        pool = pool_of(runtime, "caching").pool
        lane, label = pool.new_lane(), f"{runtime.name} search of {library.name}"
        try:
            self._runner = make_runner(
                runtime, lane, self._failures, label=label, priority=0, max_queued=_MOST_QUEUED, worker=True
            )
        except BaseException:
            pool.close_lane(lane)
            raise
        self._workspace = DnnWorkspace(runtime, lane, f"workspace of a search of {library.name}")
        self._arrays: list[Lease] = []
        self._scratch: Lease | None = None
        self._warm: set[Algorithm] = set()
        self._refused: BackendError | None = None

    def __enter__(self) -> Self:
        try:
            self._bind(self._runtime.driver.queue_native(self._runtime.info, self._queue))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        first = exc
        # The queue goes, and the handle is somebody else's next.
        ends = ("unbinding the handle", partial(self._bind, None)), ("giving back its memory", self._close)
        for what, end in ends:
            try:
                end()
            except BackendError as second:
                if first is None:
                    first = second
                else:
                    first.add_note(f"{what} also failed: {second}")
        if exc is None and first is not None:
            raise first

    @property
    def _queue(self) -> Any:
        runner: Any = self._runner  # a NativeRunner, as of all devices with queues
        return runner.handle

    def _bind(self, native: Any) -> None:
        call_library(self._runtime, self._library, "cudnnSetStream", self._handle, pointer(native))

    def _close(self) -> None:
        """Give everything back, in the order of the queue; never waits for it."""
        try:
            self._runner.close()  # records first, so that whoever gets the memory comes after what may still run
        finally:
            for lease in (*self._arrays, self._scratch):
                if lease is not None:
                    lease.release()
            self._failures = None  # nobody asks for them: they are reported now
            self._held = None  # the next search, or the next thread, takes the handle
            self._workspace.reset()

    def array(self, layout: Layout) -> Any:
        """The address of made-up data of a layout."""
        dtype, (count, first) = np.dtype(layout.dtype), span(layout)
        lease = self._workspace.get(count * dtype.itemsize)
        self._arrays.append(lease)
        driver, info = self._runtime.driver, self._runtime.info
        driver.fill(info, self._queue, lease.address, np.ones(1, dtype).tobytes(), lease.nbytes)
        return pointer(lease.address + first * dtype.itemsize)

    def fastest(self, found: Sequence[Algorithm], seconds: float, run: Run) -> Algorithm:
        """Time algorithms; the median of each counts. One that the library or the memory refuses is passed over.

        Args:
            found: two or more.
            seconds: after which nothing is timed any more, except what was not timed twice.
            run: only queues, on the handle's stream.

        Raises:
            UnsupportedError: all were refused; says what the last one said.
            OutOfMemoryError: the same, for want of memory.
            WaitTimeoutError: one did not end.
            BackendError: the library failed in another way.
        """
        candidates = [partial(self._seconds, one, run) for one in found]
        number = fastest(candidates, seconds, statistics.median)
        if number is None:
            assert self._refused is not None, "nothing else leaves none"
            if isinstance(self._refused, OutOfMemoryError):
                raise self._refused
            raise UnsupportedError(
                f"cudnn: none of {len(found)} algorithms could be run: {self._refused}"
            ) from self._refused
        return found[number]

    def _seconds(self, algorithm: Algorithm, run: Run) -> float | None:
        """Of one execution, by the device's clock; None where it was refused."""
        try:
            return self._timed(algorithm, run)
        except BackendError as error:
            if not (isinstance(error, OutOfMemoryError) or error.code in _NOT_SUPPORTED or error.code in _NO_MEMORY):
                raise
            self._refused = error.with_traceback(None)  # which would keep this search alive
        self._over(self._record(), algorithm)  # some of it may have been queued
        return None

    def _timed(self, algorithm: Algorithm, run: Run) -> float:
        scratch = self._room(algorithm.nbytes)
        if algorithm not in self._warm:
            run(self._handle, algorithm, scratch)  # the first one loads what it needs
            self._warm.add(algorithm)
        begin = self._record()
        for _ in range(_TOGETHER):
            run(self._handle, algorithm, scratch)
        end = self._over(self._record(), algorithm)
        return end.seconds_since(begin) / _TOGETHER

    def _room(self, nbytes: int) -> int:
        """Scratch memory; nothing of what ran in it before is under way."""
        if not nbytes:
            return 0
        if self._scratch is None or self._scratch.nbytes < nbytes:
            if self._scratch is not None:
                self._scratch.release()
                self._scratch = None
            self._scratch = self._workspace.get(nbytes)
        return self._scratch.address

    def _record(self) -> Event:
        event = Event(self._runner, 0, True)
        self._runner.submit(Record(self._runner, event))
        return event

    def _over(self, event: Event, algorithm: Algorithm) -> Event:
        try:
            event.synchronize()
        except WaitTimeoutError as error:
            error.add_note(f"algorithm {algorithm.number} of {self._library.name} was being timed")
            raise
        return event
