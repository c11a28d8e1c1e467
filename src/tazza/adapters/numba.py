"""Numba on CUDA: its device is set by ``ctx.bind()``, and its arrays can live in the memory of contexts.

Numba asks a *memory manager* for device memory, one class for the process, which has to be named before Numba has used
a device::

    from numba import cuda
    from tazza.adapters.numba import memory_manager

    gpu = tz.context("cuda:0", memory_limit="2GiB")
    cuda.set_memory_manager(memory_manager(gpu))
    x = cuda.to_device(numbers)  # in the account of gpu, below its limit

An allocation is charged to the context that is current, if that is on the device where Numba works, and to the budgets
in it; else to the context that the manager was made with. Numba's own streams wait for one another through the legacy
default stream: an array comes after what tazza has queued on its memory, and its memory is given out again after what
is on those streams when the array is dropped. On one of our streams (``cuda.external_stream(int(stream.native))``)
the array has to be ordered by ``tz.borrow(array)``, as any other library's.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any, final

from tazza.core.adapter import Adapter
from tazza.core.context import Context
from tazza.errors import ArgumentError, UsageError
from tazza.hot import top

__all__ = ["NumbaAdapter", "memory_manager"]

_LEGACY = 1  # CU_STREAM_LEGACY
_OUT_OF_MEMORY = 2


@final
class NumbaAdapter(Adapter):
    """What tazza knows of Numba.

    >>> import numba
    >>> NumbaAdapter(numba).is_out_of_memory(ValueError("shapes differ"))
    False
    """

    def bind(self, context: Any) -> Callable[[], None] | None:
        """Make the context's device Numba's current one in this thread, where its CUDA side has been imported."""
        cuda = sys.modules.get("numba.cuda")
        if context.device.kind != "cuda" or cuda is None:
            return None
        scope = cuda.gpus[context.native.ordinal]
        scope.__enter__()
        return lambda: scope.__exit__(None, None, None)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """The driver's code, in Numba's own error."""
        return type(error).__name__ == "CudaAPIError" and getattr(error, "code", None) == _OUT_OF_MEMORY


def memory_manager(*contexts: Context) -> type:
    """Make the class that ``numba.cuda.set_memory_manager`` takes, to be given to it before Numba uses a device.

    Device memory comes from the contexts; pinned, mapped and managed memory stays Numba's own.

    Args:
        contexts: one for each device where Numba allocates outside of ``with ctx:``; they stay open meanwhile.

    Raises:
        ArgumentError: no context, not one of CUDA, or two on one device.
    """
    cuda: Any = importlib.import_module("numba.cuda")
    ours: dict[str, Context] = {}
    for context in contexts:
        if not isinstance(context, Context) or context.device.kind != "cuda":
            raise ArgumentError.of("contexts", context, "contexts on CUDA devices")
        if context.device.uuid in ours:
            raise ArgumentError.of("contexts", context, f"one context on {context.device}")
        ours[context.device.uuid] = context
    if not ours:
        raise ArgumentError.of("contexts", contexts, "at least one context")

    class TazzaMemoryManager(cuda.GetIpcHandleMixin, cuda.HostOnlyCUDAMemoryManager):  # type: ignore[misc]
        """Numba's device memory in the pools of tazza."""

        interface_version = 1

        def initialize(self) -> None:
            """Nothing to prepare: contexts are open."""

        def memalloc(self, size: int) -> Any:
            """Allocate in the context of this device.

            Raises:
                OutOfMemoryError: there is no room, or a limit refuses it.
            """
            return _allocate(cuda, self.context, _context_for(self.context, ours), size)

        def get_memory_info(self) -> Any:
            """Free and total bytes of the device, or of the context's limit where that is less."""
            return _memory_info(cuda, _context_for(self.context, ours))

        @contextlib.contextmanager
        def defer_cleanup(self) -> Iterator[None]:
            """What finalisers of arrays do is one append, which needs no deferring."""
            with super().defer_cleanup():
                yield

    return TazzaMemoryManager


def _context_for(native: Any, ours: dict[str, Context]) -> Context:
    """The current context where it is on Numba's device, else ours for that."""
    uuid = str(native.device.uuid)
    frame = top()
    current: Any = None if frame is None else frame.context
    if isinstance(current, Context) and current.device.uuid == uuid:
        return current
    if uuid not in ours:
        raise UsageError(f"Numba allocates on {uuid}, for which memory_manager() got no context; it has {list(ours)}")
    return ours[uuid]


def _allocate(cuda: Any, native: Any, context: Context, size: int) -> Any:
    driver: Any = importlib.import_module("cuda.bindings.driver")
    buffer = context.allocate(size, label="numba")
    give_back = buffer.block.owner.exports.lend(buffer, _LEGACY)
    pointer = driver.CUdeviceptr(buffer.address)
    return cuda.MemoryPointer(weakref.proxy(native), pointer, size, finalizer=give_back)


def _memory_info(cuda: Any, context: Context) -> Any:
    device = context.device
    info = device.driver.memory_info(device.info)
    limit = context.memory.limit
    if limit is None:
        return cuda.MemoryInfo(free=info.free, total=info.total)
    left = max(0, limit - context.memory.stats().live)
    return cuda.MemoryInfo(free=min(info.free, left), total=min(info.total, limit))
