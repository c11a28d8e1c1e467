"""The pool: reuse before the home stream is done, heaps at work, segments that are used while they are given back."""

from __future__ import annotations

import itertools

import pytest

from tazza.hot import COMPILED, Buffer, Lane
from tazza.hot.heap import Heap
from tests.unit.hot_fakes import FakeContext, FakeStream, FakeTicket, make_pool


def test_memory_that_its_home_stream_may_still_use_says_what_to_wait_for_elsewhere() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    lane = context.stream0.lane
    assert lane is not None
    for nbytes in (1000, 1 << 20):  # from a stack, from a heap
        first = context.allocate(nbytes)
        assert first.block.made is None
        context.stream0.submit()
        del first
        second = context.allocate(nbytes)
        assert lane.freed_at == context.stream0.submitted
        assert second.block.made is not None
        assert not second.block.made.is_done
        context.stream0.finish()
        assert second.block.made.is_done
        assert context.allocate(64).block.made is None
        assert lane.freed_at == 0
        block = second.block
        del second
        pool.drain()
        assert (block.live, block.made) == (False, None)


def test_memory_that_waited_for_another_stream_says_so_too() -> None:
    pool, _ = make_pool()
    context = FakeContext(pool)
    other = FakeStream(pool.new_lane())
    buffer = context.allocate(1000)
    for stream in (context.stream0, other):
        stream.submit()
    buffer.used_on(other)
    del buffer
    other.finish()
    assert context.allocate(1000).block.made.uses == [(context.stream0, 1)]


def test_fresh_memory_and_shared_lanes_need_no_order() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    shared = FakeContext(pool, lane=pool.new_lane(shared=True))
    context.stream0.submit()
    context.allocate(64)
    assert context.allocate(1 << 20).block.made is None
    source.order = None  # type: ignore[method-assign,assignment]
    shared.stream0.submit()
    shared.allocate(64)
    assert shared.allocate(64).block.made is None
    assert shared.stream0.lane is not None
    assert shared.stream0.lane.freed_at == 0


def test_a_block_whose_order_cannot_be_had_goes_back() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    context.stream0.submit()
    context.allocate(64)

    def fail(lane: Lane) -> None:
        raise RuntimeError("no event")

    source.order = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no event"):
            context.allocate(64)
    pool.drain()
    assert (pool.live, context.account.live, source.reserves) == (0, 0, 1)


def test_trim_keeps_what_another_thread_used_while_it_looked() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    address = context.allocate(1 << 20).address
    quiescent, looks = source.quiescent, itertools.count()

    def gap(lane: Lane) -> FakeTicket | None:
        ticket = quiescent(lane)
        if next(looks) == 0:
            context.allocate(1 << 20)
            context.stream0.submit()
            pool.drain()
        return ticket

    source.quiescent = gap  # type: ignore[method-assign]
    assert pool.trim() == 0
    assert (source.releases, pool.reserved) == (0, 1 << 20)
    assert context.allocate(1 << 20).address == address
    context.stream0.finish()
    assert pool.trim() == 1 << 20


def test_a_segment_whose_use_cannot_be_told_is_kept() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    address = context.allocate(1 << 20).address
    quiescent, looks = source.quiescent, itertools.count()

    def fail(lane: Lane) -> FakeTicket | None:
        if next(looks) == 1:
            raise RuntimeError("device lost")
        return quiescent(lane)

    source.quiescent = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="device lost"):
        pool.trim()
    assert context.allocate(1 << 20).address == address
    assert pool.reserved == sum(source.held.values()) == 1 << 20


def test_a_heap_at_work_is_left_alone() -> None:
    pool, source = make_pool()
    context, other = FakeContext(pool), FakeContext(pool)
    lane, heir = context.stream0.lane, other.stream0.lane
    assert lane is not None
    assert heir is not None
    block = context.allocate(1 << 20).block
    pool.drain()
    lane.busy = True
    assert lane.carve(64, True) == -1
    assert lane.withdraw(1) is None
    assert not lane.enlist(1 << 40, 1 << 20, 64, False)
    assert not lane.restore(block)
    assert not heir.inherit(lane)
    assert pool.trim() == 0
    pool.close_lane(lane)
    assert lane.heir is None
    lane.busy = False
    pool.drain()
    assert lane.heir is heir
    assert pool.trim() == 1 << 20
    assert not source.held


@pytest.mark.skipif(COMPILED, reason="compiled heaps cannot be interrupted at a chosen place")
@pytest.mark.parametrize("step", ["idle_segment", "remove", "add", "free", "absorb", "allocate", "would_return"])
def test_a_finaliser_that_allocates_inside_a_heap_gets_memory_of_its_own(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, source = make_pool()
    context, other = FakeContext(pool), FakeContext(pool)
    kept: list[Buffer] = []
    original = getattr(Heap, step)
    inside = False

    lanes = context.stream0.lane, other.stream0.lane

    def interrupted(heap: Heap, *arguments: int) -> object:
        nonlocal inside
        assert all(lane is not None and (lane.busy or heap not in (lane.small, lane.large)) for lane in lanes)
        if not inside:  # the finaliser's own allocation is not interrupted again
            inside = True
            for nbytes in (64, 1 << 20):
                kept.append(context.allocate(nbytes))
                other.allocate(nbytes)
            inside = False
        return original(heap, *arguments)

    monkeypatch.setattr(Heap, step, interrupted)
    for nbytes in (64, 5000, 1 << 20, 64):
        kept.append(context.allocate(nbytes))
        context.allocate(nbytes)
        pool.trim()
    assert context.stream0.lane is not None
    pool.close_lane(context.stream0.lane)
    pool.drain()
    monkeypatch.undo()
    ranges = sorted((buffer.address, buffer.address + buffer.block.nbytes) for buffer in kept)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert pool.reserved == sum(source.held.values())
    kept.clear()
    pool.drain()
    pool.trim()
    assert (pool.live, pool.reserved, source.held) == (0, 0, {})


def test_a_heap_that_comes_to_be_at_work_while_more_is_reserved() -> None:
    pool, source = make_pool()
    context = FakeContext(pool)
    lane, reserve = context.stream0.lane, source.reserve
    assert lane is not None

    def busy(nbytes: int, asking: Lane | None) -> tuple[int, None]:
        lane.busy = True
        return reserve(nbytes, asking)

    source.reserve = busy  # type: ignore[assignment, method-assign]
    buffer = context.allocate(64)
    lane.busy = False
    assert buffer.block.island
    assert pool.reserved == sum(source.held.values()) == 64
