"""Device memory for other libraries: what they are shown, and how their queues and ours come after each other.

| by | the consumer | comes after us | gives back |
|---|---|---|---|
| DLPack | names its stream | that stream waits for ours | after what is on its stream when it lets go |
| ``__cuda_array_interface__`` | is told one of our streams | it waits for that | says nothing: `Buffer.used_on` does |

Both are asked of a Buffer, in the caller's thread. What a finaliser leaves is one append to ``DeviceRuntime.loans``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, final

import numpy as np

from tazza.core import dlpack
from tazza.core.completion import timeout_or_default
from tazza.core.event import Event
from tazza.core.failures import Failures
from tazza.core.native import NativeRunner
from tazza.core.stream import make_runner
from tazza.core.submission import Record, Wait
from tazza.core.transfer import is_contiguous
from tazza.errors import BackendError, CleanupWarning, ExportError, WaitTimeoutError
from tazza.hot import Buffer, array_of, generation, top
from tazza.util.hostmemory import HostMemory
from tazza.util.report import report

__all__ = ["Exports"]

_BYTE = np.dtype(np.uint8)
_DLPACK_TYPES = {"cuda": 2}
_LEGACY, _UNORDERED = 1, -1  # of DLPack's and the array interface's streams
_MANY = 1 << 20  # submissions of a foreign queue: it is never full, as we put only markers there


@final
class Exports:
    """What one device shows of its memory, and the queues of other libraries that it has heard of."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._failures = Failures()
        self._runners: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def number(self) -> tuple[int, int]:
        """Type and number of the device in DLPack."""
        return _DLPACK_TYPES[self._runtime.capabilities.exports], self._runtime.info.ordinal

    def runner_of(self, handle: int) -> Any:
        """The runner over a queue of another library, which that keeps alive.

        Raises:
            BackendError, ArgumentError: the driver knows no such queue on this device.
        """
        with self._lock:
            runner = self._runners.get(handle)
            if runner is None:
                runtime = self._runtime
                lane = runtime.shared_lane(next(iter(runtime.pools)))
                label = f"{runtime.name} foreign stream {handle:#x}"
                runner = make_runner(
                    runtime,
                    lane,
                    self._failures,
                    label=label,
                    priority=0,
                    max_queued=_MANY,
                    worker=False,
                    native=handle,
                )
                self._runners[handle] = runner
            return runner

    def knows(self, runner: Any) -> bool:
        """Whether a runner is one of `runner_of`."""
        return any(runner is known for known in list(self._runners.values()))

    def point(self, runner: Any) -> Event:
        """An event after all that is on a foreign queue now; what its owner puts there does not pass through us."""
        event = Event(runner, 0, False)
        runner.submit(Record(runner, event), bounded=False)
        return event

    def lend(self, buffer: Buffer, handle: int) -> Callable[[], None]:
        """Hand memory to a queue of another library, which from now on comes after everything that uses it.

        Returns:
            What gives it back after all that is on that queue by then: one append, so that a finaliser may call it.
        """
        self._runtime.check()
        runner = self.queue_of(handle)
        self._order_behind(buffer, runner)
        return partial(self._runtime.loans.append, _Return(buffer, runner))

    def hand_over(self, buffer: Buffer, handle: int) -> None:
        """Give memory that was allocated just now to a queue of another library.

        Nothing has used it but what the pool knows (`Block.made`). Taking it back is the caller's, after a `point`.
        """
        made = buffer.block.made
        self._have_wait(buffer, self.queue_of(handle), [] if made is None else [made])

    def queue_of(self, handle: int) -> Any:
        """The runner over a queue by its handle in CUDA's numbers, of which 0 is the legacy default stream."""
        return self.runner_of(handle or _LEGACY)

    @property
    def captures_here(self) -> bool:
        """Whether the calling thread captures its current stream."""
        return self._capturing() is not None

    # Array interface -----------------------------------------------------------------------------------------------

    def interface(self, buffer: Buffer) -> dict[str, Any]:
        """The CUDA array interface, version 3: https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html.

        Its stream is one of ours, behind everything that is known to use the memory; None where nothing does.
        """
        self._runtime.check()
        dtype = _BYTE if buffer.dtype is None else buffer.dtype
        return {
            "version": 3,
            "shape": buffer.shape,
            "typestr": dtype.str,
            "data": (buffer.address, buffer.readonly),
            "strides": None if is_contiguous(buffer) else buffer.strides,
            "stream": self._one_stream(buffer),
        }

    def _capturing(self) -> Any:
        """The runner of the current stream, where the calling thread captures that; else None."""
        frame = top()
        stream: Any = None if frame is None else frame.stream
        if stream is None or stream.runtime is not self._runtime:
            return None
        runner = stream.runner
        return runner if runner.capture is not None and runner.capture.is_here else None

    def _captured(self, buffer: Buffer, runner: Any) -> int:
        """Have the graph of a capture hold the memory; returns the queue, for a consumer that captures too."""
        runner.submit(Wait(runner, "export", needs=runner.capture.uses(buffer, runner)))
        return self._number_of(runner)

    def _number_of(self, runner: Any) -> int:
        return int(self._runtime.driver.queue_native(self._runtime.info, runner.handle))

    def _one_stream(self, buffer: Buffer) -> int | None:
        capturing = self._capturing()
        if capturing is not None:
            return self._captured(buffer, capturing)
        users = [one for one in buffer._streams() if not one.reached(one.submitted)]
        made: Event | None = buffer.block.made
        if not users and (made is None or made.poll()):
            return None
        seconds = timeout_or_default(None)
        chosen = next((one for one in buffer._streams() if self._is_ours(one)), None)
        if chosen is None:
            for one in users:
                one.settle(seconds)
            return None
        for one in users:
            if one is not chosen:
                chosen.follow(one.mark())
        if made is not None:
            chosen.follow(made)
        if not chosen.undefer(seconds):
            raise WaitTimeoutError(f"{buffer!r} is used behind something that only the host can resolve")
        return self._number_of(chosen) or _LEGACY

    def _is_ours(self, runner: Any) -> bool:
        return isinstance(runner, NativeRunner) and not runner.closed and runner.runtime is self._runtime

    # DLPack --------------------------------------------------------------------------------------------------------

    def capsule(self, buffer: Buffer, stream: Any, max_version: Any, dl_device: Any, copy: Any) -> object:
        """A capsule for the consumer's stream, which from now on comes after everything that uses the memory.

        Raises:
            ExportError: the stream is none, or another device or a copy is asked for.
        """
        self._runtime.check()
        if dl_device is not None and tuple(dl_device) != self.number:
            raise ExportError(f"dl_device: got {dl_device!r}, expected {self.number}: copy it there with ctx.asarray")
        if copy:
            raise ExportError(
                "copy: got True, expected False or None: make the copy with ctx.asarray(buffer, copy=True)"
            )
        handle = _handle_of(stream)
        capturing = self._capturing()
        if capturing is not None and handle == self._number_of(capturing):
            handle = _UNORDERED  # it is in the capture's order, and the graph keeps the memory
            self._captured(buffer, capturing)
        runner = None if handle == _UNORDERED else self.runner_of(handle)
        if runner is not None:
            self._order_behind(buffer, runner)
        lent = _Lent(_Return(buffer, runner), self._runtime.loans)
        dtype = _BYTE if buffer.dtype is None else buffer.dtype
        memory = HostMemory(buffer.address, dtype, buffer.shape, buffer.strides, readonly=buffer.readonly, owner=lent)
        try:
            # NumPy makes the capsule and its deleter, without a look at the memory; then it is told whose that is.
            made = array_of(memory).__dlpack__(max_version=max_version)
        except (BufferError, TypeError, ValueError) as error:
            raise ExportError(f"{buffer!r} cannot be told in DLPack: {error}") from error
        dlpack.redirect(made, self.number)
        return made

    def _order_behind(self, buffer: Buffer, runner: Any) -> None:
        events = [one.mark() for one in buffer._streams() if not one.reached(one.submitted)]
        if buffer.block.made is not None:
            events.append(buffer.block.made)
        self._have_wait(buffer, runner, events)

    def _have_wait(self, buffer: Buffer, runner: Any, events: list[Event]) -> None:
        """Have a foreign queue wait, now and natively: what its owner puts there next does not pass through us."""
        seconds = timeout_or_default(None)
        driver, info = self._runtime.driver, self._runtime.info
        for event in events:
            event.refuse_waiting_for_oneself()
            if not event.placed.wait(seconds):
                raise WaitTimeoutError(f"{buffer!r} is used behind something that only the host can resolve")
            placement = event.placement
            if placement is not None and not event.poll():
                driver.queue_wait(info, runner.handle, placement.handle)


