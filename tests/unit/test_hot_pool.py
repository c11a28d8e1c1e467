"""The pool: stream order, limbo, relief, trimming, lanes, re-entry."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import weakref
from typing import Any

import pytest

from tazza.errors import InternalError, OutOfMemoryError
from tazza.hot import Account, Block, Buffer, ContextCore, Lane, Pool
from tests.unit.hot_fakes import FakeContext, FakeSource, FakeStream, make_pool


def test_a_freed_block_is_reused_on_its_own_stream_at_once() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    first = context.allocate(1000)
    address = first.address
    del first
    assert pool.pending
    assert context.allocate(1000).address == address
    assert source.reserves == 1


def test_a_large_block_that_comes_back_is_kept_for_its_size_and_coalesces_for_any_other() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    lane: Any = context.stream0.lane
    nbytes = 1 << 20
    whole = context.allocate(4 * nbytes)
    start = whole.address
    del whole
    half, third, fourth = (context.allocate(size * nbytes) for size in (2, 1, 1))
    assert [half.address, third.address, fourth.address] == [start, start + 2 * nbytes, start + 3 * nbytes]

    del third
    pool.drain()
    assert lane.kept.nbytes == nbytes == lane.free_nbytes()
    third = context.allocate(nbytes)
    assert (third.address, lane.kept) == (start + 2 * nbytes, None)

    del half, fourth  # the latter is kept, the former in the heap; then both are asked for together
    pool.drain()
    del third
    assert context.allocate(4 * nbytes).address == start
    assert source.reserves == 1


def test_a_kept_block_is_not_handed_out_where_best_fit_would_choose_another() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    lane: Any = context.stream0.lane
    nbytes = 1 << 20
    context.allocate(8 * nbytes)  # and gone: one segment
    first, low, between, high, last = (context.allocate(size * nbytes) for size in (4, 1, 1, 1, 1))
    lowest, kept = low.address, high.address
    del high
    pool.drain()
    assert lane.kept.address == kept
    del low  # to the heap, as a block is kept already
    pool.drain()
    assert context.allocate(nbytes).address == lowest < kept
    assert first.address < lowest < between.address < kept < last.address


def test_lanes_of_closed_streams_go_whatever_they_kept() -> None:
    pool, _ = make_pool()
    heir = FakeContext(pool)

    def lanes() -> int:
        pool.drain()
        gc.collect()
        return sum(type(one) is Lane for one in gc.get_objects())

    def use() -> None:
        context = FakeContext(pool)
        for _ in range(3):
            context.allocate(1 << 20)
            pool.drain()
        assert context.stream0.lane is not None
        pool.close_lane(context.stream0.lane)

    before = lanes()
    for _ in range(5):
        use()
    assert lanes() == before
    assert heir.allocate(64).nbytes == 64


def test_only_what_is_large_whatever_lives_is_kept() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    lane: Any = context.stream0.lane
    for nbytes, kept in ((32 << 10, False), (64 << 10, True)):
        context.allocate(nbytes)
        pool.drain()
        assert (lane.kept is not None) == kept


def test_two_streams_do_not_share_free_memory() -> None:
    pool, _ = make_pool()
    one, two = FakeContext(pool), FakeContext(pool)
    address = one.allocate(1000).address
    assert two.allocate(1000).address != address


def test_memory_used_on_another_stream_waits_for_it_and_counts_as_live() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    other = FakeStream(pool.new_lane())
    buffer = context.allocate(1000)
    address = buffer.address
    other.submit()
    buffer.used_on(other)
    del buffer
    again = context.allocate(1000)
    assert again.address != address
    assert context.account.live == 2048
    assert [(block.nbytes, block.account) for block in pool.waiting()] == [(1024, context.account)]
    other.finish()
    pool.drain()
    assert context.account.live == 1024
    assert context.allocate(1000).address == address


def test_used_on_the_home_stream_or_a_finished_one_costs_nothing() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    other = FakeStream(pool.new_lane())
    buffer = context.allocate(64)
    context.stream0.submit()
    buffer.used_on(context.stream0)
    buffer.used_on(other)
    assert buffer.block.users is None
    for _ in range(3):
        other.submit()
        buffer.used_on(other)
    assert buffer.block.users == [(other, 3)]
    assert buffer._streams() == [context.stream0, other]


def test_an_older_use_does_not_replace_a_newer_one() -> None:
    pool, _ = make_pool()
    buffer = FakeContext(pool).allocate(64)

    class Slow(FakeStream):
        def reached(self, number: int) -> bool:
            if number == 1:  # the newer use is noted by another thread meanwhile
                self.submit()
                buffer.used_on(self)
            return super().reached(number)

    slow = Slow(pool.new_lane())
    slow.submit()
    buffer.used_on(slow)
    assert buffer.block.users == [(slow, 2)]


def test_on_a_shared_lane_every_unfinished_stream_counts() -> None:
    pool, _ = make_pool()
    lane = pool.new_lane(shared=True)
    context, worker = FakeContext(pool, lane=lane), FakeStream(lane)
    buffer = context.allocate(64)
    worker.submit()
    buffer.used_on(worker)
    address = buffer.address
    del buffer
    assert context.allocate(64).address != address
    assert context.account.blocks == 2


def test_alignment_and_empty_blocks() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    empty = context.allocate(0)
    assert (empty.address, empty.nbytes, source.reserves, context.account.blocks) == (0, 0, 0, 1)
    del empty
    pool.drain()
    assert context.account.blocks == 0
    assert [context.allocate(n).address % 64 for n in (1, 63, 65, 1 << 20)] == [0] * 4
    with pytest.raises(InternalError):
        Pool(FakeSource(), cached=True, alignment=48)


def test_a_source_that_returns_unaligned_memory_is_our_bug() -> None:
    pool, source = make_pool()
    source.next_address += 8
    with pytest.raises(InternalError, match="not aligned"):
        FakeContext(pool).allocate(64)
    assert not source.held
    assert pool.reserved == 0


def test_direct_pool_reserves_and_releases_each_block() -> None:
    pool, source = make_pool(cached=False)
    context = FakeContext(pool)
    buffers = [context.allocate(100 * n) for n in range(1, 5)]
    assert source.reserves == 4
    context.stream0.submit()
    buffers.clear()
    pool.drain()
    assert source.releases == 0
    context.stream0.finish()
    pool.drain()
    assert (source.releases, pool.reserved, context.account.live) == (4, 0, 0)


@pytest.mark.parametrize("cached", [True, False])
def test_a_failed_allocation_changes_nothing(cached: bool) -> None:
    pool, source = make_pool(cached, capacity=1 << 16)
    context = FakeContext(pool, limit=1 << 20)
    kept = context.allocate(1 << 12)
    before = context.account.live, context.account.peak, context.account.allocations, pool.reserved
    for nbytes in (1 << 18, 1 << 30):
        with pytest.raises(OutOfMemoryError) as caught:
            context.allocate(nbytes)
        assert caught.value.requested == nbytes
    assert (context.account.live, context.account.peak, context.account.allocations, pool.reserved) == before
    assert context.account.ooms == 2
    assert sum(source.held.values()) == pool.reserved
    assert kept.address in {block.address for block in pool.live_blocks()}


def test_relief_is_tried_and_counted() -> None:
    pool, source = make_pool()
    context = FakeContext(pool, limit=1 << 12)
    kept = [context.allocate(1 << 12)]

    def relieve(nbytes: int, refused: Account | None, attempt: int) -> bool:
        assert refused is context.account
        kept.clear()
        return attempt < 1

    source.relieve = relieve  # type: ignore[method-assign]
    assert context.allocate(1 << 12).nbytes == 1 << 12
    assert pool.retries == 1


def test_limit_counts_granted_bytes_and_is_exact_for_whole_units() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool, limit=1 << 20)
    whole = context.allocate(1 << 20)
    with pytest.raises(OutOfMemoryError) as caught:
        context.allocate(1)
    assert caught.value.limit == whole.nbytes


def test_trim_gives_back_what_is_idle_but_not_behind_queued_work() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    keep = context.allocate(100)
    context.allocate(1 << 20)
    context.stream0.submit()
    assert pool.trim() == 0
    context.stream0.finish()
    assert pool.trim() == 1 << 20
    assert pool.reserved == sum(source.held.values())
    assert sum(lane.idle_nbytes() for lane in pool.lanes) == 0
    assert keep.address in source.held or pool.live == 128


def test_a_closed_lane_hands_its_memory_on_once_quiescent() -> None:
    pool, source = make_pool()
    context, other = FakeContext(pool), FakeContext(pool)
    address = context.allocate(1 << 20).address
    lane = context.stream0.lane
    assert lane is not None
    context.stream0.submit()
    pool.close_lane(lane)
    pool.close_lane(lane)
    assert other.allocate(1 << 20).address != address
    context.stream0.finish()
    pool.drain()
    assert lane.heir is other.stream0.lane
    assert other.allocate(1 << 20).address in (address, *source.held)


def test_blocks_that_outlive_their_lane_and_lanes_without_heirs() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    outliving = context.allocate(5000)
    assert context.stream0.lane is not None
    pool.close_lane(context.stream0.lane)
    del outliving
    pool.drain()
    assert pool.live == 0
    lane = pool.new_lane()
    assert pool.trim() > 0
    assert not source.held
    assert "0 bytes free" in repr(lane)


def test_a_ticket_that_raises_loses_nothing() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    other = FakeStream(pool.new_lane())
    buffer = context.allocate(64)
    other.submit()
    buffer.used_on(other)

    def fail(block: Block) -> None:
        raise RuntimeError("device lost")

    source.retire, retire = fail, source.retire  # type: ignore[method-assign]
    del buffer
    with pytest.raises(RuntimeError, match="device lost"):
        pool.drain()
    assert [block.nbytes for block in pool.waiting()] == [64]
    source.retire = retire  # type: ignore[method-assign]
    other.finish()
    pool.drain()
    assert pool.live == 0


def test_finalisers_that_allocate_inside_the_collector_do_not_deadlock() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)

    class Cycle:
        def __init__(self) -> None:
            self.me = self
            self.buffer = context.allocate(96)

        def __del__(self) -> None:
            context.allocate(96)

    threshold = gc.get_threshold()
    gc.set_threshold(7, 3, 2)
    try:
        kept: list[object] = []
        for step in range(3000):
            Cycle()
            kept.append(context.allocate(64 * (1 + step % 50)))
            if step % 40 == 0:
                kept.clear()
    finally:
        gc.set_threshold(*threshold)
    kept.clear()
    gc.collect()
    pool.drain()
    assert (pool.live, context.account.live, context.account.blocks) == (0, 0, 0)


def test_a_hundred_thousand_planted_finalisers() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    ring: list[object] = []
    ring.append(ring)
    ring.extend(context.allocate(64) for _ in range(100_000))
    del ring
    context.allocate(64)
    gc.collect()
    pool.drain()
    assert (pool.live, context.account.blocks) == (0, 0)


def test_recording_an_event_may_drain_the_pool_again() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    other = FakeStream(pool.new_lane())
    retire = source.retire

    def recording(block: Block) -> object:
        pool.drain()
        return retire(block)

    source.retire = recording  # type: ignore[method-assign,assignment]
    buffers = [context.allocate(64) for _ in range(2000)]
    other.submit()
    for buffer in buffers:
        buffer.used_on(other)
    del buffers, buffer
    pool.drain()
    other.finish()
    pool.drain()
    assert pool.live == 0


def test_streams_of_the_frame_are_used_and_other_contexts_are_not_charged() -> None:
    from tazza.hot import Frame, run_in

    pool, _ = make_pool()
    context, other = FakeContext(pool), FakeContext(pool)
    stream, budget = FakeStream(pool.new_lane()), Account("budget")
    inner = Frame(None, context, stream, budget, None, None)
    on_top = Frame(None, other, other.stream0, other.account, None, inner)
    buffer: Buffer = run_in(on_top, context.allocate, (100,), {})
    assert buffer.block.lane is stream.lane
    assert (budget.live, context.account.live, other.account.live) == (128, 0, 0)
    with context, context:
        assert context.allocate(1).block.account is context.account


def test_refusals_of_a_closed_context_come_from_the_subclass() -> None:
    class Incomplete(ContextCore):
        pass

    pool, _ = make_pool()
    context = FakeContext(pool)
    context.phase = 2
    for refused in (context.__enter__, lambda: context.allocate(1)):
        with pytest.raises(RuntimeError, match="refused"):
            refused()
    with pytest.raises(InternalError, match="no stream or account"):
        Incomplete().allocate(1)
    incomplete = Incomplete()
    incomplete.phase = 1
    with pytest.raises(InternalError, match="must implement _refuse"):
        incomplete.allocate(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_in_a_forked_child_buffers_are_dropped_without_effect() -> None:
    pool, source = make_pool(cached=False)
    context = FakeContext(pool)
    buffer = context.allocate(64)
    child = os.fork()
    if child == 0:
        buffer.close()
        del buffer
        pool.drain()
        pool.trim()
        os._exit(0 if source.releases == 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    buffer.close()
    pool.drain()
    assert source.releases == 1


def test_sixteen_threads_lose_nothing() -> None:
    import random

    pool, source = make_pool()
    shared = Account("shared", 1 << 26)
    failures: list[BaseException] = []
    exchanged: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        context = FakeContext(pool)
        context.account = shared
        held: list[object] = []
        try:
            for _ in range(700):
                held.append(context.allocate(rng.randint(0, 9000), label=f"t{seed}"))
                if rng.random() < 0.6:
                    held.pop(rng.randrange(len(held)))
                if rng.random() < 0.1:
                    exchanged.append(held.pop() if held else None)
                if rng.random() < 0.02:
                    pool.trim()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    live = [block for block in pool.live_blocks() if block.requested]
    ranges = sorted((block.address, block.address + block.nbytes) for block in live)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    exchanged.clear()
    pool.drain()
    pool.trim()
    assert (shared.live, shared.requested, shared.blocks, pool.live, pool.reserved) == (0, 0, 0, 0, 0)
    assert not source.held


def test_a_dropped_buffer_is_weakly_visible_until_then() -> None:
    pool, _ = make_pool()
    buffer = FakeContext(pool).allocate(1)
    reference = weakref.ref(buffer)
    assert reference() is buffer
    assert "1 bytes live" not in repr(pool)
    del buffer
    assert reference() is None
