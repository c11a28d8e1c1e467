"""The calls that streams make all the time: `tazza.drivers.cuda.calls`, or uncompiled the same through the bindings.

Each makes the device's context current, makes the call, and puts the caller's context back. It answers None where all
three went well, else their statuses.
"""

from __future__ import annotations

from array import array
from typing import Any, Protocol, final

from tazza.drivers.cuda.status import invoke
from tazza.errors import BackendError

__all__ = ["Statuses", "StreamCalls", "stream_calls"]

_VERSION = 12000  # of the functions' form: that of CUDA 12, which drivers of CUDA 13 have too
_NAMES = (
    *("cuCtxPushCurrent", "cuCtxPopCurrent", "cuEventRecord", "cuStreamWaitEvent", "cuEventQuery"),
    *("cuMemcpyDtoDAsync", "cuMemsetD8Async", "cuLaunchKernel"),
)

Statuses = tuple[int, int, int]
"""Of making the context current, of the call, and of putting the caller's back; those of what was not called are 0."""


class StreamCalls(Protocol):
    """What both forms have."""

    def record(self, event: Any, stream: Any) -> Statuses | None: ...

    def wait(self, stream: Any, event: Any) -> Statuses | None: ...

    def query(self, event: Any) -> Statuses | None: ...

    def copy(self, dst: int, src: int, nbytes: int, stream: Any) -> Statuses | None: ...

    def fill(self, dst: int, value: int, nbytes: int, stream: Any) -> Statuses | None: ...

    def launch(
        self, function: Any, shape: tuple[int, ...], stream: Any, arguments: tuple[bytes, ...]
    ) -> Statuses | None: ...


@final
class _ThroughBindings:
    """The uncompiled form.

    Args:
        api: the module `cuda.bindings.driver`.
        context: a CUcontext.
    """

    def __init__(self, api: Any, context: Any) -> None:
        self._api, self._context = api, context

    def _call(self, name: str, *args: Any) -> Statuses | None:
        pushed = invoke(self._api, "cuCtxPushCurrent", self._context)[0]
        if pushed:
            return int(pushed), 0, 0
        popped: Any = 0
        try:
            status = invoke(self._api, name, *args)[0]
        finally:
            popped = self._api.cuCtxPopCurrent()[0]
        return (0, int(status), int(popped)) if status or popped else None

    def record(self, event: Any, stream: Any) -> Statuses | None:
        return self._call("cuEventRecord", event, stream)

    def wait(self, stream: Any, event: Any) -> Statuses | None:
        return self._call("cuStreamWaitEvent", stream, event, 0)

    def query(self, event: Any) -> Statuses | None:
        return self._call("cuEventQuery", event)

    def copy(self, dst: int, src: int, nbytes: int, stream: Any) -> Statuses | None:
        return self._call("cuMemcpyDtoDAsync", dst, src, nbytes, stream)

    def fill(self, dst: int, value: int, nbytes: int, stream: Any) -> Statuses | None:
        return self._call("cuMemsetD8Async", dst, value, nbytes, stream)

    def launch(
        self, function: Any, shape: tuple[int, ...], stream: Any, arguments: tuple[bytes, ...]
    ) -> Statuses | None:
        # Not by ctypes, which takes twice as long to make the same.
        values, pointers = array("B", b"".join(arguments)), array("Q")
        at, _ = values.buffer_info()
        for value in arguments:
            pointers.append(at)
            at += len(value)
        first = pointers.buffer_info()[0] if arguments else 0
        return self._call("cuLaunchKernel", function, *shape, stream, first, 0)


def stream_calls(api: Any, context: Any) -> StreamCalls:
    """The calls for a context: compiled where tazza is and the driver tells its functions' addresses."""
    try:
        from tazza.drivers.cuda.calls import StreamCalls as compiled
    except ImportError:  # not compiled: the same, slower
        return _ThroughBindings(api, context)
    addresses = []
    for name in _NAMES:
        try:
            status, address, *_ = invoke(api, "cuGetProcAddress", name.encode(), _VERSION, 0)
        except BackendError:  # the driver is older than that function
            status, address = 1, 0
        if status or not address:
            return _ThroughBindings(api, context)
        addresses.append(int(address))
    return compiled(tuple(addresses), context)
