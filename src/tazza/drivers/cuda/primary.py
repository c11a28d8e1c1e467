"""One device of the driver: its primary context, and whether it is lost."""

from __future__ import annotations

import collections
import threading
from types import TracebackType
from typing import Any, final

from tazza.drivers.cuda.status import STICKY, failure
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
    """

    def __init__(self, api: Any, native: Any, info: DeviceInfo) -> None:
        self.api, self.native, self.info = api, native, info
        self.lost: str | None = None
        self._context: Any = None
        self._lock = threading.Lock()
        # By whether they carry times. Appending and popping are one step each: finalisers do both.
        self._events: dict[bool, collections.deque[Any]] = {True: collections.deque(), False: collections.deque()}
        self._peers: set[int] = set()

    def __enter__(self) -> Primary:
        if self._context is None:
            self._retain()
        status = self.api.cuCtxPushCurrent(self._context)[0]
        if status:
            raise self.failed("cuCtxPushCurrent", status)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Its status says nothing new: the next call meets the same fault, and the caller's context is back.
        self.api.cuCtxPopCurrent()

    def _retain(self) -> None:
        with self._lock:
            if self._context is None:
                status, context = self.api.cuDevicePrimaryCtxRetain(self.native)
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
            answer = getattr(self.api, name)(*args)
        if answer[0]:
            raise self.failed(name, answer[0], requested)
        return answer[1] if len(answer) == 2 else answer[1:]

    def failed(self, call: str, status: Any, requested: int = 0) -> BackendError:
        """The error for a status; a sticky one makes the device lost, and the first one stays."""
        error = failure(self.api, call, status, requested)
        if int(status) not in STICKY:
            return error
        with self._lock:
            self.lost = self.lost or str(error)
        return DeviceLostError(self.lost, backend="cuda", call=call, code=error.code, symbol=error.symbol)

    # Events --------------------------------------------------------------------------------------------------------

    def take_event(self, timing: bool) -> Any:
        """Return a CUevent, used before or new; without timing it costs the device less."""
        try:
            return self._events[timing].pop()
        except IndexError:  # all are in use
            return self.call("cuEventCreate", 0 if timing else _NO_TIMING)

    def give_event(self, event: Any, timing: bool) -> None:
        """Keep an event for the next record: queues that wait for it wait for what was recorded when they were told to.

        https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__EVENT.html
        """
        self._events[timing].append(event)

    # Peers ---------------------------------------------------------------------------------------------------------

    def reach(self, other: Primary) -> None:
        """Let this device read and write another's memory directly, where the two can; asked once for each other."""
        if other.info.ordinal in self._peers or other is self:
            return
        if self.call("cuDeviceCanAccessPeer", self.native, other.native):
            with self:
                status = self.api.cuCtxEnablePeerAccess(other.context, 0)[0]
            # 704: another library has enabled it. 711: the system has no more links; copies are then staged.
            if status and int(status) not in (704, 711):
                raise self.failed("cuCtxEnablePeerAccess", status)
        self._peers.add(other.info.ordinal)
