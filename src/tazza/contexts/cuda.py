"""The context of an NVIDIA device."""

from __future__ import annotations

from typing import Any, final

from tazza.core.context import Context
from tazza.core.device import Device, device
from tazza.core.spec import Spec
from tazza.errors import WrongDeviceError
from tazza.hot import Account

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
