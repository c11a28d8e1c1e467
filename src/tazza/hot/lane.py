# cython: language_level=3, annotation_typing=False, boundscheck=False, wraparound=False
"""Lanes: the memory that is reused in the order of one stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tazza.hot.block import Block
from tazza.hot.heap import Heap
from tazza.hot.process import process
from tazza.memory.sizing import ALWAYS_LARGE

__all__ = ["STACKED", "Lane", "StreamCore"]

STACKED = 1024
"""Small blocks of fewer than this many alignment units are kept on one stack for each size, others in their heap."""

# A wholly free large segment is only broken up by requests of at least half its size; in an exact pool never, so that
# all that is not live can be given back.
_SPLIT = 2


class Lane:
    """Free memory of one home stream: a stack of blocks for each small size over two heaps. Made by ``pool.new_lane``.

    A block that only its home stream used is reused at once by the same stream: the queue orders the two uses. What is
    too large for a stack goes to a heap, but the next request may be for the same size again, as in every loop that
    makes an array and drops it: one such block is kept whole until something else is asked of the heaps, and handed out
    where its heap would have chosen the same bytes.

    Attributes:
        pool: the `Pool` it belongs to.
        small, large: heaps of what is not in the stacks; small blocks do not pin large segments.
        busy: a heap is at work; who sees this was called from inside it.
        shared: all streams of a device that the host orders share it, so no stream counts as home.
        home: returns the long-lived half of the stream it belongs to, or None when that is gone; None if it has none.
        closed: its stream is gone; blocks that still come back go to `heir`, once there is one.
        heir: the lane that took its memory over, or will.
        freed_at: queued work up to this number of the home stream may still use memory that is free here; 0: none.
        blocks: the pool's, of which the stacked ones are some.
        stacks: the top block of each size's stack; `Block.next` leads to the one below.
        kept: the large block that is kept whole, or None.
        again: address of the block that was handed out so last, and
        again_at: how often the heap had changed by then; while both are the same, best fit would choose it again.
        stacked_nbytes: bytes in the stacks and of that block.
    """

    __slots__ = (
        "again",
        "again_at",
        "blocks",
        "busy",
        "closed",
        "freed_at",
        "heir",
        "home",
        "kept",
        "large",
        "pool",
        "shared",
        "shift",
        "small",
        "stacked_nbytes",
        "stacks",
    )

    def __init__(self, pool: Any, shift: int, shared: bool = False) -> None:
        self.pool = pool
        self.blocks: dict[int, Block] = pool.blocks
        self.shift = shift
        self.shared = shared
        self.small = Heap()
        self.large = Heap(1 if pool.exact else _SPLIT)
        self.busy = False
        self.stacks: list[Block | None] = [None] * STACKED
        self.kept: Block | None = None
        self.again = self.again_at = 0
        self.stacked_nbytes = 0
        self.home: Callable[[], Any] | None = None
        self.closed = False
        self.heir: Lane | None = None
        self.freed_at = 0

    def __repr__(self) -> str:
        state = "closed" if self.closed else "shared" if self.shared else "open"
        return f"<Lane, {state}: {self.free_nbytes()} bytes free>"

    def free_nbytes(self) -> int:
        """Return the bytes that could be handed out again."""
        return self.small.free_nbytes + self.large.free_nbytes + self.stacked_nbytes

    def idle_nbytes(self) -> int:
        """Return the bytes of segments that are wholly free."""
        return self.small.idle_nbytes() + self.large.idle_nbytes()

    def pop(self, nbytes: int) -> Block | None:
        """Return a free block of exactly `nbytes` that is not in a heap, or None."""
        index = nbytes >> self.shift
        block = self.stacks[index] if index < STACKED else None
        if block is not None:
            self.stacks[index] = block.next
            block.next = None
            self.stacked_nbytes -= nbytes
            return block
        block = self.kept
        if block is None or block.nbytes != nbytes or self.busy:
            return None
        if (block.address != self.again or self.large.changes != self.again_at) and not self._is_best(block):
            return None  # best fit is not given up for speed: it holds memory together
        self.kept = None
        self.stacked_nbytes -= nbytes
        return block

    def _is_best(self, block: Block) -> bool:
        """Whether best fit would choose the kept block again."""
        self.busy = True  # whoever is called from inside must not take the block meanwhile
        try:
            best = self.large.would_return(block.address, block.nbytes)
        finally:
            self.busy = False
        if best:
            self.again = block.address
            self.again_at = self.large.changes
        return best

    def push(self, block: Block) -> bool:
        """Stack or keep a block that is no longer live; returns False where it belongs into a heap."""
        index = block.nbytes >> self.shift
        if index < STACKED and block.small:
            block.next = self.stacks[index]
            self.stacks[index] = block
        elif block.nbytes >= ALWAYS_LARGE and self.kept is None:
            self.kept = block
        else:
            return False
        self.stacked_nbytes += block.nbytes
        return True

    def current(self) -> Lane:
        """Return the lane that owns the memory now: itself, or the last of its heirs."""
        lane = self
        while lane.heir is not None:
            lane = lane.heir
        return lane

    def stamp(self) -> None:
        """Note how far the home stream has got, as what was queued so far may use a block that is about to come back.

        It may run Python code, so nobody may be able to reach that block.
        """
        if self.shared or self.home is None:
            return
        runner = self.home()
        if runner is not None:
            number: int = runner.submitted
            if number > self.freed_at:
                self.freed_at = number

    def settled(self, number: int) -> None:
        """Take note that work up to `number` is over, where nothing came back since `freed_at` was that."""
        with process.lock:
            if self.freed_at == number:
                self.freed_at = 0

    # The heaps: each step sets `busy`, because the collector may run a finaliser wherever a heap makes an object -----

    def carve(self, nbytes: int, small: bool) -> int:
        """Return the address of `nbytes` bytes; -1 where no chunk is that large or a heap is at work."""
        if self.busy:
            return -1
        heap = self.small if small else self.large
        self.busy = True
        try:
            if not small:
                self._free_kept()
            address: int = heap.allocate(nbytes)
            if address < 0 and self.stacked_nbytes:
                self._empty_stacks()
                address = heap.allocate(nbytes)
        finally:
            self.busy = False
        return address

    def restore(self, block: Block) -> bool:
        """Give a block's bytes back to their heap; False where one is at work."""
        if self.busy:
            return False
        heap = self.small if block.small else self.large
        self.busy = True
        try:
            self.blocks.pop(block.address, None)
            heap.free(block.address, block.nbytes)
        finally:
            self.busy = False
        return True

    def enlist(self, address: int, nbytes: int, granted: int, small: bool) -> bool:
        """Take over a segment of which the first `granted` bytes are taken; False where a heap is at work."""
        if self.busy:
            return False
        heap = self.small if small else self.large
        self.busy = True
        try:
            heap.segments[address] = nbytes
            if nbytes > granted:
                heap.free(address + granted, nbytes - granted)
        finally:
            self.busy = False
        return True

    def withdraw(self, wanted: int) -> Lane | None:
        """Give up the idle segment that yields `wanted` bytes best, as a lane of its own whose heir this one is.

        Returns:
            None where nothing is idle or a heap is at work.
        """
        if self.busy:
            return None
        apart = Lane(self.pool, self.shift)
        apart.closed = True
        apart.heir = self
        self.busy = True
        try:
            self._empty_stacks()
            for heap, target in ((self.large, apart.large), (self.small, apart.small)):
                address = heap.idle_segment(wanted)
                if address >= 0:
                    target.add(address, heap.remove(address))
                    return apart
        finally:
            self.busy = False
        return None

    def inherit(self, other: Lane) -> bool:
        """Take over all memory of a lane that no queue uses any more; False where a heap of either is at work."""
        if self.busy or other.busy:
            return False
        self.busy = other.busy = True
        try:
            other._empty_stacks()
            self.small.absorb(other.small)
            self.large.absorb(other.large)
            other.heir = self
        finally:
            self.busy = other.busy = False
        return True

    def empty(self) -> list[Block]:
        """Take all that is free out of the heaps, as blocks that nobody has yet; none where a heap is at work."""
        taken: list[Block] = []
        if self.busy:
            return taken
        self.busy = True
        try:
            self._empty_stacks()
            for heap in (self.small, self.large):
                while nbytes := heap.chunk_nbytes():
                    block = Block(heap.allocate(nbytes), nbytes, self, self.pool, small=heap is self.small)
                    self.blocks[block.address] = block
                    taken.append(block)
        finally:
            self.busy = False
        return taken

    def unstack(self) -> None:
        """Put the stacked blocks back into the heap, unless one is at work."""
        if self.stacked_nbytes and not self.busy:
            self.busy = True
            try:
                self._empty_stacks()
            finally:
                self.busy = False

    def _free_kept(self) -> None:
        block = self.kept
        if block is not None:
            self.kept = None
            self.stacked_nbytes -= block.nbytes
            self.blocks.pop(block.address, None)
            self.large.free(block.address, block.nbytes)

    def _empty_stacks(self) -> None:
        self._free_kept()
        for index in range(len(self.stacks)):
            while self.stacks[index] is not None:
                block = self.pop(index << self.shift)
                if block is not None:
                    self.blocks.pop(block.address, None)
                    self.small.free(block.address, block.nbytes)


class StreamCore:
    """Compiled base of a stream: what the allocation path reads.

    Attributes:
        lane: the `Lane` from which work on this stream allocates; one that is not shared has the stream as its home.
        generation: the process generation (see `tazza.hot.process`) in which the stream was made.
        arena: where the thread `captor` takes memory from instead, tasks too, while it captures the stream.
        captor: the identity of that thread.

    >>> StreamCore().lane is None
    True
    """

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.generation = process.generation
        self.arena: Lane | None = None
        self.captor = 0
