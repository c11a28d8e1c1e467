"""The CUDA form of library states: cuDNN's handle, bound to the state's native stream whenever it is asked for."""

from __future__ import annotations

import ctypes
import sys
from typing import cast, final

from tazza.contexts.cuda_handles import call_library, create_handle
from tazza.dnn.state import DnnState, SyncedDnnState
from tazza.dnn.workspace import DnnWorkspace, Lease
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

    _cublas: int | None = None

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

    def cublas_handle(self, lease: Lease | None, first: int = 0) -> int:
        """The state's own cublasHandle_t, bound to `native_stream` and, as its scratch memory, to a lease.

        Made when it is first asked for, and destroyed with the state. It may be used as long as the lease is not over.

        Args:
            lease: from this state's workspace; None gives cuBLAS no scratch memory.
            first: byte of the lease where cuBLAS's part begins, a multiple of 256.

        Raises:
            UsageError, ClosedError: the state is not held by this thread, or the lease is none that can be used.
            BackendUnavailableError: cuBLAS is not there, or does not fit; says what to install.
            BackendError: cuBLAS fails.
        """
        nbytes = 0 if lease is None else lease.nbytes - first
        address, native = self.leased(lease, nbytes + first, 256) + first, self.native_stream
        blas = load_library("cublas")
        if self._cublas is None:
            self._cublas = create_handle(self._runtime, blas, "cublasCreate_v2")
        handle = ctypes.c_void_p(self._cublas)
        call_library(self._runtime, blas, "cublasSetStream_v2", handle, ctypes.c_void_p(native))  # drops the workspace
        scratch = ctypes.c_void_p(address), ctypes.c_size_t(nbytes)
        call_library(self._runtime, blas, "cublasSetWorkspace_v2", handle, *scratch)
        return self._cublas

    def _close_others(self) -> None:
        if self._cublas is not None and self._runtime.lost() is None and not sys.is_finalizing():
            call_library(self._runtime, load_library("cublas"), "cublasDestroy_v2", ctypes.c_void_p(self._cublas))
        self._cublas = None
