"""CuPy on CUDA: its device and stream are set by ``ctx.bind()``, and its arrays can live in the memory of a context.

Inside ``with own(ctx):`` what CuPy allocates in this thread comes from the context's pool, in its account and below its
limit, in the order of the CuPy stream that is current when it is allocated, and is given out again after what is on
that stream when it is dropped. CuPy's own pool and its statistics know nothing of these arrays. They stay valid after
the scope; the stream has to live as long as they do.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, final

from tazza.core.adapter import Adapter, ForeignMemory
from tazza.core.context import Context
from tazza.errors import ArgumentError, BackendUnavailableError

__all__ = ["CupyAdapter", "own"]


@final
class CupyAdapter(Adapter):
    """What tazza knows of CuPy.

    >>> from types import ModuleType
    >>> CupyAdapter(ModuleType("cupy")).memory(tz.device("cpu")) is None
    True
    """

    def bind(self, context: Any) -> Callable[[], None] | None:
        """Make the context's device and current stream CuPy's in this thread."""
        if context.device.kind != "cuda":
            return None
        cuda, ordinal = self.library.cuda, context.native.ordinal
        with contextlib.ExitStack() as scopes:
            scopes.enter_context(cuda.Device(ordinal))
            scopes.enter_context(cuda.ExternalStream(int(context.stream.native), ordinal))
            return scopes.pop_all().close

    def memory(self, device: Any) -> ForeignMemory | None:
        """Bytes of CuPy's default pool on the device."""
        if device.kind != "cuda":
            return None
        with self.library.cuda.Device(device.info.ordinal):
            pool = self.library.get_default_memory_pool()
            used, total = int(pool.used_bytes()), int(pool.total_bytes())
        return ForeignMemory(used, cached=total - used)

    def trim(self, device: Any) -> None:
        """Have the default pool give free blocks back."""
        if device.kind == "cuda":
            with self.library.cuda.Device(device.info.ordinal):
                self.library.get_default_memory_pool().free_all_blocks()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """CuPy has a class for it, which is a MemoryError."""
        return isinstance(error, self.library.cuda.memory.OutOfMemoryError)


@contextlib.contextmanager
def own(context: Context) -> Iterator[Context]:
    """Have CuPy's allocations of this thread come from a context, which is made current; for ``with``.

    Raises:
        ArgumentError: not a context on a CUDA device.
        BackendUnavailableError: CuPy cannot be imported.
        OutOfMemoryError: from CuPy's calls inside, where there is no room or a limit refuses it.
    """
    if not isinstance(context, Context) or context.device.kind != "cuda":
        raise ArgumentError.of("context", context, "a context on a CUDA device")
    try:
        cupy: Any = importlib.import_module("cupy")
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        raise BackendUnavailableError("cupy", f"{type(error).__name__}: {error}", "pip install cupy-cuda13x") from error

    def allocate(nbytes: int) -> Any:
        buffer = context.allocate(nbytes, label="cupy")
        stream = int(cupy.cuda.get_current_stream().ptr)
        owner = _Owner(buffer.block.owner.exports.lend(buffer, stream))
        memory = cupy.cuda.UnownedMemory(buffer.address, nbytes, owner, context.native.ordinal)
        return cupy.cuda.MemoryPointer(memory, 0)

    with context, cupy.cuda.using_allocator(allocate):
        yield context


@final
class _Owner:
    """What CuPy keeps as long as the memory; its end is one append."""

    __slots__ = ("_give_back",)

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back = give_back

    def __del__(self) -> None:
        self._give_back()
