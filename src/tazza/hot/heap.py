# cython: language_level=3, annotation_typing=False
"""Best fit over segments of integer addresses, with splitting and immediate coalescing.

The lowest address among the chunks of the smallest sufficient size is taken, which keeps long-lived chunks together
(Wilson et al., "Dynamic Storage Allocation: A Survey and Critical Review", 1995: address-ordered best fit). Neighbours
are found in two dictionaries, by start and by end, so freeing does not search. Chunks of one size lie in a binary heap
of addresses; one that coalesced is left there and dropped when it comes up, or when such leftovers prevail. Segments
that are wholly free are indexed apart, as only they can be given back; a small request does not break up a large one.

Every step leaves the tables such that an interruption by an asynchronous exception loses free memory at worst, and
never hands a byte out twice: what is taken leaves the tables first, what is given back enters them last.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heapify, heappop, heappush

__all__ = ["Heap"]

_LEFTOVERS = 256  # stale entries and empty sizes that are tolerated in any case
_ADDRESS_BITS = 64
_ADDRESS_MASK = (1 << _ADDRESS_BITS) - 1


class Heap:
    """Hands out ranges of the segments that it was given. Knows integers only; not safe for threads by itself.

    Args:
        split: a wholly free segment may have up to this many times the bytes of the request that breaks it up.

    Attributes:
        segments: nbytes of each segment, by its first address.
        free_nbytes: bytes that are free in all segments.
        changes: how often what is free has changed.

    >>> heap = Heap()
    >>> heap.add(4096, 1024)
    >>> heap.allocate(256), heap.allocate(256)
    (4096, 4352)
    >>> heap.free(4096, 256)
    >>> heap.allocate(512), heap.allocate(128)
    (4608, 4096)
    >>> heap.allocate(4096)
    -1
    """

    __slots__ = (
        "_bins",
        "_ends",
        "_entries",
        "_free",
        "_idle",
        "_sizes",
        "_split",
        "changes",
        "free_nbytes",
        "segments",
    )

    def __init__(self, split: int = 1 << 62) -> None:
        self._split = split
        self.segments: dict[int, int] = {}
        self.free_nbytes = self.changes = 0
        self._free: dict[int, int] = {}  # first address -> nbytes: the truth; the rest are indices to it
        self._ends: dict[int, int] = {}  # address after the last byte -> first address
        self._idle: list[int] = []  # wholly free segments, ascending: nbytes << 64 | address; not in the bins
        self._sizes: list[int] = []  # ascending keys of _bins
        self._bins: dict[int, list[int]] = {}  # nbytes -> binary heap of addresses, some of them stale
        self._entries = 0  # in all bins together

    def allocate(self, nbytes: int) -> int:
        """Return the address of `nbytes` (> 0) bytes, or -1 where no free chunk is large enough."""
        size = self._smallest_chunk(nbytes)
        idle = self._smallest_idle(nbytes)
        if idle >= 0 and (size < 0 or idle >> _ADDRESS_BITS <= size):
            size = idle >> _ADDRESS_BITS
            address = idle & _ADDRESS_MASK
        elif size >= 0:
            address = heappop(self._bins[size])
            self._entries -= 1
        else:
            return -1
        self._remove(address, size)
        if size > nbytes:
            self._insert(address + nbytes, size - nbytes)
        return address

    def free(self, address: int, nbytes: int) -> None:
        """Give back a range that `allocate` returned with the same size; it coalesces with free neighbours."""
        start, end = address, address + nbytes
        if start not in self.segments and start in self._ends:
            start = self._ends[start]
            self._remove(start, address - start)
        if end not in self.segments and end in self._free:
            size = self._free[end]
            self._remove(end, size)
            end += size
        self._insert(start, end - start)

    def would_return(self, address: int, nbytes: int) -> bool:
        """Tell whether `allocate` would hand this range out again, were it given back now; False where in doubt."""
        if address in self._ends or address + nbytes in self._free or self._bins.get(nbytes):
            return False  # it would coalesce, or another chunk is as good
        position = bisect_left(self._idle, nbytes << _ADDRESS_BITS)
        return position == len(self._idle) or self._idle[position] >> _ADDRESS_BITS != nbytes

    def add(self, address: int, nbytes: int) -> None:
        """Take over a segment, wholly free; it never coalesces with another one."""
        self.segments[address] = nbytes
        self._insert(address, nbytes)

    def idle_segment(self, wanted: int) -> int:
        """Return the wholly free segment that gives back `wanted` bytes best: the smallest that is large enough, else
        the largest; -1 where there is none."""
        if not self._idle:
            return -1
        position = bisect_left(self._idle, wanted << _ADDRESS_BITS)
        return self._idle[min(position, len(self._idle) - 1)] & _ADDRESS_MASK

    def remove(self, address: int) -> int:
        """Give up a wholly free segment and return its bytes."""
        size = self.segments[address]
        self._remove(address, size)
        del self.segments[address]
        return size

    def chunk_nbytes(self) -> int:
        """Return the bytes of some free chunk; 0 where there is none."""
        return next(iter(self._free.values()), 0)

    def idle_nbytes(self) -> int:
        """Return the bytes of all wholly free segments."""
        return sum(key >> _ADDRESS_BITS for key in self._idle)

    def absorb(self, other: Heap) -> None:
        """Take over everything of `other`, which is empty afterwards."""
        self.segments.update(other.segments)
        other.segments.clear()
        while other._free:
            address = next(iter(other._free))
            size = other._free[address]
            other._remove(address, size)
            self._insert(address, size)

    def _smallest_chunk(self, nbytes: int) -> int:
        """Return the least sufficient size of which the bins have a chunk, -1 without; the chunk is then on top."""
        sizes = self._sizes
        position = bisect_left(sizes, nbytes)
        while position < len(sizes):
            size = sizes[position]
            chunks = self._bins[size]
            while chunks and (self._free.get(chunks[0]) != size or self.segments.get(chunks[0]) == size):
                heappop(chunks)
                self._entries -= 1
            if chunks:
                return size
            del sizes[position]
            del self._bins[size]
        return -1

    def _smallest_idle(self, nbytes: int) -> int:
        """Return the key of the least wholly free segment that the request may break up, or -1."""
        position = bisect_left(self._idle, nbytes << _ADDRESS_BITS)
        if position == len(self._idle) or self._idle[position] >> _ADDRESS_BITS > nbytes * self._split:
            return -1
        return self._idle[position]

    def _insert(self, address: int, nbytes: int) -> None:
        self._free[address] = nbytes
        self._ends[address + nbytes] = address
        self.free_nbytes += nbytes
        self.changes += 1
        if self.segments.get(address) == nbytes:
            insort(self._idle, nbytes << _ADDRESS_BITS | address)
            return
        chunks = self._bins.get(nbytes)
        if chunks is None:
            self._bins[nbytes] = [address]
            insort(self._sizes, nbytes)
        else:
            heappush(chunks, address)
        self._entries += 1
        if self._entries + len(self._sizes) > 3 * len(self._free) + _LEFTOVERS:
            self._index()

    def _remove(self, address: int, nbytes: int) -> None:
        del self._free[address]
        if self.segments.get(address) == nbytes:
            del self._idle[bisect_left(self._idle, nbytes << _ADDRESS_BITS | address)]
        del self._ends[address + nbytes]
        self.free_nbytes -= nbytes
        self.changes += 1

    def _index(self) -> None:
        """Make the bins anew, without leftovers."""
        self._bins.clear()
        for address, size in self._free.items():
            if self.segments.get(address) != size:
                self._bins.setdefault(size, []).append(address)
        for chunks in self._bins.values():
            heapify(chunks)
        self._sizes[:] = sorted(self._bins)
        self._entries = len(self._free) - len(self._idle)
