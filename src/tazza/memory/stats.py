"""Memory statistics, under the names that PyTorch users know."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MemoryStats"]


class MemoryStats(NamedTuple):
    """What one context holds, and what its pool holds for all contexts of the device. Bytes unless said otherwise.

    Attributes:
        live, peak: bytes granted to the context, pending ones included; now and at most.
        pending: part of `live` that was freed but may still be used by a stream.
        limit: the context's limit, or None.
        allocated_bytes: `live` without `pending`.
        requested_bytes: bytes asked for; `live` is rounded to the alignment.
        active_bytes, active_bytes_peak: the same as `live` and `peak`.
        reserved_bytes, reserved_bytes_peak: bytes that the pool holds from the device, for all its contexts.
        inactive_split_bytes: free bytes in segments of which another part is live.
        allocations, frees: blocks ever granted to the context and given back.
        num_alloc_retries: allocations of the pool that succeeded only after relief.
        num_ooms: out-of-memory errors of the context.

    >>> MemoryStats(live=64, peak=128, limit=None).as_torch()["active_bytes.all.peak"]
    128
    """

    live: int = 0
    peak: int = 0
    pending: int = 0
    limit: int | None = None
    allocated_bytes: int = 0
    requested_bytes: int = 0
    reserved_bytes: int = 0
    reserved_bytes_peak: int = 0
    inactive_split_bytes: int = 0
    allocations: int = 0
    frees: int = 0
    num_alloc_retries: int = 0
    num_ooms: int = 0

    @property
    def active_bytes(self) -> int:
        """Bytes granted, pending ones included."""
        return self.live

    @property
    def active_bytes_peak(self) -> int:
        """The highest `active_bytes`."""
        return self.peak

    def as_torch(self) -> dict[str, int]:
        """Return the figures under the keys of ``torch.cuda.memory_stats``, as far as they mean the same."""
        return {
            "allocated_bytes.all.current": self.allocated_bytes,
            "allocated_bytes.all.peak": self.peak,
            "requested_bytes.all.current": self.requested_bytes,
            "active_bytes.all.current": self.live,
            "active_bytes.all.peak": self.peak,
            "reserved_bytes.all.current": self.reserved_bytes,
            "reserved_bytes.all.peak": self.reserved_bytes_peak,
            "inactive_split_bytes.all.current": self.inactive_split_bytes,
            "allocation.all.allocated": self.allocations,
            "allocation.all.freed": self.frees,
            "allocation.all.current": self.allocations - self.frees,
            "num_alloc_retries": self.num_alloc_retries,
            "num_ooms": self.num_ooms,
        }
