# cython: language_level=3, annotation_typing=False
"""The pool: from requests to blocks and back, in the order of streams.

A finaliser puts its block on a list (`Pool.give`) and does nothing else. The next allocation takes it back: a block
that only its home stream used goes to its lane at once; one that others used asks the source for a ticket, an event
recorded now on each of those streams, and stays counted as live, "in limbo", until that is done. A block that is handed
out again while its home stream may still use it says so: other streams wait for `Block.made` before they use it.

In the compiled form the steps in between call no Python code, so that no other thread can come in between, and there is
no lock. Uncompiled and free-threaded builds take the process's lock for them. A finaliser that allocates while a heap
is at work (the collector runs where a heap makes a list) sees `Lane.busy` and gets an "island", a segment of its own.
The source is called outside of all this: it may run any code, and may come back into the pool.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from tazza.errors import InternalError, OutOfMemoryError
from tazza.hot import _native
from tazza.hot._source import Source, Ticket
from tazza.hot.account import Account
from tazza.hot.block import Block
from tazza.hot.hooks import Operation, emit, point
from tazza.hot.lane import Lane
from tazza.hot.process import locked, process, wake
from tazza.memory.sizing import segment_nbytes, small_below, surplus

__all__ = ["Pool", "Source", "Ticket"]

LOCKED = locked(__file__)


class Pool:
    """Blocks of one device, cached or direct.

    Args:
        source: where the memory comes from.
        cached: keep freed memory for reuse; False makes every block a reservation of its own.
        alignment: alignment unit in bytes, a power of two.
        owner: the device runtime, for `Block.owner`.
        exact: for costly memory: reserve no more than is asked for; the source is told when a buffer is closed.

    Attributes:
        lanes: the open lanes.
        blocks: every block made from the source's memory, live or stacked, by address.
        live, live_peak: bytes granted, pending ones included; now and at most.
        reserved, reserved_peak: bytes held from the source; now and at most.
        retries: allocations that succeeded only after relief.
    """

    __slots__ = (
        "_pollers",
        "alignment",
        "appended",
        "blocks",
        "cached",
        "closing",
        "exact",
        "generation",
        "given",
        "lanes",
        "limbo",
        "live",
        "live_peak",
        "owner",
        "reserved",
        "reserved_peak",
        "retries",
        "shift",
        "slow",
        "source",
    )

    def __init__(self, source: Source, *, cached: bool, alignment: int = 64, owner: Any = None, exact: bool = False):
        if alignment < 1 or alignment & (alignment - 1):
            raise InternalError(f"alignment {alignment} is not a power of two")
        self.source, self.owner = source, owner
        self.cached, self.exact = cached, exact
        self.alignment, self.shift = alignment, alignment.bit_length() - 1
        self.given: Block | None = None  # compiled: the last of the blocks that finalisers gave, linked by `next`
        self.appended: list[Block] = []  # with a lock: the same as a list, whose append is one atomic step
        self.slow: list[Block] = []  # drained blocks that need the source or the heap
        self.limbo: deque[tuple[Any, Block]] = deque()  # tickets and what they are for
        self.lanes: list[Lane] = []
        self.closing: list[tuple[Lane, Ticket | None]] = []
        self.blocks: dict[int, Block] = {}
        self.live = self.live_peak = self.reserved = self.reserved_peak = self.retries = 0
        self.generation = process.generation
        self._pollers: set[int] = set()

    def __repr__(self) -> str:
        kind = "caching" if self.cached else "direct"
        return f"<Pool, {kind}: {self.live} bytes live of {self.reserved} reserved, {len(self.lanes)} lanes>"

    def take(self, requested: int, lane: Lane, account: Account, label: str | None = None) -> Block:
        """Return a live block of at least `requested` bytes, charged to `account`.

        Raises:
            OutOfMemoryError: neither the pool nor the source has room, or an account refuses, after all relief.
        """
        if self.given is not None or self.appended:
            self._settle_all()
        if self.slow or self.limbo or self.closing:
            self._poll(False)
        block = self._reuse(requested, lane, account)
        if block is None:
            block = self._take_slowly(requested, lane, account)
        block.label = label
        return block

    def give(self, block: Block) -> None:
        """Leave a block to be taken back later; all that a finaliser does, in any thread and inside the collector."""
        if LOCKED:
            self.appended.append(block)
        else:
            block.next = self.given
            self.given = block
        if process.waiters is not None:
            wake()

    def drain(self) -> None:
        """Take back all that finalisers left and every block whose ticket is done; does not wait."""
        if self.generation != process.generation:
            return
        if self.given is not None or self.appended:
            self._settle_all()
        if self.slow or self.limbo or self.closing:
            self._poll(True)

    def trim(self, keep: int = 0) -> int:
        """Give unused segments back to the source while more than `keep` bytes are reserved; returns their bytes.

        Lanes whose stream still has work queued keep theirs.
        """
        if self.generation != process.generation:
            return 0
        self.drain()
        return sum(self._give_back(lane, self.reserved - keep) for lane in tuple(self.lanes))

    def new_lane(self, shared: bool = False) -> Lane:
        """Open a lane; memory that a closed lane left without an heir moves into it."""
        lane = Lane(self, self.shift, shared)
        self.lanes.append(lane)
        self._poll(True)
        return lane

    def close_lane(self, lane: Lane) -> None:
        """Close a lane: its memory moves to another one as soon as its stream's queue no longer uses it."""
        if lane.closed:
            return
        lane.closed = True
        self.lanes.remove(lane)
        self.closing.append((lane, self.source.quiescent(lane)))
        self._poll(True)

    @property
    def pending(self) -> bool:
        """Whether finalisers left blocks that nobody took back yet."""
        return self.given is not None or bool(self.appended)

    def live_blocks(self) -> list[Block]:
        """Return the blocks that are live, pending ones included."""
        with process.lock:
            return [block for block in list(self.blocks.values()) if block.live]

    def waiting(self) -> list[Block]:
        """Return the blocks that were freed but are not reusable yet: a stream, a heap or the source has a say."""
        with process.lock:
            self._settle()
            return [*self.slow, *(block for _, block in self.limbo)]

    def figures(self, account: Account) -> tuple[int, ...]:
        """Pending, live, peak, requested, allocations, blocks of `account`; live, reserved and peak of all: at once."""
        with process.lock:
            self._settle()
            mine = account.live, account.peak, account.requested, account.allocations, account.blocks
            return (self._pending(account), *mine, self.live, self.reserved, self.reserved_peak)

    def _pending(self, account: Account) -> int:
        nbytes = 0  # added up without making an object, so that nothing interrupts compiled code
        for block in self.slow:
            nbytes += block.nbytes * (block.account is account)
        for _, block in self.limbo:
            nbytes += block.nbytes * (block.account is account)
        return nbytes

    # Steps that nothing interrupts ---------------------------------------------------------------------------------

    def _try(self, requested: int, lane: Lane, account: Account) -> Block | None:
        if LOCKED:
            with process.lock:
                return self._serve(requested, lane, account)
        return self._serve(requested, lane, account)

    def _serve(self, requested: int, lane: Lane, account: Account) -> Block | None:
        """Hand out a block of the lane if it has one and the account agrees."""
        granted = (requested + self.alignment - 1) & -self.alignment
        if granted == 0:
            return self._hand_out(Block(0, 0, lane, self), 0, account)
        if not self.cached:
            return None
        block = lane.pop(granted)
        if block is None:
            block = self._carve(granted, lane)
            if block is None:
                return None
        if self._hand_out(block, requested, account) is None:
            self._shelve(block)
            return None
        return block

    def _hand_out(self, block: Block, requested: int, account: Account) -> Block | None:
        if account.charge(block.nbytes, requested) is not None:
            return None
        block.requested = requested
        block.account = account
        block.thread = _native.thread_ident()
        block.live = True
        self.live += block.nbytes
        if self.live > self.live_peak:
            self.live_peak = self.live
        return block

    def _carve(self, granted: int, lane: Lane) -> Block | None:
        small = not self.exact and granted < small_below(self.live_peak)
        address = lane.carve(granted, small)
        if address < 0:
            return None
        block = Block(address, granted, lane, self, small=small)
        self.blocks[address] = block
        return block

    def _shelve(self, block: Block) -> bool:
        """Put a block that is not live back on its lane; False where the heap is at work further up this stack."""
        lane: Lane = block.lane
        if lane.closed:
            return lane.current().restore(block)
        return lane.push(block) or lane.restore(block)

    def _settle_all(self) -> None:
        if LOCKED:
            with process.lock:
                self._settle()
        else:
            self._settle()

    def _settle(self) -> None:
        while self.given is not None or self.appended:
            if self.given is not None:
                block = self.given
                self.given = block.next
                block.next = None
            else:
                try:
                    block = self.appended.pop()
                except IndexError:  # a finaliser or a signal handler further up this stack took it
                    continue
            if block.users is None and block.made is None and point.listeners is None and self._recycle(block):
                continue
            self.slow.append(block)

    def _recycle(self, block: Block) -> bool:
        """Take a freed block that nothing else uses back to the lane; False where that needs the slow path."""
        if block.island or block.nbytes == 0:
            return False
        lane: Lane = block.lane
        if not lane.shared:
            lane.current().stamp()
        if not self._shelve(block):
            return False
        self._count_out(block)
        return True

    def _count_out(self, block: Block) -> None:
        account = block.account
        block.live = False
        block.account = None
        block.users = None
        block.made = None
        self.live -= block.nbytes
        if account is not None:
            account.uncharge(block.nbytes, block.requested)

    # Steps that call the source ------------------------------------------------------------------------------------

    def _reuse(self, requested: int, lane: Lane, account: Account) -> Block | None:
        block = self._try(requested, lane, account)
        if block is not None and lane.freed_at:
            self._order(block, lane)
        return block

    def _order(self, block: Block, lane: Lane) -> None:
        """Say in `Block.made` what uses on other streams have to wait for."""
        number = lane.freed_at
        try:
            block.made = self.source.order(lane)
        except BaseException:
            self.give(block)
            raise
        if block.made is None:
            lane.settled(number)

    def _take_slowly(self, requested: int, lane: Lane, account: Account) -> Block:
        granted = (requested + self.alignment - 1) & -self.alignment
        attempt = 0
        while True:
            self.drain()
            refused = account.refuses(granted)
            cause: OutOfMemoryError | None = None
            if refused is None:
                try:
                    block = self._reuse(requested, lane, account) or self._grow(granted, requested, lane, account)
                except OutOfMemoryError as error:
                    cause = error
                else:
                    if block is not None:
                        self.retries += attempt > 0
                        return block
                    refused = account.refuses(granted)
            if not self.source.relieve(granted, refused, attempt):
                raise self.source.exhausted(requested, refused, account) from cause
            attempt += 1

    def _grow(self, granted: int, requested: int, lane: Lane, account: Account) -> Block | None:
        """Reserve more and hand out the first block of it; None where the account filled up meanwhile."""
        island = not self.cached or lane.current().busy
        nbytes = granted
        if not island:
            peak = max(self.live_peak, self.live + granted)
            nbytes = granted if self.exact else segment_nbytes(granted, peak, self.alignment)
            self._give_back(lane, surplus(self.reserved, nbytes, peak))
        address, nbytes, made = self._reserve(nbytes, granted, lane)
        with process.lock:
            block = self._enlist(address, nbytes, granted, lane, island, made)
            served = None if block is None else self._hand_out(block, requested, account)
        if block is None:  # the heap has come to be at work: another thread's finaliser; the next attempt sees that
            self.source.release(address, nbytes, lane)
            return self._grow(granted, requested, lane, account)
        if served is None:
            self._put_back(block)
        return served

    def _reserve(self, nbytes: int, least: int, lane: Lane) -> tuple[int, int, Ticket | None]:
        try:
            address, made = self.source.reserve(nbytes, lane)
        except OutOfMemoryError:
            if nbytes == least:
                raise
            nbytes = least
            address, made = self.source.reserve(nbytes, lane)
        if address & (self.alignment - 1):
            self.source.release(address, nbytes, lane)
            raise InternalError(f"the source returned {address:#x}, which is not aligned to {self.alignment} bytes")
        return address, nbytes, made

    def _enlist(self, address: int, nbytes: int, granted: int, lane: Lane, island: bool, made: Any) -> Block | None:
        small = not self.exact and granted < small_below(self.live_peak)
        if not (island or lane.current().enlist(address, nbytes, granted, small)):
            return None
        self.reserved += nbytes
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        block = Block(address, granted, lane, self, small=small, island=island)
        block.made = made
        self.blocks[address] = block
        return block

    def _put_back(self, block: Block) -> None:
        """Keep, or give to the source, a block that is not live; the heap may be at work further up this stack."""
        if block.island:
            self.blocks.pop(block.address, None)
            self.reserved -= block.nbytes
            self.source.release(block.address, block.nbytes, block.lane)
        elif block.nbytes:
            with process.lock:
                self._shelve(block)

    def _give_back(self, lane: Lane, least: int) -> int:
        """Release idle segments of at least `least` bytes together, as far as there are; returns how many bytes."""
        if least <= 0 or lane.busy or self.source.quiescent(lane) is not None:
            return 0
        given = 0
        while given < least:
            with process.lock:
                apart = lane.withdraw(least - given)
            nbytes = 0 if apart is None else self._release(apart, lane)
            if nbytes == 0:
                break
            given += nbytes
        return given

    def _release(self, apart: Lane, lane: Lane) -> int:
        """Give a withdrawn segment to the source, unless work queued before it was withdrawn may use it.

        That has to be asked now: until then another thread could allocate from the segment, queue work and free.
        """
        quiet = False
        try:
            quiet = self.source.quiescent(lane) is None
        finally:
            if not quiet:
                self.closing.append((apart, None))
        if not quiet:
            return 0
        address, nbytes = (apart.large.segments or apart.small.segments).popitem()
        self.reserved -= nbytes
        self.source.release(address, nbytes, lane)
        return nbytes

    def _poll(self, everything: bool) -> None:
        """Work off what needs the source. Re-entered by the same thread (a ticket records an event, a record drains),
        it returns at once; other threads may work at the same time, each item belongs to whoever popped it."""
        me = threading.get_ident()
        if me in self._pollers:
            return
        self._pollers.add(me)
        try:
            for _ in range(len(self.slow)):
                try:
                    block = self.slow.pop()
                except IndexError:  # another thread took it
                    break
                self._retire(block)
            self._poll_limbo(everything)
            if self.closing:
                self._poll_closing()
        finally:
            self._pollers.discard(me)

    def _retire(self, block: Block) -> None:
        try:
            ticket = self.source.retire(block) if block.users is not None or block.island else None
        except BaseException:
            self.slow.append(block)
            raise
        if ticket is None:
            self._finish(block)
        else:
            self.limbo.append((ticket, block))

    def _poll_limbo(self, everything: bool) -> None:
        """Free blocks whose tickets are done: up to the first that is not, or all of them."""
        for _ in range(len(self.limbo)):
            try:
                entry = self.limbo.popleft()
            except IndexError:  # another thread took it
                return
            done = False
            try:
                done = entry[0].is_done
            finally:
                if not done:
                    put_back = self.limbo.append if everything else self.limbo.appendleft
                    put_back(entry)
            if done:
                self._finish(entry[1])
            elif not everything:
                return

    def _finish(self, block: Block) -> None:
        lane: Lane = block.lane.current()
        if lane.busy and not block.island:
            self.slow.append(block)
            return
        uses = block.users, block.made  # dropped after the lock: the last reference may end a stream
        operation = None
        if point.listeners is not None:
            home = lane.home
            stream = home() if home is not None else None
            operation = Operation("free", stream, block.label, block.requested, subject=block)
        with process.lock:
            self._count_out(block)
            lane.stamp()
        self._put_back(block)
        del uses
        if operation is not None:
            emit(operation)

    def _poll_closing(self) -> None:
        """Hand on the memory of lanes that no queue uses any more."""
        waiting = []
        try:
            for _ in range(len(self.closing)):
                try:
                    lane, ticket = self.closing.pop()
                except IndexError:  # another thread took it
                    break
                waiting.append((lane, ticket))
                if (ticket is None or ticket.is_done) and self._bequeath(lane):
                    waiting.pop()
        finally:
            self.closing.extend(waiting)

    def _bequeath(self, lane: Lane) -> bool:
        with process.lock:
            heir = lane.current() if lane.heir is not None else self.lanes[0] if self.lanes else None
            return heir is not None and heir.inherit(lane)
