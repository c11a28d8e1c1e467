"""JAX: its default device is set per thread; its live arrays are counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from tazza.core.adapter import Adapter, ForeignMemory

__all__ = ["JaxAdapter"]


@final
class JaxAdapter(Adapter):
    """What tazza knows of JAX.

    >>> import jax
    >>> JaxAdapter(jax).is_out_of_memory(ValueError("shapes differ"))
    False
    """

    def bind(self, context: Any) -> Callable[[], None] | None:
        """Make the CPU the default device of this thread, by its platform's name, which initialises nothing."""
        if context.device.memory_domain != "host":
            return None
        scope = self.library.default_device("cpu")
        scope.__enter__()
        return lambda: scope.__exit__(None, None, None)

    def memory(self, device: Any) -> ForeignMemory | None:
        """Bytes of the live arrays on the CPU, each buffer once; None before JAX has a backend.

        To ask for arrays would initialise every backend of JAX, and a look at the memory must not open a GPU.
        """
        bridge = getattr(getattr(self.library, "_src", None), "xla_bridge", None)
        initialised = getattr(bridge, "backends_are_initialized", None)
        if device.memory_domain != "host" or initialised is None or not initialised():
            return None
        sizes: dict[int, int] = {}
        for array in self.library.live_arrays("cpu"):
            for shard in array.addressable_shards:
                sizes[shard.data.unsafe_buffer_pointer()] = int(shard.data.nbytes)
        return ForeignMemory(
            sum(sizes.values()), note="live arrays; what compiled code and temporaries hold is not in it"
        )

    def is_out_of_memory(self, error: BaseException) -> bool:
        """XLA's status code stands at the front of the message."""
        return isinstance(error, self.library.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
