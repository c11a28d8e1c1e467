"""CudnnWrapper: a CUDA context's way to the cuDNN states of its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast, final

from tazza.contexts.cuda import CUDAContext
from tazza.core.context import Context
from tazza.dnn.cuda.library import CudnnLibrary
from tazza.dnn.cuda.state import CudnnState
from tazza.dnn.library import Library
from tazza.dnn.state import DnnState
from tazza.dnn.wrapper import DnnWrapper
from tazza.errors import ArgumentError, WrongDeviceError

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
