"""The pool against a model, on both kinds, with streams that finish when the machine says so."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from tazza.errors import OutOfMemoryError
from tazza.hot import Account, Block, Pool
from tests.unit.hot_fakes import FakeSource, FakeStream

FULL = os.environ.get("TAZZA_FULL") == "1"
ALIGNMENT = 64


@dataclass
class Given:
    """A block that was given back, as the model remembers it."""

    block: Block
    uses: list[tuple[FakeStream, int]]
    account: Account
    nbytes: int
    requested: int
    drained: bool = False


class PoolMachine(RuleBasedStateMachine):
    """Blocks are held here and given back as finalisers do; the model is what is held plus what is in use."""

    blocks = Bundle("blocks")
    streams = Bundle("streams")

    @initialize(
        cached=st.booleans(),
        limit=st.sampled_from([None, 4096, 200_000]),
        capacity=st.sampled_from([None, 1 << 18]),
    )
    def start(self, cached: bool, limit: int | None, capacity: int | None) -> None:
        self.source = FakeSource(capacity)
        self.cached = cached
        self.pool = Pool(self.source, cached=cached, alignment=ALIGNMENT)
        self.top = Account("top", limit)
        self.accounts = [self.top, Account("small", 50_000, self.top), Account("free", None, self.top)]
        self.held: list[Block] = []
        self.given: list[Given] = []
        self.past: list[tuple[range, FakeStream, int]] = []  # bytes given back, and how far their home stream was then
        self.allocated = 0
        self.open: list[FakeStream] = []
        self.all_streams: list[FakeStream] = []

    @rule(target=streams)
    def make_stream(self) -> FakeStream:
        stream = FakeStream(self.pool.new_lane())
        self.open.append(stream)
        self.all_streams.append(stream)
        return stream

    @rule(
        target=blocks,
        stream=streams,
        account=st.integers(0, 2),
        nbytes=st.one_of(st.integers(0, 700), st.integers(0, 40_000), st.just(1 << 20)),
    )
    def take(self, stream: FakeStream, account: int, nbytes: int) -> Any:
        if stream not in self.open:
            return None
        lane = stream.lane
        assert lane is not None
        try:
            block = self.pool.take(nbytes, lane, self.accounts[account], f"block {self.allocated}")
        except OutOfMemoryError:
            self.forget_returned()
            granted = -(-nbytes // ALIGNMENT) * ALIGNMENT
            refused = self.accounts[account].refuses(granted) is not None
            assert refused or self.source.capacity is not None, "refused although there was room"
            return None
        self.allocated += 1
        assert block.address % ALIGNMENT == 0
        assert nbytes <= block.nbytes < nbytes + ALIGNMENT
        assert all(
            block.address + block.nbytes <= other.address or other.address + other.nbytes <= block.address
            for other in self.held
            if other.nbytes and block.nbytes
        )
        for entry in self.given:  # whatever a stream still uses must not be handed out
            other = entry.block
            if entry.nbytes and any(not user.reached(number) for user, number in entry.uses):
                assert block.address + block.nbytes <= other.address or other.address + entry.nbytes <= block.address
        self.check_order(block, stream)
        self.held.append(block)
        return block

    @rule(block=consumes(blocks), users=st.lists(streams, max_size=2))
    def give(self, block: Block | None, users: list[FakeStream]) -> None:
        if block is None:
            return
        uses: list[tuple[FakeStream, int]] = []
        for stream in users:
            if stream.lane is not block.lane and all(stream is not user for user, _ in uses):
                stream.submit()
                uses.append((stream, stream.submitted))
        if uses:
            block.users = list(uses)
        self.held.remove(block)
        account = block.account
        assert account is not None
        self.given.append(Given(block, uses, account, block.nbytes, block.requested))
        home = None if block.lane.home is None else block.lane.home()
        if home is not None:
            self.past.append((range(block.address, block.address + block.nbytes), home, home.submitted))
        self.pool.give(block)

    @rule(stream=streams)
    def submit(self, stream: FakeStream) -> None:
        stream.submit()

    @rule(stream=streams)
    def finish(self, stream: FakeStream) -> None:
        stream.finish()

    @rule()
    def drain(self) -> None:
        self.pool.drain()

    @rule(keep=st.sampled_from([0, 10_000]))
    def trim(self, keep: int) -> None:
        before = self.pool.reserved
        assert self.pool.trim(keep) <= before

    @precondition(lambda self: len(self.open) > 1)
    @rule(stream=streams)
    def close(self, stream: FakeStream) -> None:
        if stream in self.open and stream.lane is not None:
            self.open.remove(stream)
            self.pool.close_lane(stream.lane)

    @invariant()
    def statistics_equal_the_model(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.drain()
        self.forget_returned()
        for index, account in enumerate(self.accounts):
            mine = [b for b in self.held if self.counts(b.account, account)]
            late = [g for g in self.given if self.counts(g.account, account)]
            assert account.live == sum(b.nbytes for b in mine) + sum(g.nbytes for g in late), index
            assert account.requested == sum(b.requested for b in mine) + sum(g.requested for g in late)
            assert account.blocks == len(mine) + len(late)
            assert account.live <= account.peak <= account.total_allocated
            assert account.limit is None or account.peak <= account.limit
        assert self.top.allocations == self.allocated
        assert self.pool.live == self.top.live
        assert self.pool.reserved == sum(self.source.held.values()) >= self.pool.live
        assert sum(block.nbytes for block in self.pool.waiting()) == sum(g.nbytes for g in self.given)

    def check_order(self, block: Block, stream: FakeStream) -> None:
        """Memory that its home stream may still use goes to that stream only, with the event to wait for elsewhere."""
        self.past = [entry for entry in self.past if not entry[1].reached(entry[2])]
        for addresses, home, number in self.past:
            if block.address < addresses.stop and addresses.start < block.address + block.nbytes:
                assert home is stream
                assert block.made is not None
                assert any(user is home and upto >= number for user, upto in block.made.uses)

    def forget_returned(self) -> None:
        """Drop from the model what the pool has to have taken back: all that no unfinished stream uses."""
        self.given = [entry for entry in self.given if self.in_use(entry)]

    def in_use(self, entry: Given) -> bool:
        """Tell whether streams still use a block; a direct one leaves the pool, so its home stream counts too."""
        if not entry.drained:
            entry.drained = True
            home = None if entry.block.lane.home is None else entry.block.lane.home()
            if home is not None and entry.nbytes and not self.cached:
                entry.uses.append((home, home.submitted))
        entry.uses = [(stream, number) for stream, number in entry.uses if not stream.reached(number)]
        return bool(entry.uses)

    @staticmethod
    def counts(account: Account | None, above: Account) -> bool:
        while account is not None and account is not above:
            account = account.parent
        return account is above

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for block in self.held:
            self.pool.give(block)
        for stream in self.all_streams:
            stream.finish()
        self.pool.drain()
        self.pool.new_lane()
        self.pool.trim()
        assert (self.pool.live, self.top.live, self.top.blocks, self.pool.reserved) == (0, 0, 0, 0)
        assert not self.source.held


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=1000 if FULL else 80, stateful_step_count=60 if FULL else 40)
