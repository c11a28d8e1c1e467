"""CudnnWrapper: a CUDA context's way to the cuDNN states of its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast, final

from tazza.contexts.cuda import CUDAContext
from tazza.core.context import Context
from tazza.dnn.cuda.library import CudnnLibrary
from tazza.dnn.cuda.state import CudnnState
from tazza.dnn.library import Library, Plan
from tazza.dnn.state import DnnState
from tazza.dnn.wrapper import DnnWrapper
from tazza.drivers.cuda.libraries import load_library
from tazza.errors import ArgumentError, WrongDeviceError

if TYPE_CHECKING:
    from tazza.dnn.cudnn.devices import DeviceDescription
    from tazza.dnn.cudnn.planner import CudnnPlan

__all__ = ["CudnnWrapper"]

T = TypeVar("T")


@final
class CudnnWrapper(DnnWrapper):
    """cuDNN on a CUDA context's device; see `DnnWrapper`, whose methods give `CudnnState` objects here.

    Args:
        ctx: whose current stream calls are ordered with.
        library: default is the device's `CudnnLibrary`. Another one opens cudnnHandle_t, too.

    Raises:
        WrongDeviceError: `ctx` is on no CUDA device.
        BackendUnavailableError: cuDNN is not there; says what to install.
        DeviceLostError, ForkedError: the device, or the process, is another.

    >>> import tazza as tz
    >>> from tazza.dnn import CudnnWrapper
    >>> with tz.open("cpu") as ctx:
    ...     try:
    ...         CudnnWrapper(ctx)
    ...     except tz.errors.WrongDeviceError as error:
    ...         print(error)
    ctx: on cpu:0, and cuDNN is for CUDA devices; use DnnWrapper
    """

    def __init__(self, ctx: Context, library: Library | None = None) -> None:
        if not isinstance(ctx, Context):
            raise ArgumentError.of("ctx", ctx, "a CUDAContext")
        if not isinstance(ctx, CUDAContext):
            raise WrongDeviceError(f"ctx: on {ctx.device}, and cuDNN is for CUDA devices; use DnnWrapper")
        ctx.own_stream.runtime.check()  # before a library is looked for, which a forked child must not do
        super().__init__(ctx, CudnnLibrary.of(ctx.device) if library is None else library)

    @property
    def handle(self) -> int:
        """The calling thread's cudnnHandle_t, bound to the current stream: ``ctx.cudnn_handle()``."""
        self._check()
        return cast(CUDAContext, self._ctx).cudnn_handle()

    def with_state(self, index: int, fn: Callable[[CudnnState], T], timeout: float | None = None) -> T:
        """See `DnnWrapper.with_state`; `fn` is given a `CudnnState`."""
        return super().with_state(index, cast(Callable[[DnnState], T], fn), timeout)

    @property
    def description(self) -> DeviceDescription:
        """The device's figures, by its driver: what `tazza.dnn.cudnn.CudnnPlanner` plans for.

        Raises:
            ArgumentError: the driver does not tell a figure; names it.
            BackendError: the driver failed.
        """
        from tazza.dnn.cuda.description import description_of  # late: most programs make no plans

        self._check()
        return description_of(self._ctx.own_stream.runtime)

    def load(self, plan: CudnnPlan) -> Plan:
        """Load a plan of NVIDIA's front end, which then executes on Buffers in the states of this device::

            loaded = wrapper.load(planner.plan(operation, wrapper.description))
            with wrapper.lease() as state, state.workspace.get(loaded.workspace_bytes) as lease:
                loaded.execute(state, [*inputs, *outputs], lease)

        `execute` enqueues and returns, in the order of the state. Its arrays are Buffers of exactly the operation's
        layouts (of uint16 where that says bfloat16), which begin at multiples of 16 bytes; None for one that the
        operation leaves out, or that the plan does not read, as the images for their own gradient. Loading is slow: the
        front end tries the plan in a capture of its own, and may wait for the device. A plan that is dropped
        is unloaded once the device has done its work.

        Args:
            plan: made for this device, and by the version of cuDNN that is in use here.

        Raises:
            ArgumentError: it is no plan, or its bytes are damaged. As the next two, before anything is called.
            WrongDeviceError: it was made for another device; names both.
            UnsupportedError: it was made by another version of cuDNN; or cuDNN does not do it here.
            BackendUnavailableError: the front end is not there, or has found another cuDNN; says what to install.
            OutOfMemoryError, DeviceLostError, BackendError: the front end fails; with its message.
            WaitTimeoutError: another thread still loads a plan on the device after ``TAZZA_WAIT_TIMEOUT``.
        """
        from tazza.dnn.cuda.loaded import load_plan  # late, as above

        self._check()
        return load_plan(self._ctx.own_stream.runtime, load_library("cudnn"), plan)
