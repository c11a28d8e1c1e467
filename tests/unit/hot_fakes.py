"""A source of integers instead of memory, and streams that finish when told to, for tests of the hot package."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

from tazza.errors import ForkedError, OutOfMemoryError
from tazza.hot import Account, Block, ContextCore, Lane, Pool, StreamCore

PAGE = 4096


class FakeTicket:
    """Done when all its streams have reached their numbers."""

    def __init__(self, uses: list[tuple[FakeStream, int]]) -> None:
        self.uses = uses

    @property
    def is_done(self) -> bool:
        return all(stream.reached(number) for stream, number in self.uses)


class FakeSource:
    """Hands out address ranges, checks what comes back and counts the calls.

    Args:
        capacity: bytes that may be reserved at once, or None.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.held: dict[int, int] = {}
        self.next_address = 1 << 20
        self.reserves = self.releases = self.relieved = 0
        self.relief_attempts = 0

    def reserve(self, nbytes: int, lane: Lane | None) -> tuple[int, None]:
        if self.capacity is not None and sum(self.held.values()) + nbytes > self.capacity:
            raise OutOfMemoryError("the fake device is full", requested=nbytes)
        self.reserves += 1
        address = self.next_address
        self.next_address += -(-nbytes // PAGE) * PAGE  # neighbours touch where sizes are whole pages
        self.held[address] = nbytes
        return address, None

    def release(self, address: int, nbytes: int, lane: Lane | None) -> None:
        assert self.held.pop(address) == nbytes
        self.releases += 1

    def retire(self, block: Block) -> FakeTicket | None:
        uses = [(stream, number) for stream, number in block.users or () if not stream.reached(number)]
        if block.island:
            home = self.quiescent(block.lane)
            uses += [] if home is None else home.uses
        return FakeTicket(uses) if uses else None

    def quiescent(self, lane: Lane) -> FakeTicket | None:
        stream = None if lane.home is None else lane.home()
        if stream is None or stream.reached(stream.submitted):
            return None
        return FakeTicket([(stream, stream.submitted)])

    def order(self, lane: Lane) -> FakeTicket | None:
        stream = None if lane.home is None else lane.home()
        if stream is None or stream.reached(lane.freed_at):
            return None
        return FakeTicket([(stream, lane.freed_at)])

    def relieve(self, nbytes: int, refused: Account | None, attempt: int) -> bool:
        self.relieved += 1
        return attempt < self.relief_attempts

    def closed(self, block: Block) -> None:
        """Nothing: these pools are not exact."""

    def exhausted(self, requested: int, refused: Account | None, account: Account) -> Exception:
        account.ooms += 1
        return OutOfMemoryError(
            "exhausted", requested=requested, limit=None if refused is None else refused.limit, live=account.live
        )


class FakeStream(StreamCore):
    """Work is submitted with `submit` and done up to the number given to `finish`.

    Attributes:
        runtime: a device that is well.
    """

    runtime = SimpleNamespace(lost=lambda: None)

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self.lane = lane
        if not lane.shared:
            lane.home = weakref.ref(self)
        self.submitted = self.done = 0

    @property
    def runner(self) -> FakeStream:
        return self

    def submit(self) -> None:
        self.submitted += 1

    def finish(self, number: int | None = None) -> None:
        self.done = self.submitted if number is None else number

    def reached(self, number: int) -> bool:
        return self.done >= number


class FakeRuntime:
    """The device of fake memory; `arena` makes host views work."""

    device = "fake:0"
    host_addressable = False
    capabilities = SimpleNamespace(exports="")

    def __init__(self) -> None:
        self.accesses: list[Any] = []

    def host_access(self, buffer: Any) -> None:
        self.accesses.append(buffer)


class FakeContext(ContextCore):
    """A context on a fake pool."""

    def __init__(self, pool: Pool, *, limit: int | None = None, lane: Lane | None = None) -> None:
        super().__init__()
        self.pool = pool
        self.account = Account("fake", limit)
        self.stream0: FakeStream = FakeStream(pool.new_lane() if lane is None else lane)

    def _refuse(self, action: str) -> None:
        raise ForkedError(f"refused to {action}")


def make_pool(cached: bool = True, capacity: int | None = None) -> tuple[Pool, FakeSource]:
    """Return a pool over a fake source."""
    source = FakeSource(capacity)
    return Pool(source, cached=cached, owner=FakeRuntime()), source
