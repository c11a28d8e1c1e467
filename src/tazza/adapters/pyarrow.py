"""Apache Arrow: its default memory pool is watched, and asked to give back what it caches."""

from __future__ import annotations

from typing import Any, final

from tazza.core.adapter import Adapter, ForeignMemory

__all__ = ["PyarrowAdapter"]


@final
class PyarrowAdapter(Adapter):
    """What tazza knows of Apache Arrow.

    >>> import pyarrow
    >>> adapter = PyarrowAdapter(pyarrow)
    >>> column = pyarrow.array(range(1000), pyarrow.int64())
    >>> adapter.memory(tz.device("cpu")).live >= 8000
    True
    """

    def memory(self, device: Any) -> ForeignMemory | None:
        """Bytes of the default pool. What its allocator caches is not reported by it, and so not counted."""
        if device.memory_domain != "host":
            return None
        pool = self.library.default_memory_pool()
        note = f"as Arrow's {pool.backend_name} pool reports; what that caches is not in it"
        return ForeignMemory(int(pool.bytes_allocated()), note=note)

    def trim(self, device: Any) -> None:
        """Have the pool return free memory to the system."""
        if device.memory_domain == "host":
            self.library.default_memory_pool().release_unused()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Arrow has a class for it, which is also a MemoryError."""
        return isinstance(error, self.library.ArrowMemoryError)
