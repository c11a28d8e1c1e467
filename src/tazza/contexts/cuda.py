"""The context of an NVIDIA device."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, final

from tazza.core.context import Context
from tazza.core.device import Device, device
from tazza.core.spec import Spec
from tazza.errors import WrongDeviceError
from tazza.hot import Account

if TYPE_CHECKING:
    from tazza.contexts.cuda_handles import DeviceHandles

__all__ = ["CUDAContext"]


@final
class CUDAContext(Context):
    """A context on a CUDA device: ``tz.CUDAContext(seed=7)`` is ``tz.context("cuda", seed=7)``.

    It is no CUcontext: all contexts of a device, and every other CUDA library of the process, share the device's
    primary one. Functions launched on it run at once, in the caller, and may only enqueue.

    >>> import tazza as tz
    >>> try:
    ...     ctx = tz.CUDAContext(seed=7)
    ... except ImportError as error:  # a BackendUnavailableError, which says why and what to install
    ...     assert "cuda" in str(error)
    ... else:
    ...     assert ctx.device_uuid.startswith("GPU-")
    ...     ctx.close()
    """

    def __init__(
        self, spec: Spec | None = None, chosen: Device | None = None, above: Account | None = None, /, **options: Any
    ) -> None:
        if spec is None or chosen is None:
            chosen = device(options.pop("device", "cuda"))
            spec = Spec.of(chosen, options)
        if chosen.kind != "cuda":
            raise WrongDeviceError(f"a CUDAContext is on CUDA, not on {chosen}; use tz.context({chosen.name!r})")
        super().__init__(spec, chosen, above)

    @property
    def cuda_context(self) -> int:
        """The device's primary CUcontext as an integer, for libraries that take one."""
        return int(self.native.context)

    @property
    def device_uuid(self) -> str:
        """The device in any process, whatever ``CUDA_VISIBLE_DEVICES`` says: ``"GPU-..."``."""
        return self.device.uuid

    def cuda_current(self) -> AbstractContextManager[object]:
        """``with ctx.cuda_current():`` makes the primary context the thread's, for direct calls of CUDA libraries.

        The caller's is put back at the end. It sets nothing else; `bind` does, for libraries that tazza knows.
        """
        self._check_open()
        driver: Any = self._runtime.driver
        scope: AbstractContextManager[object] = driver.current(self._runtime.info)
        return scope

    # Handles of libraries -------------------------------------------------------------------------------------------

    def cublas_handle(self) -> int:
        """The calling thread's cublasHandle_t on this device, bound to the current stream and scratch memory of it.

        Made when it is first asked for, bound anew by every call, shared with the thread's other contexts here, and
        never destroyed. Give it to no other thread, and use it inside `cuda_current` while its stream is
        current. Where the stream is held up by the host, waits until it is not.

        Raises:
            BackendUnavailableError: the library is not there, or its parts do not fit; says what to install.
            BackendError: the library failed.
            DeviceLostError, ForkedError: the device, or the process, is another.
            WaitTimeoutError: the stream stays held up for ``TAZZA_WAIT_TIMEOUT``.
        """
        return self._handles().cublas(self.stream)

    def cudnn_handle(self) -> int:
        """The calling thread's cudnnHandle_t, bound to the current stream; all else as `cublas_handle`.

        Scratch memory is an argument of cuDNN's calls: `tazza.dnn.CudnnWrapper` has states with handle and memory.
        """
        return self._handles().cudnn(self.stream)

    def curand_generator(self) -> int:
        """The calling thread's curandGenerator_t of this context (Philox), bound to the current stream.

        Seeded from the context's seed and the number of the thread among those that asked. ``ctx.random`` has the same
        numbers on every device; this has cuRAND's. All else as `cublas_handle`.
        """
        return self._handles().curand(self, self.stream)

    def _handles(self) -> DeviceHandles:
        from tazza.contexts.cuda_handles import handles_of  # late: most programs ask for none, and all import this

        self._check_open()
        return handles_of(self._runtime)