@final
class _Lent:
    """What the consumer's capsule keeps. Its end is one append."""

    __slots__ = ("_loans", "_state")

    def __init__(self, state: _Return, loans: list[Any]) -> None:
        self._state, self._loans = state, loans

    def __del__(self) -> None:
        self._loans.append(self._state)


@final
class _Return:
    """Keeps the memory until what the consumer's stream has when it lets go is over; one of ``DeviceRuntime.loans``."""

    def __init__(self, buffer: Buffer, runner: Any) -> None:
        self._buffer: Buffer | None = buffer
        self._runner = runner
        self._event: Event | None = None
        self._generation = generation()

    @property
    def pending(self) -> list[Event]:
        """What the memory is kept for."""
        return [] if self._event is None else [self._event]

    def end(self) -> bool:
        """Tell whether the memory was let go; never waits."""
        if self._generation != generation():
            return True
        if self._runner is not None and self._runner.runtime.lost() is None:
            if self._event is None:
                try:
                    self._event = self._runner.runtime.exports.point(self._runner)
                except BackendError as error:
                    return self._keep(error)
            if not self._event.poll():
                return False
        self._buffer = None
        return True

    def _keep(self, error: BackendError) -> bool:
        """Nobody can tell when memory is unused whose stream is gone: it is never given out again."""
        _kept.append(self._buffer)
        text = f"{self._buffer!r} stays allocated: the stream that used it was destroyed before the memory was let go"
        report(text, CleanupWarning, error=error)
        return True


_kept: list[object] = []


def _handle_of(stream: Any) -> int:
    """The consumer's stream in DLPack's numbers for CUDA; None is the legacy default stream, -1 asks for no order."""
    if stream is None:
        return _LEGACY
    if isinstance(stream, bool) or not isinstance(stream, int) or stream == 0 or stream < _UNORDERED:
        raise ExportError(
            f"stream: got {stream!r}, expected the handle of a stream, 1 for the legacy default stream, 2 for the "
            "thread's own, or -1 for no order"
        )
    return int(stream)
