"""One device of the driver: its primary context, and whether it is lost."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, final

from tazza.drivers.cuda._calls import Statuses, StreamCalls, stream_calls
from tazza.drivers.cuda.queues import NativeEvent
from tazza.drivers.cuda.status import NOT_READY, STICKY, failure, invoke
from tazza.errors import BackendError, DeviceLostError
from tazza.spi import DeviceInfo

__all__ = ["Primary"]

_NO_TIMING = 0x2  # CU_EVENT_DISABLE_TIMING


@final
class Primary:
    """A device's primary context, retained by the first ``with`` and never released: other libraries share it.

    ``with primary:`` makes it current in the calling thread and puts the caller's back; any thread may, and may again.

    Attributes:
        info: the device as tazza describes it.
        lost: the first cause that ended it, or None.
        events: kept for the next record, by whether they carry times; see `give_event`.
    """

    def __init__(self, api: Any, native: Any, info: DeviceInfo) -> None:
        self.api, self.native, self.info = api, native, info
        self.lost: str | None = None
        self._context: Any = None
        self._calls: StreamCalls | None = None
        self._lock = threading.Lock()
        # By whether they carry times. Appending and popping are one step each: finalisers do both.
        self.events = {True: collections.deque[NativeEvent](), False: collections.deque[NativeEvent]()}
        self._peers: set[int] = set()
        self._refused: collections.deque[tuple[Any, ...]] = collections.deque()  # calls that are to be made again
        self._unfreed: collections.deque[tuple[Any, Any]] = collections.deque()  # memory, to be freed after an event

    def __enter__(self) -> Primary:
        if self._context is None:
            self._retain()
        status = invoke(self.api, "cuCtxPushCurrent", self._context)[0]
        if status:
            raise self.failed("cuCtxPushCurrent", status)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Where the caller's context is back its status is of work in the queue, and the next call meets it too.
        status = self.api.cuCtxPopCurrent()[0]
        if status:
            self._pop_failed(status, error)

    def _pop_failed(self, status: Any, error: BaseException | None) -> None:
        """Look whether a pop that failed has left this context in the caller's place, and try once more."""
        self.failed("cuCtxPopCurrent", status)
        status, current = self.api.cuCtxGetCurrent()
        if status or int(current) != int(self._context):
            return
        status = self.api.cuCtxPopCurrent()[0]
        if not status:
            return
        failed = self.failed("cuCtxPopCurrent", status)
        failed.add_note("the context of tazza stays current in this thread")
        if error is None:
            raise failed
        error.add_note(f"then {failed}")

    def _retain(self) -> None:
        with self._lock:
            if self._context is None:
                status, context = invoke(self.api, "cuDevicePrimaryCtxRetain", self.native)
                if status:  # not `failed`: a device in exclusive use by another process is not lost
                    raise failure(self.api, "cuDevicePrimaryCtxRetain", status, 0)
                self._context = context

    @property
    def context(self) -> Any:
        """The CUcontext."""
        if self._context is None:
            self._retain()
        return self._context

    @property
    def is_retained(self) -> bool:
        """Whether anything has used the device yet."""
        return self._context is not None

    # Calls ---------------------------------------------------------------------------------------------------------

    def check(self, call: str) -> None:
        """Raise the first cause where the device is lost."""
        if self.lost is not None:
            raise DeviceLostError(self.lost, backend="cuda", call=call)

    def call(self, name: str, *args: Any, requested: int = 0) -> Any:
        """Call the driver with this context current, and return what it gives beside the status.

        Raises:
            OutOfMemoryError, DeviceLostError, BackendError: as the status says.
        """
        self.check(name)
        with self:
            answer = invoke(self.api, name, *args)
        if answer[0]:
            raise self.failed(name, answer[0], requested)
        return answer[1] if len(answer) == 2 else answer[1:]

    @property
    def calls(self) -> StreamCalls:
        """The calls of every day; whoever makes one looks at `lost` first and gives what they answer to `refuse`."""
        calls = self._calls
        if calls is None:
            calls = self._calls = stream_calls(self.api, self.context)
        return calls

    def refuse(self, name: str, statuses: Statuses, *, but: int = 0) -> None:
        """Raise for what one of `calls` answered, unless the call's own status is `but`."""
        pushed, status, popped = map(self._result, statuses)
        if pushed:
            raise self.failed("cuCtxPushCurrent", pushed)
        error = self.failed(name, status) if status and int(status) != but else None
        if popped:
            self._pop_failed(popped, error)
        if error is not None:
            raise error

    def _result(self, status: int) -> Any:
        try:
            return self.api.CUresult(status)
        except ValueError:  # of a driver that is newer than the bindings
            return status

    def check_whole(self, call: str) -> None:
        """Raise where the whole context is broken, as the cause of what another library's `call` failed with."""
        with self:
            status = invoke(self.api, "cuMemGetInfo")[0]
        if int(status) in STICKY:
            raise self.failed(call, status)

    def failed(self, call: str, status: Any, requested: int = 0) -> BackendError:
        """The error for a status; a sticky one makes the device lost, and the first one stays."""
        if int(status) not in STICKY:
            return failure(self.api, call, status, requested)
        error = failure(self.api, call, status, requested, lost=True)
        with self._lock:
            if self.lost is None:
                self.lost = str(error)
                return error
        return DeviceLostError(self.lost, backend="cuda", call=call, code=error.code, symbol=error.symbol)

    # Events --------------------------------------------------------------------------------------------------------

    def record(self, stream: Any, timing: bool) -> NativeEvent:
        """Return an event, used before or new, that is over when the stream is so far; times cost the device more."""
        if self.lost is not None:
            self.check("cuEventRecord")
        try:
            event = self.events[timing].pop()
        except IndexError:  # all are in use
            event = NativeEvent(self.call("cuEventCreate", 0 if timing else _NO_TIMING), timing)
        try:
            failed = (self._calls or self.calls).record(event, stream)
            if failed:
                self.refuse("cuEventRecord", failed)
        except BackendError:
            self.give_event(event)
            raise
        return event

    def wait(self, stream: Any, event: Any) -> None:
        """Have what comes later in a stream wait for a recorded event."""
        if self.lost is not None:
            self.check("cuStreamWaitEvent")
        failed = (self._calls or self.calls).wait(stream, event)
        if failed:
            self.refuse("cuStreamWaitEvent", failed)

    def is_over(self, event: Any) -> bool:
        """Whether a recorded event is over."""
        if self.lost is not None:
            self.check("cuEventQuery")
        answered = (self._calls or self.calls).query(event)
        if answered:
            self.refuse("cuEventQuery", answered, but=NOT_READY)
        return not (answered and answered[1])

    def give_event(self, event: NativeEvent) -> None:
        """Keep an event for the next record: queues that wait for it wait for what was recorded when they were told to.

        https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__EVENT.html
        """
        self.events[event.timing].append(event)

    # What goes back ------------------------------------------------------------------------------------------------

    def give_back(self, call: str, *args: Any) -> None:
        """Give something back; what the driver refuses is kept, and tried again by `trim`.

        What a lost device had is gone already, and at exit the system takes everything.
        """
        if self.lost is not None or sys.is_finalizing():
            return
        try:
            self.call(call, *args)
        except BackendError:
            self._refused.append((call, *args))
            raise

    def free_in_order(self, address: Any, stream: Any) -> None:
        """Free memory of cuMemAllocAsync in a stream's order; where that is refused, later, once the stream is so far.

        cuMemFree of such memory waits for nobody: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html
        """
        try:
            self.call("cuMemFreeAsync", address, stream)
        except BackendError:
            if self.lost is None:
                self._unfreed.append((self.record(stream, timing=False), address))
            raise

    def _free_later(self) -> None:
        for event, address in _taken(self._unfreed):
            over = False
            try:
                over = self.is_over(event)
            finally:
                if not over:
                    self._unfreed.append((event, address))
            if over:
                self.give_event(event)
                self.give_back("cuMemFree", address)

    def trim(self) -> None:
        """Destroy the events that are kept, and give back what the driver has refused so far.

        Waits for no queue, as the pools do not when they are trimmed: what one still uses is not unused, and goes back
        with the first trim after that work.
        """
        self._free_later()
        for kept in self.events.values():
            for event in _taken(kept):
                self.give_back("cuEventDestroy", event)
        for call, *args in _taken(self._refused):
            self.give_back(call, *args)

    # Peers ---------------------------------------------------------------------------------------------------------

    def reach(self, other: Primary) -> None:
        """Let this device read and write another's memory directly, where the two can; asked once for each other."""
        if other.info.ordinal in self._peers or other is self:
            return
        if self.call("cuDeviceCanAccessPeer", self.native, other.native):
            with self:
                status = invoke(self.api, "cuCtxEnablePeerAccess", other.context, 0)[0]
            # 704: another library has enabled it. 711: the system has no more links; copies are then staged.
            if status and int(status) not in (704, 711):
                raise self.failed("cuCtxEnablePeerAccess", status)
        self._peers.add(other.info.ordinal)


def _taken(kept: collections.deque[Any]) -> Iterator[Any]:
    """Take what is kept now, each once; other threads may take some of it."""
    for _ in range(len(kept)):
        try:
            one = kept.popleft()
        except IndexError:  # another thread took the last one
            return
        yield one
