"""PyTorch: its default device is set per thread, its tensors are counted, and its generators get seeds from ours.

Nothing process-wide is touched: the number of threads (``torch.set_num_threads``), the default generator and
deterministic algorithms belong to the program. ``tz.limit_threads`` sets the first one; `generator` makes a generator
to pass to ``torch.randn(..., generator=)`` and the like. Who wants PyTorch's CUDA memory in a context's account, below
its limit, calls `own_process`, which is for the whole process and for good.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, final

from tazza.adapters.torch_memory import REFUSED, own_process
from tazza.core.adapter import Adapter, ForeignMemory
from tazza.core.generator import Generator
from tazza.errors import ArgumentError, BackendUnavailableError

__all__ = ["TorchAdapter", "generator", "own_process"]

_NO_MEMORY = "can't allocate memory"
_SEED_BYTES = 8


def generator(random: Generator) -> Any:
    """Return a ``torch.Generator`` on the CPU, seeded with 64 bits of a tazza generator's stream.

    Its numbers are PyTorch's own algorithm's: equal for equal seeds and versions of PyTorch, and no others than those.
    To leave the stream where it is, give a generator of its own: ``generator(ctx.random.for_purpose("dropout"))``.

    Args:
        random: ``ctx.random`` or any other generator; moves on by 8 bytes.

    Raises:
        ArgumentError: not a generator of tazza.
        BackendUnavailableError: torch cannot be imported.

    >>> import tazza as tz
    >>> first, second = (generator(tz.Generator(7)) for _ in range(2))
    >>> first.initial_seed() == second.initial_seed()
    True
    """
    if not isinstance(random, Generator):
        raise ArgumentError.of("random", random, "a tazza.Generator, such as ctx.random")
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its libraries does not load
        raise BackendUnavailableError("torch", f"{type(error).__name__}: {error}", "pip install torch") from error
    made = torch.Generator(device="cpu")
    made.manual_seed(int.from_bytes(random.bytes(_SEED_BYTES), "little"))
    return made


@final
class TorchAdapter(Adapter):
    """What tazza knows of PyTorch.

    >>> import torch
    >>> adapter = TorchAdapter(torch)
    >>> weights = torch.zeros(1000)
    >>> found = adapter.memory(tz.device("cpu"))
    >>> found is None or found.live >= 4000  # None: uncompiled, where nobody counts the tensors of the CPU
    True
    """

    def bind(self, context: Any) -> Callable[[], None] | None:
        """Make the CPU the default device of this thread where it is another one.

        Only then, because the mode that PyTorch uses for it doubles the time of a small operation. To make a tensor and
        look tells what the default is at a fifth of the price of ``torch.get_default_device()``.
        """
        torch = self.library
        if context.device.kind == "cuda":
            return self._bind_cuda(context) if torch.cuda.is_available() else None
        if context.device.memory_domain != "host" or torch.empty(0).device.type == "cpu":
            return None
        scope = torch.device("cpu")
        scope.__enter__()
        return lambda: scope.__exit__(None, None, None)

    def _bind_cuda(self, context: Any) -> Callable[[], None]:
        """Make the context's device and current stream PyTorch's, and its tensors' default."""
        torch, ordinal = self.library, context.native.ordinal
        with contextlib.ExitStack() as scopes:
            scopes.enter_context(torch.device("cuda", ordinal))
            scopes.enter_context(torch.cuda.device(ordinal))
            stream = torch.cuda.ExternalStream(int(context.stream.native), device=torch.device("cuda", ordinal))
            scopes.enter_context(torch.cuda.stream(stream))
            return scopes.pop_all().close

    def memory(self, device: Any) -> ForeignMemory | None:
        """Bytes of the CPU storages that Python can see, each once, without memory that is not PyTorch's own.

        A storage over other memory (a context's pool, NumPy, a file) cannot be resized, which tells the two apart.
        None where tazza is not compiled: looking through all objects would harm threads that fill a tuple. None on CUDA
        too where another allocator is PyTorch's: it keeps no figures then, and those of `own_process` are the pool's.
        """
        if device.kind == "cuda" and self._has_used_cuda:
            if self.library.cuda.get_allocator_backend() == "pluggable":
                return None
            live = int(self.library.cuda.memory_allocated(device.info.ordinal))
            return ForeignMemory(live, cached=int(self.library.cuda.memory_reserved(device.info.ordinal)) - live)
        if device.memory_domain != "host":
            return None
        try:
            from tazza.hot.instances import instances_of
        except ImportError:  # uncompiled
            return None
        sizes: dict[int, int] = {}
        for tensor in instances_of(self.library.Tensor):
            for one in (tensor, tensor.grad if tensor.is_leaf else None):
                if one is not None:
                    _count(one, self.library, sizes)
        note = "tensors that Python can see; what autograd alone holds is not in it"
        return ForeignMemory(sum(sizes.values()), note=note)

    def trim(self, device: Any) -> None:
        """Have its caching allocator give free blocks of CUDA devices back."""
        if device.kind == "cuda" and self._has_used_cuda:
            self.library.cuda.empty_cache()

    @property
    def _has_used_cuda(self) -> bool:
        return bool(self.library.cuda.is_available() and self.library.cuda.is_initialized())

    def is_out_of_memory(self, error: BaseException) -> bool:
        """An error of its device allocators, or the RuntimeError of the one for the CPU and of `own_process`."""
        if isinstance(error, self.library.OutOfMemoryError):
            return True
        return type(error) is RuntimeError and any(text in str(error) for text in (_NO_MEMORY, REFUSED))


def _count(tensor: Any, torch: Any, sizes: dict[int, int]) -> None:
    """Note the bytes of a tensor's storage by address, if PyTorch's allocator for the CPU made it."""
    try:
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.device.type == "cpu" and storage.resizable():
                sizes[storage.data_ptr()] = storage.nbytes()
    except (RuntimeError, NotImplementedError):  # a tensor without memory: traced, batched or fake
        return
