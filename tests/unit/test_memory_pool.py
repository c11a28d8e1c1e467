"""`MemoryPool` and `Memory` over a fake runtime: statistics, limit, order of relief, the error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tazza.core.memory import Memory
from tazza.core.pool import MemoryPool
from tazza.core.pressure import Pressure
from tazza.errors import ArgumentError, ForkedError, OutOfMemoryError, WaitTimeoutError
from tazza.hot import Account
from tazza.util.liveset import LiveSet
from tests.unit.hot_fakes import FakeContext, FakeSource, FakeStream


class FakeEvent:
    """An event of a `RecordingStream`."""

    def __init__(self, stream: RecordingStream) -> None:
        self.stream, self.number = stream, stream.submitted

    @property
    def is_done(self) -> bool:
        return self.stream.reached(self.number)

    def synchronize(self, timeout: float) -> None:
        self.stream.finish(max(self.stream.done, self.number))


class RecordingStream(FakeStream):
    """Waiting for its events finishes their work."""

    def mark(self) -> FakeEvent:
        return FakeEvent(self)

    def hold(self, number: int) -> FakeEvent | None:
        return None if self.reached(number) else self.mark()

    def unfinished(self) -> FakeEvent | None:
        end = self.mark()
        return None if end.is_done else end


def make(
    kind: str = "caching", capacity: int | None = None, limit: int | None = None
) -> tuple[Any, Memory, FakeSource]:
    source = FakeSource(capacity)
    driver = SimpleNamespace(
        memory_allocate=lambda info, nbytes: source.reserve(nbytes, None)[0],
        memory_free=lambda info, address: source.release(address, source.held[address], None),
    )
    runtime = SimpleNamespace(
        driver=driver,
        info=SimpleNamespace(backend="fake"),
        capabilities=SimpleNamespace(alignment=64),
        name="fake:0",
        pools={},
        reclaim=lambda: 0,
        runners=list,
        lost=lambda: None,
        device=SimpleNamespace(name="fake:0", kind="fake", memory_domain="fake:0"),
        host_addressable=False,
        account=Account("fake:0"),
        pressure=Pressure(),
        workspaces=LiveSet(),
        charges={},
        dropped_charges=[],
        loans=[],
        end_loans=lambda: None,
        trim=lambda: None,
        in_flight={},
        reserving=list,
    )
    runtime.sharing = lambda: [runtime]
    pool = runtime.pools[kind] = MemoryPool(runtime, kind)
    context: Any = FakeContext(pool.pool, limit=limit)
    context.stream0 = RecordingStream(pool.pool.new_lane())
    return context, Memory(context, pool, context.account), source


def test_statistics_count_pending_bytes_as_live() -> None:
    context, memory, _ = make()
    buffer = context.allocate(1000)
    other = RecordingStream(context.pool.new_lane())
    other.submit()
    buffer.used_on(other)
    del buffer
    stats = memory.stats()
    assert (stats.live, stats.pending, stats.allocated_bytes, stats.requested_bytes) == (1024, 1024, 0, 1000)
    other.finish()
    stats = memory.stats()
    assert (stats.live, stats.peak, stats.allocations, stats.frees) == (0, 1024, 1, 1)
    assert stats.reserved_bytes > 0
    assert stats.inactive_split_bytes == 0
    memory.reset_peak()
    assert memory.stats().peak == 0
    assert memory.trim() == stats.reserved_bytes
    assert memory.stats().reserved_bytes == 0


def test_limit_may_not_fall_below_what_is_live() -> None:
    context, memory, _ = make(limit=4096)
    kept = context.allocate(1024)
    with pytest.raises(ArgumentError, match="at least the 1024 bytes"):
        memory.limit = 1023
    memory.limit = kept.nbytes
    assert memory.limit == 1024
    with pytest.raises(OutOfMemoryError):
        context.allocate(1)
    memory.limit = None
    assert context.allocate(1).nbytes == 1


def test_limits_are_written_as_everywhere_else() -> None:
    _, memory, _ = make(limit=4096)
    memory.limit = "2MiB"
    assert memory.limit == 2 << 20
    for bad in ("2 bananas", -1, True, 1.5):
        with pytest.raises(ArgumentError, match="limit"):
            memory.limit = bad  # type: ignore[assignment]
    assert memory.limit == 2 << 20


def test_a_forked_process_is_told_so() -> None:
    context, memory, _ = make()
    context.allocate(64)
    context.pool.generation -= 1  # as the child sees it

    def limit() -> None:
        memory.limit = 5

    for use in (memory.stats, memory.trim, memory.reset_peak, memory.holders, limit):
        with pytest.raises(ForkedError, match="new context"):
            use()
    assert memory.limit is None
    assert "fake" in repr(memory)


def test_a_lost_device_is_asked_for_nothing() -> None:
    context, memory, source = make()
    other = RecordingStream(context.pool.new_lane())
    buffer, kept = context.allocate(1 << 20), context.allocate(1 << 20)
    for stream in (context.stream0, other):
        stream.submit()
        stream.mark = None  # type: ignore[method-assign]  # calling it would raise
    buffer.used_on(other)
    del buffer
    context.stream0.runtime = other.runtime = context.pool.owner
    context.pool.owner.lost = lambda: OSError("fault")
    assert memory.stats().live == 1 << 20
    memory.reset_peak()
    assert memory.trim() == 1 << 20
    assert memory.stats().peak == kept.nbytes
    assert context.allocate(1 << 20).block.made is None
    context.pool.close_lane(context.stream0.lane)
    assert source.releases == 1


def test_reused_memory_is_ordered_by_an_event_unless_the_queue_is_done() -> None:
    context, _, _ = make()
    context.allocate(64)
    context.stream0.submit()
    context.allocate(64)
    buffer = context.allocate(64)
    assert buffer.block.made.number == context.stream0.submitted
    context.stream0.mark = lambda: SimpleNamespace(is_done=True)  # nobody had asked the driver yet
    del buffer
    assert context.allocate(64).block.made is None
    assert context.stream0.lane.freed_at == 0


def test_the_error_names_the_largest_holders_and_what_to_do() -> None:
    context, memory, _ = make(limit=10_000)
    kept = [context.allocate(3000, label="weights"), context.allocate(1000), context.allocate(2000, label="cache")]
    with pytest.raises(OutOfMemoryError, match=r"fake holds .* limit of 10000.*weights.*raise the limit") as caught:
        context.allocate(5000)
    error = caught.value
    assert (error.requested, error.limit, error.live) == (5000, 10_000, sum(b.block.nbytes for b in kept))
    assert error.holders == (("weights", 3008, 1), ("cache", 2048, 1), ("fake (unlabelled)", 1024, 1))
    assert memory.holders(1) == error.holders[:1]
    assert memory.stats().num_ooms == 1
    assert isinstance(error, MemoryError)


def test_a_full_device_is_named() -> None:
    context, _, _ = make(capacity=1 << 16)
    with pytest.raises(OutOfMemoryError, match="fake:0 has no room left") as caught:
        context.allocate(1 << 20)
    assert caught.value.limit is None
    assert isinstance(caught.value.__cause__, OutOfMemoryError)


def test_relief_waits_for_what_other_streams_use() -> None:
    context, memory, _ = make(limit=1024)
    buffer = context.allocate(1024)
    other = RecordingStream(context.pool.new_lane())
    other.submit()
    buffer.used_on(other)
    del buffer
    assert context.allocate(1024).nbytes == 1024
    assert memory.stats().num_alloc_retries == 1


def test_relief_of_a_limit_neither_waits_for_others_nor_empties_caches() -> None:
    context, memory, source = make(limit=1024)
    runtime = context.pool.owner
    other = FakeContext(context.pool)
    other.stream0 = RecordingStream(context.pool.new_lane())
    stranger = other.allocate(1 << 20)
    other.allocate(1 << 19)
    using = RecordingStream(context.pool.new_lane())
    using.submit()
    stranger.used_on(using)
    del stranger
    other.stream0.submit()
    looked: list[int] = []
    runtime.runners = lambda: [SimpleNamespace(reached=looked.append, letting_go=lambda wanted: None)]
    kept = context.allocate(1024)
    with pytest.raises(OutOfMemoryError, match="limit of 1024"):
        context.allocate(64)
    assert (using.done, other.stream0.done, source.releases) == (0, 0, 0)
    assert looked == [0]
    assert memory.stats().live == kept.nbytes


def test_relief_stops_waiting_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    context, _, _ = make(limit=1024)
    monkeypatch.setattr("tazza.core.pool._RELIEF_TIMEOUT", 0.0)
    other = RecordingStream(context.pool.new_lane())
    other.submit()
    buffer = context.allocate(1024)
    buffer.used_on(other)
    del buffer

    def late(event: FakeEvent, timeout: float) -> None:
        assert timeout == 0
        raise WaitTimeoutError("late")

    monkeypatch.setattr(FakeEvent, "synchronize", late)
    with pytest.raises(OutOfMemoryError):
        context.allocate(64)


def test_relief_trims_own_cache_after_its_events() -> None:
    context, _, source = make(capacity=1 << 20)
    context.allocate(1 << 19)
    context.stream0.submit()
    assert context.allocate((1 << 20) - 4096).nbytes == (1 << 20) - 4096
    assert source.releases == 1


def test_relief_trims_the_other_pools_of_the_device() -> None:
    context, memory, source = make(capacity=1 << 20)
    other_pool = context.pool.owner.pools["second"] = MemoryPool(context.pool.owner, "caching")
    other: Any = FakeContext(other_pool.pool)
    other.stream0 = RecordingStream(other_pool.pool.new_lane())
    other.allocate(1 << 19)
    assert context.allocate((1 << 20) - 4096).nbytes == (1 << 20) - 4096
    assert source.releases == 1
    assert other.account.live == 0
    assert "caching" in repr(other_pool)
    assert "fake" in repr(memory)


def test_relief_collects_garbage_and_does_not_recurse() -> None:
    context, _, _ = make(limit=1024)
    nested: list[type[BaseException]] = []

    class Cycle:
        def __init__(self) -> None:
            self.me, self.buffer = self, context.allocate(1024)

        def __del__(self) -> None:
            try:
                context.allocate(4096)
            except OutOfMemoryError as error:
                nested.append(type(error))

    Cycle()
    assert context.allocate(1024).nbytes == 1024
    assert nested == [OutOfMemoryError]


def test_direct_memory_and_unknown_kinds() -> None:
    context, memory, source = make("direct")
    context.allocate(64)
    context.stream0.submit()
    memory.stats()
    assert source.releases == 0
    context.stream0.finish()
    memory.stats()
    assert (memory.pool, source.releases) == ("direct", 1)
    with pytest.raises(ArgumentError, match="caching, direct"):
        MemoryPool(context.pool.owner, "weird")
