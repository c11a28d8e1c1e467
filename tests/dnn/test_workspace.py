"""Workspaces against a model: leases never overlap, memory is counted, capped, trimmed, and freed in order."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import tazza as tz
from tazza.dnn import DnnState, DnnWorkspace, DnnWrapper, Lease
from tazza.errors import ArgumentError, ClosedError, OutOfMemoryError
from tazza.testing import simulate
from tazza.testing.faults import Fault, inject
from tests.conftest import FULL
from tests.dnn.forms import DEVICES, QUEUED, library_of, wrapper_of
from tests.dnn.pattern import TIMEOUT, PatternLibrary

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(params=DEVICES)
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with simulate(devices=1, memory="8MiB", lateness=0), tz.open(request.param) as ctx:
        yield ctx


def workspace_of(ctx: tz.Context, cap: int | None = None) -> DnnWorkspace:
    stream = ctx.own_stream
    assert stream.lane is not None
    return DnnWorkspace(stream.runtime, stream.lane, "workspace of a test", cap=cap)


def headed(ctx: tz.Context) -> int:
    """Bytes under the heading of workspaces."""
    gc.collect()
    ctx.memory.stats()
    return next(one.nbytes for one in ctx.memory.snapshot().headings if one.name == "workspaces")


# One by one --------------------------------------------------------------------------------------------------------


def test_sizes_that_vary_a_little_share_a_chunk(ctx: tz.Context) -> None:
    workspace = workspace_of(ctx)
    for nbytes in (100_000, 110_000, 65_537, 1, 0):
        workspace.get(nbytes).release()
    assert workspace.nbytes == workspace.peak == 114_688  # seven quarters of 64 KiB
    workspace.get(200_000).release()
    assert workspace.nbytes == 229_376, "the smaller chunk went once there was a larger one"
    assert workspace.reset() == 229_376
    assert (workspace.nbytes, workspace.peak) == (0, 114_688 + 229_376)


@pytest.mark.parametrize("nbytes", [1, 65_536, 65_537, 10**6, 2**20, 2**20 + 1, 10**7])
def test_a_step_is_at_most_a_quarter(nbytes: int) -> None:
    with tz.open("cpu") as ctx:
        workspace = workspace_of(ctx)
        with workspace.get(nbytes) as lease:
            assert lease.nbytes == nbytes
            assert lease.address % 64 == 0
            assert max(nbytes, 1) <= workspace.nbytes <= max(65_536, 1.25 * nbytes)
        workspace.reset()


def test_what_is_over_refuses_its_address(ctx: tz.Context) -> None:
    workspace = workspace_of(ctx)
    lease = workspace.get(100)
    assert lease.address
    lease.release()
    lease.release()
    assert lease.is_over
    with pytest.raises(ClosedError, match="another call's"):
        lease.address  # noqa: B018
    with workspace.get(100) as again:
        del lease
        assert not again.is_over
        assert workspace.leased == workspace.nbytes
    assert workspace.leased == 0


def test_a_lease_that_is_dropped_comes_back(ctx: tz.Context) -> None:
    workspace = workspace_of(ctx)
    lease = workspace.get(100)
    kept = workspace.get(100)
    assert kept.address != lease.address
    del lease
    assert workspace.leased == kept.nbytes - 100 + 65_536


def test_a_cap_is_kept_and_says_what_to_do(ctx: tz.Context) -> None:
    workspace = workspace_of(ctx, cap=150_000)
    first = workspace.get(64 * KIB)
    with pytest.raises(
        OutOfMemoryError, match=r"65536 of its cap of 150000; raise the cap, or .*max_workspace"
    ) as caught:
        workspace.get(100_000)
    assert (caught.value.requested, caught.value.limit, caught.value.live) == (100_000, 150_000, 65_536)
    second = workspace.get(84_000)
    assert workspace.nbytes == 150_000, "the last chunk takes what the cap leaves"
    first.release()
    second.release()
    with workspace.get(150_000):
        assert workspace.nbytes == 150_000, "under a cap the old goes before the new"
    with pytest.raises(ArgumentError):
        workspace.get(-1)


def test_a_failed_allocation_changes_nothing() -> None:
    with inject("cpu", [Fault("memory_allocate", nth, OutOfMemoryError("injected")) for nth in range(2, 20)]):
        with tz.open("cpu") as ctx:
            workspace = workspace_of(ctx)
            kept = workspace.get(100)
            before = workspace.nbytes
            with pytest.raises(OutOfMemoryError):
                workspace.get(50 * MIB)
            assert (workspace.nbytes, workspace.leased) == (before, before)
            assert kept.address


def test_it_has_its_own_line_in_the_account(ctx: tz.Context) -> None:
    before = headed(ctx)
    workspace = workspace_of(ctx)
    with workspace.get(100_000):
        assert headed(ctx) - before == 114_688
        assert ctx.memory.stats().live == 0, "it is the device's, and no context's"
        holding = [one for one in ctx.memory.snapshot().holdings if one.label == "workspace of a test"]
        assert [one.nbytes for one in holding] == [114_688]
    workspace.reset()
    assert headed(ctx) == before


# In the order of relief --------------------------------------------------------------------------------------------


def test_relief_takes_what_is_not_leased_before_it_asks_handlers() -> None:
    asked: list[int] = []
    with simulate(devices=1, memory="8MiB", lateness=0), tz.open("sim:0") as ctx:
        workspace = workspace_of(ctx)
        kept, spare = workspace.get(1 * MIB), workspace.get(3 * MIB)
        spare.release()
        remove = ctx.memory.on_pressure(lambda nbytes: asked.append(nbytes))
        buffer = ctx.allocate(6 * MIB)
        assert (workspace.nbytes, asked) == (1 * MIB, [])
        with pytest.raises(OutOfMemoryError):
            ctx.allocate(4 * MIB)
        assert (workspace.nbytes, len(asked)) == (1 * MIB, 1), "what is leased stays, and the handlers come after"
        assert kept.address
        remove()
        del buffer


def test_a_chunk_that_queued_work_uses_goes_to_nobody_else_before() -> None:
    with simulate(devices=1, memory="8MiB", lateness=0), tz.open(QUEUED) as ctx:
        wrapper, gate, stream = wrapper_of(ctx, library_of(ctx, "queued")), tz.HostEvent(), ctx.new_stream()
        result = ctx.asarray(np.zeros(65_536, np.uint8), copy=True)

        def use(state: DnnState) -> None:
            with state.workspace.get(65_536) as lease:
                state.stream.wait(gate)
                ctx.fill(lease.chunk, 7)
                ctx.copy(result, lease.chunk)

        with ctx.on(stream):
            wrapper.with_state(0, use)
        assert wrapper.trim() == 65_536
        others = [ctx.allocate(65_536) for _ in range(8)]
        for other in others:
            ctx.fill(other, 1)
        ctx.own_stream.synchronize(TIMEOUT)
        gate.succeed()
        stream.synchronize(TIMEOUT)
        assert (ctx.to_numpy(result) == 7).all()
        assert all((ctx.to_numpy(other) == 1).all() for other in others)
        wrapper.close(TIMEOUT)


# Against a model ---------------------------------------------------------------------------------------------------


class WorkspaceMachine(RuleBasedStateMachine):
    """Leases are got, released, dropped; memory is trimmed, capped, and sometimes not to be had."""

    leases = Bundle("leases")

    @initialize(cap=st.sampled_from([None, 300_000, 1_000_000]), faults=st.sets(st.integers(1, 20), max_size=4))
    def start(self, cap: int | None, faults: set[int]) -> None:
        plan = [Fault("memory_allocate", nth, OutOfMemoryError("injected")) for nth in faults]
        self.injected = inject("cpu", plan)
        self.injected.__enter__()
        self.ctx = tz.context("cpu", pool="direct")
        self.cap = cap
        self.workspace = workspace_of(self.ctx, cap)
        self.out: dict[int, tuple[Lease, int, int]] = {}

    @rule(target=leases, nbytes=st.one_of(st.integers(0, 400_000), st.integers(60_000, 140_000)))
    def get(self, nbytes: int) -> Any:
        before = self.workspace.leased
        try:
            lease = self.workspace.get(nbytes)
        except OutOfMemoryError:
            assert self.workspace.leased == before
            return multiple()
        first, last = lease.address, lease.address + nbytes
        for _, begin, end in self.out.values():
            assert last <= begin or end <= first, "two leases overlap"
        self.out[id(lease)] = lease, first, last
        return lease

    @rule(lease=consumes(leases), drop=st.booleans())
    def give_back(self, lease: Lease, drop: bool) -> None:
        del self.out[id(lease)]
        lease.release()
        if not drop:
            lease.release()

    @rule(keep=st.sampled_from([0, 100_000]))
    def trim(self, keep: int) -> None:
        held, leased = self.workspace.nbytes, self.workspace.leased
        given = self.workspace.trim(keep)
        assert self.workspace.nbytes == held - given
        assert self.workspace.nbytes == leased or self.workspace.nbytes <= max(keep, leased)

    @invariant()
    def all_is_counted(self) -> None:
        if not hasattr(self, "workspace"):
            return
        workspace = self.workspace
        assert 0 <= workspace.leased <= workspace.nbytes <= workspace.peak
        assert self.cap is None or workspace.nbytes <= self.cap
        assert workspace.leased >= sum(end - begin for _, begin, end in self.out.values())

    def teardown(self) -> None:
        if hasattr(self, "workspace"):
            for lease, _, _ in self.out.values():
                lease.release()
            assert self.workspace.leased == 0
            self.workspace.reset()
            assert self.workspace.nbytes == 0
            self.ctx.close()
            self.injected.__exit__(None, None, None)


TestAgainstAModel = WorkspaceMachine.TestCase
TestAgainstAModel.settings = settings(max_examples=400 if FULL else 60, stateful_step_count=40, deadline=None)


def test_memory_stays_flat() -> None:
    """Seeded calls of many sizes in changing states: what is held in the end is what the first thousands held."""
    calls, seed = (100_000 if FULL else 10_000), 11
    library, draws = PatternLibrary("flat"), random.Random(seed)
    with tz.open("cpu") as ctx:
        wrapper = DnnWrapper(ctx, library)
        held: list[int] = []

        def use(state: DnnState) -> None:
            with state.workspace.get(draws.randrange(1 << draws.randrange(4, 21))) as lease:
                assert lease.address
                if draws.random() < 0.2:
                    with state.workspace.get(draws.randrange(100_000)) as second:
                        assert second.address != lease.address

        for call in range(calls):
            wrapper.with_state(draws.randrange(4), use)
            if call % (calls // 20) == 0:
                held.append(sum(info.workspace_bytes for info in wrapper.states()))
        half = len(held) // 2
        slope = (held[-1] - held[half]) / (calls / 2)
        print(f"seed {seed}: {held[-1]} bytes held after {calls} calls, slope {slope:+.3f} bytes a call")
        assert held[-1] <= 4 * 2 * 1.25 * MIB
        assert max(held[half:]) - min(held[half:]) <= 1.25 * MIB, held
        wrapper.close()
        assert sum(info.leased_bytes for info in wrapper.states()) == 0
