"""The CUDA form of library states: cuDNN's handle, bound to the state's native stream whenever it is asked for."""

from __future__ import annotations

import ctypes
from typing import cast, final

from tazza.contexts.cuda_handles import call_library
from tazza.dnn.state import DnnState, SyncedDnnState
from tazza.dnn.workspace import DnnWorkspace
from tazza.drivers.cuda.libraries import load_library

__all__ = ["CudnnState", "CudnnWorkspace", "SyncedCudnnState"]

CudnnWorkspace = DnnWorkspace
"""Scratch memory of a state: nothing about it is cuDNN's."""

SyncedCudnnState = SyncedDnnState
"""One state that serves one caller at a time: nothing about it is cuDNN's."""


@final
class CudnnState(DnnState):
    """A cuDNN handle on one device with its own queue and workspace; see `DnnState`.

    A call of cuDNN's in it looks like this, inside ``with ctx.cuda_current():``::

        with state.workspace.get(nbytes) as lease:
            cudnnConvolutionForward(state.handle, ..., lease.address, nbytes, ...)
    """

    @property
    def native_stream(self) -> int:
        """The CUstream of `DnnState.stream`.

        Raises:
            UsageError: the state is not held by this thread.
            WaitTimeoutError: something on the stream still waits for the host after ``TAZZA_WAIT_TIMEOUT``.
        """
        return int(self.stream.native)  # type: ignore[call-overload, no-any-return]

    @property
    def handle(self) -> int:
        """The cudnnHandle_t, bound to `native_stream`; its errors, and `BackendError` where cuDNN fails."""
        native, handle = self.native_stream, ctypes.c_void_p(self._handle)
        call_library(self._runtime, load_library("cudnn"), "cudnnSetStream", handle, ctypes.c_void_p(native))
        return cast(int, self._handle)
