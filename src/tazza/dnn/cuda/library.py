"""cuDNN as a `Library`, on one device: layers of float32 and their gradients, by its calls for one layer."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, final

from tazza.contexts.cuda_handles import call_library, create_handle, handles_of
from tazza.core.device import Device
from tazza.core.runtime import DeviceRuntime, runtime_of
from tazza.dnn.cuda.calls import destroy_dropped
from tazza.dnn.cuda.convolution import BackwardPlan, ForwardPlan
from tazza.dnn.cuda.products import LinearBackwardPlan, LinearPlan
from tazza.dnn.cuda.state import CudnnState
from tazza.dnn.library import Choice, Library, Operation, Plan
from tazza.drivers.cuda.libraries import load_library
from tazza.errors import UnsupportedError

__all__ = ["CudnnLibrary"]

_PLANS: Final[dict[str, Callable[..., Plan]]] = {
    "conv2d": ForwardPlan,
    "conv2d.backward": BackwardPlan,
    "linear": LinearPlan,
    "linear.backward": LinearBackwardPlan,
}


@final
class CudnnLibrary(Library):
    """cuDNN on one CUDA device, for ``conv2d``, ``linear`` and their gradients of float32; plans execute on Buffers.

    Products are cuBLAS's, which is looked for when the first plan for one is made. Sums are computed in float32, not in
    TensorFloat-32. Activations are none and relu.

    ``Choice("measure")`` times the algorithms of a convolution that fit, by the device's clock, on a queue and memory
    of its own: it waits for the device, and holds no state. cuBLAS chooses by itself, so that for products it is
    ``"heuristic"``.

    Args:
        runtime: the device's.

    Raises:
        BackendUnavailableError: cuDNN is not there; says what to install.
    """

    name = "cudnn"
    survives_fork = False
    state_class = CudnnState

    def __init__(self, runtime: DeviceRuntime) -> None:
        self._runtime = runtime
        self.native = load_library("cudnn")
        self.version = ".".join(map(str, self.native.version))

    @classmethod
    def of(cls, device: Device) -> CudnnLibrary:
        """The library on a device, one per process and device."""
        runtime = runtime_of(device)
        with _lock:
            found = _all.get(id(runtime))
            if found is None or found._runtime is not runtime:
                found = _all[id(runtime)] = cls(runtime)
        return found

    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        return feature in _PLANS and dtype == "float32"

    def compile(self, operation: Operation, choice: Choice) -> Plan:
        if not self.supports(operation.name, dtype=next(one.dtype for one in operation.inputs if one is not None)):
            raise UnsupportedError(
                f"cudnn {self.version} does {', '.join(_PLANS)} of float32 here, not {operation.name}"
            )
        handle = handles_of(self._runtime).cudnn(None)
        plan: Plan = _PLANS[operation.name](self._runtime, self.native, operation, choice, handle)
        return plan

    def open(self) -> Any:
        self.was_used = True
        return create_handle(self._runtime, self.native, "cudnnCreate")

    def close(self, handle: Any) -> None:
        destroy_dropped()
        if self._runtime.lost() is None and not sys.is_finalizing():
            call_library(self._runtime, self.native, "cudnnDestroy", ctypes.c_void_p(handle))


_all: dict[int, CudnnLibrary] = {}
_lock = threading.Lock()
