"""Pinned host memory: exact sizes, reuse, order, limits, and what the system and the device refuse."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tazza as tz
from tazza.core.supply import SegmentSupply, host_of
from tazza.errors import ArgumentError, BackendError, ClosedError, DeviceLostError, InternalError
from tazza.hot import Account, Block, Pool
from tazza.spi import CopyKind
from tazza.testing import simulate
from tests.litmus.harness import until
from tests.process.children import in_fork
from tests.unit.hot_fakes import FakeRuntime, FakeSource
from tests.unit.shared_world import directory

__all__ = ["directory"]

PAGE = os.sysconf("SC_PAGE_SIZE")
TIMEOUT = 20.0


@pytest.fixture(params=["cpu", "sim:0"])
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with simulate(memory="64MiB"), tz.open(request.param) as made:
        made.memory.pinned.trim()
        yield made


def pages_of(*sizes: int) -> int:
    return sum(-(-size // PAGE) * PAGE for size in sizes)


# Sizes -------------------------------------------------------------------------------------------------------------


def test_sizes_are_exact_to_a_page(ctx: tz.Context) -> None:
    """The sizes that lose most where they are rounded to powers of two."""
    sizes = [2**power + 1 for power in range(8, 17)]
    before = ctx.memory.pinned.reserved
    kept = [ctx.memory.pinned.allocate(size) for size in sizes]
    assert [buffer.nbytes for buffer in kept] == sizes
    assert ctx.memory.pinned.reserved - before == ctx.memory.pinned.live == pages_of(*sizes)


def test_large_odd_sizes_cost_next_to_nothing() -> None:
    with simulate(memory="1GiB"), tz.open("sim:0") as ctx:
        sizes = [2**power + 1 for power in range(16, 26)]
        kept = [ctx.memory.pinned.allocate(size) for size in sizes]
        assert ctx.memory.pinned.reserved / sum(sizes) < 1.001
        assert len(kept) == len(sizes)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40 * PAGE)), max_size=60), st.integers(0, 2**30))
def test_no_more_is_reserved_than_the_peak_and_a_tenth(steps: list[tuple[bool, int]], seed: int) -> None:
    source, draws = FakeSource(), random.Random(seed)
    pool = Pool(source, cached=True, alignment=PAGE, owner=FakeRuntime(), exact=True)
    lane, account, live = pool.new_lane(shared=True), Account("pinned"), list[Block]()
    for give, nbytes in steps:
        if give and live:
            pool.give(live.pop(draws.randrange(len(live))))
        else:
            live.append(pool.take(nbytes, lane, account))
        pool.drain()
        assert pool.live == account.live == pages_of(*(block.requested for block in live))
        assert pool.reserved == sum(source.held.values()) <= pool.live_peak * 1.1
    for block in live:
        pool.give(block)
    pool.trim()
    assert (pool.live, pool.reserved, source.held) == (0, 0, {})


def test_what_is_freed_is_used_again_for_its_own_size_only(ctx: tz.Context) -> None:
    pinned = ctx.memory.pinned
    pinned.allocate(20 * PAGE).close()  # a peak that leaves room for a cache
    pinned.trim()
    first = pinned.allocate(3 * PAGE)
    address = first.address
    first.close()
    smaller = pinned.allocate(2 * PAGE)
    again = pinned.allocate(3 * PAGE - 1)
    assert again.address == address != smaller.address


def test_trim_gives_all_back_that_is_not_live(ctx: tz.Context) -> None:
    pinned = ctx.memory.pinned
    base = pinned.reserved
    kept, dropped = pinned.allocate(PAGE), pinned.allocate(3 * PAGE)
    dropped.close()
    assert pinned.reserved - base == pages_of(4 * PAGE)
    assert pinned.trim() == base + 3 * PAGE
    assert (pinned.reserved, kept.nbytes) == (PAGE, PAGE)


def test_no_bytes_are_fine(ctx: tz.Context) -> None:
    assert np.asarray(ctx.memory.pinned.allocate(0)).size == 0


# Seen by NumPy and by devices --------------------------------------------------------------------------------------


def test_numpy_sees_it_without_a_copy_on_every_device(ctx: tz.Context) -> None:
    buffer = ctx.memory.pinned.allocate(24, dtype="float32", shape=(2, 3), label="staging")
    view = np.asarray(buffer)
    view[:] = [[1, 2, 3], [4, 5, 6]]
    assert np.from_dlpack(buffer).sum() == 21
    assert (buffer.device.memory_domain, buffer.label, buffer.address % PAGE) == ("host", "staging", 0)
    with tz.open("cpu") as cpu:
        assert cpu.launch(lambda x: float(x.sum()), buffer).result(TIMEOUT) == 21


def test_strides_and_slices(ctx: tz.Context) -> None:
    buffer = ctx.memory.pinned.allocate(64, dtype="int32", shape=(2, 3), strides=(32, 8))
    np.asarray(buffer)[:] = 7
    assert np.asarray(buffer[1:]).tolist() == [[7, 7, 7]]
    assert buffer.nbytes == 32 + 16 + 4


def test_it_moves_to_the_device_and_back(ctx: tz.Context) -> None:
    there, back = (ctx.memory.pinned.allocate(800, dtype="float64") for _ in range(2))
    np.asarray(there)[:] = np.arange(100)
    on_device = ctx.allocate(800, dtype="float64")
    ctx.copy(on_device, there)
    ctx.copy(back, on_device)
    assert np.asarray(back).tolist() == list(range(100))  # waits for the stream that filled it


def test_closed_pinned_memory_is_not_handed_out_while_a_queue_reads_it() -> None:
    with simulate(lateness=0), tz.open("sim:0") as ctx:
        source = ctx.memory.pinned.allocate(PAGE, dtype="uint8")
        np.asarray(source[:])[:] = 5  # a slice: the buffer itself stays its own
        target, gate, stream = ctx.allocate(PAGE, dtype="uint8"), tz.HostEvent(), ctx.new_stream()
        stream.wait(ctx.stream)
        stream.wait(gate)
        ctx.copy(target, source, stream=stream)
        address = source.address
        source.close()
        del source
        gc.collect()
        other = ctx.memory.pinned.allocate(PAGE, dtype="uint8")
        assert other.address != address
        assert ctx.memory.pinned.live == 2 * PAGE  # pending counts
        np.asarray(other)[:] = 9
        gate.succeed()
        stream.synchronize(TIMEOUT)
        ctx.stream.wait(stream)
        assert set(ctx.to_numpy(target)) == {5}
        assert ctx.memory.pinned.live == PAGE
        assert ctx.memory.pinned.allocate(PAGE).address == address


def test_freeing_pinned_memory_under_a_queued_copy_loses_the_simulated_device() -> None:
    """What hardware does; the core never frees so early, a mistake in it would be seen."""
    with simulate(lateness=0) as sim:
        driver, info = sim.driver, sim.devices[0].info
        queue, gate = driver.queue_create(info, 0), threading.Event()
        address, target = driver.pinned_allocate(info, PAGE), driver.memory_allocate(info, PAGE)
        driver.enqueue(info, queue, lambda: gate.wait(TIMEOUT))
        driver.copy(info, queue, target, address, PAGE, CopyKind.FROM_HOST)
        driver.pinned_free(info, address)
        gate.set()
        with pytest.raises(DeviceLostError, match=r"pinned memory at .* was freed before"):
            for _ in range(1000):
                driver.event_synchronize(info, driver.event_record(info, queue, False), TIMEOUT)
        with pytest.raises(BackendError, match="not the start of pinned memory"):
            driver.pinned_free(info, address)
        driver.queue_destroy(info, queue)


def test_memory_that_a_lost_device_used_comes_back() -> None:
    with simulate(lateness=0) as sim, tz.open("cpu") as cpu:
        ctx, gate = tz.context("sim:0"), tz.HostEvent()
        stream = ctx.new_stream()
        target = ctx.allocate(PAGE)
        for source in (cpu.allocate(PAGE), ctx.memory.pinned.allocate(PAGE)):
            stream.wait(gate)
            ctx.copy(target, source, stream=stream)
            source.close()
        sim.lose(0, "unplugged")
        gate.succeed()
        assert cpu.allocate(64).nbytes == 64
        assert cpu.memory.stats().live == 0
        assert until(lambda: ctx.memory.pinned.live == 0)  # the stream's thread has to see it
        with pytest.raises(DeviceLostError):
            ctx.memory.pinned.allocate(PAGE)
        ctx.close(abandon=True)


# Accounts ----------------------------------------------------------------------------------------------------------


def test_it_is_charged_to_the_context_and_bound_by_its_limit() -> None:
    with simulate(), tz.open("sim:0", memory_limit=10 * PAGE) as ctx:
        kept = ctx.memory.pinned.allocate(6 * PAGE, label="staging")
        on_device = ctx.allocate(2 * PAGE, label="weights")
        assert ctx.memory.stats().live == 8 * PAGE
        for allocate in (ctx.allocate, ctx.memory.pinned.allocate):
            with pytest.raises(tz.OutOfMemoryError) as caught:
                allocate(3 * PAGE)
            assert caught.value.holders == (("staging", 6 * PAGE, 1), ("weights", 2 * PAGE, 1))
            assert caught.value.limit == 10 * PAGE
        kept.close()
        assert ctx.memory.stats().live == on_device.nbytes


def test_a_limit_is_relieved_by_pinned_memory_that_is_pending() -> None:
    with simulate(lateness=0), tz.open("sim:0", memory_limit=4 * PAGE) as ctx:
        source, target = ctx.memory.pinned.allocate(2 * PAGE), ctx.allocate(2 * PAGE)
        ctx.copy(target, source)
        del source, target
        assert ctx.allocate(4 * PAGE).nbytes == 4 * PAGE


def test_a_budget_that_waits_gets_what_a_queued_copy_holds() -> None:
    with simulate(lateness=2e-3), tz.open("sim:0") as ctx:
        with ctx.memory.budget(4 * PAGE, on_full="wait", timeout=TIMEOUT):
            target = ctx.allocate(2 * PAGE)
            for number in range(10):
                source = ctx.memory.pinned.allocate(2 * PAGE)
                np.asarray(source[:])[:] = number
                ctx.copy(target, source)
                del source
            assert (ctx.to_numpy(target) == 9).all()
            del target


def test_the_account_of_the_host_has_a_heading_for_it(directory: str) -> None:
    with tz.open("cpu") as cpu, tz.open("sim:0") as sim:
        cpu.memory.pinned.trim()
        before = {heading.name: heading.nbytes for heading in cpu.memory.snapshot().headings}
        kept = [cpu.memory.pinned.allocate(5 * PAGE), sim.memory.pinned.allocate(7 * PAGE)]
        kept += [one.memory.shared.allocate(PAGE, label="table") for one in (cpu, sim)]
        snapshot = cpu.memory.snapshot()
        headings = {heading.name: heading.nbytes for heading in snapshot.headings}
        assert headings["pinned"] - before.get("pinned", 0) == 12 * PAGE
        assert headings["shared"] - before.get("shared", 0) == 4 * PAGE
        assert sum(headings.values()) == snapshot.used
        assert {one.label for one in snapshot.holdings} >= {"table"}
        on_device = sim.memory.snapshot()
        assert not {"pinned", "shared"} & {heading.name for heading in on_device.headings}
        assert next(one.live for one in on_device.balances if one.owner == sim.account.path) == 9 * PAGE
        for one in kept:
            one.close()


def test_live_is_this_contexts_and_reserved_is_everybodys() -> None:
    with simulate(), tz.open("sim:0") as one, tz.open("sim:0") as other:
        kept = one.memory.pinned.allocate(PAGE), other.memory.pinned.allocate(2 * PAGE)
        assert (one.memory.pinned.live, other.memory.pinned.live) == (PAGE, 2 * PAGE)
        assert one.memory.pinned.reserved == other.memory.pinned.reserved == 3 * PAGE
        assert len(kept) == 2


def test_hooks_see_it(ctx: tz.Context) -> None:
    from tazza.hot.hooks import Operation, listen

    seen: list[Operation] = []
    stop = listen(seen.append)
    try:
        buffer = ctx.memory.pinned.allocate(100, label="seen")
        block = buffer.block
        buffer.close()
    finally:
        stop()
    assert [(op.kind, op.label, op.nbytes) for op in seen] == [("allocate", "seen", 100), ("free", "seen", 100)]
    assert (seen[0].subject, seen[1].subject) == (buffer, block)


# Mistakes ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused(ctx: tz.Context) -> None:
    allocate = ctx.memory.pinned.allocate
    for bad in (-1, 1.5, "many", None, True, 2**63):
        with pytest.raises(ArgumentError, match="nbytes"):
            allocate(bad)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="label"):
        allocate(8, label=5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="dtype"):
        allocate(8, shape=(2,))
    with pytest.raises(ArgumentError, match="outside"):
        allocate(8, dtype="float32", shape=(3,))
    with pytest.raises(ArgumentError, match="keep"):
        ctx.memory.pinned.trim(-1)
    assert ctx.memory.pinned.live == 0


def test_a_closed_context_allocates_none_and_its_memory_stays() -> None:
    with tz.open("cpu") as ctx:
        pinned, buffer = ctx.memory.pinned, ctx.memory.pinned.allocate(8, dtype="int64")
        np.asarray(buffer)[:] = 3
    with pytest.raises(ClosedError):
        pinned.allocate(8)
    assert np.asarray(buffer).tolist() == [3]
    assert pinned.live == PAGE
    buffer.close()
    with pytest.raises(ClosedError):
        np.asarray(buffer)


def test_a_context_that_is_gone_is_named() -> None:
    ctx = tz.context("cpu")
    memory, buffer = ctx.memory, ctx.memory.pinned.allocate(8)
    assert repr(memory.pinned).startswith("<PinnedMemory of <CPUContext on cpu:0")
    del ctx
    gc.collect()
    with pytest.raises(ClosedError, match="is gone"):
        _ = memory.pinned
    assert np.asarray(buffer).nbytes == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_after_a_fork_old_memory_refuses_and_new_memory_works(ctx: tz.Context) -> None:
    buffer = ctx.memory.pinned.allocate(8, dtype="int64")
    view = np.asarray(buffer)
    view[:] = 4

    def child() -> None:
        for use in (lambda: ctx.memory.pinned.allocate(8), lambda: ctx.memory.pinned.live, lambda: buffer[:1]):
            with pytest.raises(tz.errors.ForkedError):
                use()
        buffer.close()
        assert view.tolist() == [4]
        view[:] = 5  # the child's own copy
        with tz.open(ctx.device.kind) as own:
            assert own.memory.pinned.allocate(100).nbytes == 100

    in_fork(child)
    assert view.tolist() == [4]


def test_a_supply_is_asked_only_by_its_pool() -> None:
    with tz.open("sim:0") as ctx:
        supply = SegmentSupply(ctx._runtime)
        assert host_of(ctx._runtime).name == "cpu:0"
        with pytest.raises(InternalError, match="outside of `providing`"):
            supply.reserve(8, None)


# Threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", "sim:0"])
def test_many_threads(name: str) -> None:
    failures: list[BaseException] = []
    with simulate(lateness=0, memory="64MiB"), tz.open(name) as ctx:
        ctx.memory.pinned.trim()

        def work(seed: int) -> None:
            draws = random.Random(seed)
            try:
                stream, target = ctx.new_stream(), ctx.allocate(4 * PAGE, dtype="uint8")
                for _ in range(60):
                    source = ctx.memory.pinned.allocate(draws.randint(1, 4 * PAGE), dtype="uint8")
                    np.asarray(source)[:] = seed
                    part = target[: source.nbytes]
                    ctx.copy(part, source, stream=stream)
                    del source
                    if draws.random() < 0.2:
                        stream.synchronize(TIMEOUT)
                        assert (ctx.to_numpy(part) == seed).all()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        assert not failures, failures
        ctx.synchronize(TIMEOUT)
        pinned = ctx.memory.pinned
        assert until(lambda: pinned.live == 0)  # a stream's thread lets go of its last submission in its own time
        pinned.trim()
        assert pinned.reserved == 0
