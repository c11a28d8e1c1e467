"""The address space of one simulated device."""

from __future__ import annotations

import bisect
import ctypes
import mmap
import threading
from typing import Any

import numpy as np

from tazza.errors import BackendError, OutOfMemoryError
from tazza.util.hostmemory import address_of

__all__ = ["AddressSpace", "PinnedHost"]

# Addresses with bit 52 set and the top bits clear are not canonical on x86-64 and lie beyond user space on 64-bit Arm:
# whoever dereferences one gets a fault, not somebody else's data.
_BASE = 1 << 52
_DEVICE_SHIFT = 44
_GUARD = 4096
_ALIGNMENT = 64  # of the host memory behind an allocation: libraries that functions call there rely on it
# A forked child writes into its own copy.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_POISON = 0xCB  # what fresh memory holds, so that reading it uninitialised is seen


class AddressSpace:
    """Allocations that are never reused, so that a use after free or out of bounds is always found."""

    def __init__(self, device: str, ordinal: int, limit: int) -> None:
        self.device, self.limit, self.used = device, limit, 0
        self._next = _BASE + (ordinal << _DEVICE_SHIFT)
        self._starts: list[int] = []
        self._cells: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self._withheld: set[int] = set()
        self._lock = threading.Lock()

    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` poisoned bytes."""
        with self._lock:
            if self.used + nbytes > self.limit:
                raise OutOfMemoryError(
                    f"{nbytes} bytes asked for, {self.limit - self.used} of {self.limit} free",
                    requested=nbytes,
                    live=self.used,
                    backend="sim",
                    call="memory_allocate",
                )
            # Not an array of NumPy's own making: that would count in the context on the host that is current here.
            room = np.frombuffer(bytearray([_POISON]) * (nbytes + _ALIGNMENT), np.uint8)
            shift = -address_of(room) % _ALIGNMENT
            cell = room[shift : shift + nbytes]
            address = self._next
            self._next += -(-(nbytes + _GUARD) // _GUARD) * _GUARD
            self._starts.append(address)  # addresses only grow, so the list stays sorted
            self._cells[address] = cell
            self.used += nbytes
            return address

    def withhold(self, address: int) -> None:
        """Make uses of an allocation illegal until `hand_out`."""
        self._withheld.add(address)

    def hand_out(self, address: int) -> None:
        """Let everybody use it."""
        self._withheld.discard(address)

    def free(self, address: int) -> None:
        """Forget an allocation; later uses of its addresses are illegal."""
        with self._lock:
            self._withheld.discard(address)
            cell = self._cells.pop(address, None)
            if cell is None:
                raise BackendError(
                    f"{address:#x} is not the start of a live allocation", backend="sim", call="memory_free"
                )
            del self._starts[bisect.bisect_left(self._starts, address)]
            self.used -= cell.nbytes

    def locate(self, address: int, nbytes: int) -> tuple[int, object]:
        """Return the host address behind a device range and the owner of that memory; refuse an illegal range."""
        with self._lock:
            index = bisect.bisect_right(self._starts, address) - 1
            if index >= 0:
                start = self._starts[index]
                cell = self._cells[start]
                if address + nbytes <= start + cell.nbytes and start not in self._withheld:
                    return address_of(cell) + address - start, cell
        raise BackendError(
            f"illegal address: {nbytes} bytes at {address:#x} are not inside a live allocation",
            backend="sim",
            call=self.device,
            symbol="SIM_ILLEGAL_ADDRESS",
        )


class PinnedHost:
    """Host memory that the simulated queues know: they notice when it is freed before a queued copy has run.

    It is ordinary memory; a copy holds it, so that noticing is all that happens.

    Args:
        limit: bytes that may be pinned at once, as systems have one too.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._starts: list[int] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` poisoned bytes, at the start of a page."""
        with self._lock:
            if self.used + nbytes > self.limit:
                raise OutOfMemoryError(
                    f"{nbytes} bytes asked for, {self.limit - self.used} of {self.limit} may still be pinned",
                    requested=nbytes,
                    limit=self.limit,
                    live=self.used,
                    backend="sim",
                    call="pinned_allocate",
                )
            memory = mmap.mmap(-1, nbytes, **_PRIVATE)
            first = ctypes.c_char.from_buffer(memory)
            address = ctypes.addressof(first)
            del first  # an export would keep the map from going
            ctypes.memset(address, _POISON, nbytes)
            self._maps[address] = memory
            bisect.insort(self._starts, address)
            self.used += nbytes
            return address

    def free(self, address: int) -> None:
        """Forget an allocation; it is unmapped with the last queued copy that uses it."""
        with self._lock:
            memory = self._maps.pop(address, None)
            if memory is None:
                raise BackendError(f"{address:#x} is not the start of pinned memory", backend="sim", call="pinned_free")
            del self._starts[bisect.bisect_left(self._starts, address)]
            self.used -= len(memory)

    def find(self, address: int) -> tuple[int, mmap.mmap] | None:
        """Return the start and the memory of the allocation in which a host address lies, or None."""
        with self._lock:
            index = bisect.bisect_right(self._starts, address) - 1
            if index < 0:
                return None
            start = self._starts[index]
            memory = self._maps[start]
            return (start, memory) if address < start + len(memory) else None

    def require(self, found: tuple[int, mmap.mmap]) -> None:
        """Refuse to go on where what `find` returned has been freed."""
        start, memory = found
        with self._lock:
            if self._maps.get(start) is memory:
                return
        raise BackendError(
            f"illegal address: pinned memory at {start:#x} was freed before the copy that uses it ran",
            backend="sim",
            call="copy",
        )
