"""Contexts made inside a budget or another context: one limit binds them all, and every figure adds up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, ClosedError, OutOfMemoryError, WrongDeviceError
from tazza.hot import HOOKED

MIB = 1 << 20


@pytest.fixture
def host() -> Iterator[tz.Context]:
    with tz.open("cpu", memory_limit="64MiB") as ctx:
        yield ctx


def test_one_budget_binds_contexts_of_two_devices(host: tz.Context) -> None:
    other = tz.device("cpu").split(1)[0]
    budget = host.memory.budget("1MiB", name="both")
    with tz.open("cpu", within=budget) as left, tz.open(other, within=budget) as right:
        kept = left.allocate(600 << 10, label="left's")
        with pytest.raises(OutOfMemoryError, match="both holds") as info:
            right.allocate(600 << 10)
        assert ("left's", 600 << 10, 1) in info.value.holders
        assert left.memory.stats().live == budget.live == host.memory.stats().live == kept.nbytes
        assert right.memory.stats().live == 0
        del kept
        assert right.allocate(600 << 10).nbytes == budget.live


def test_a_context_counts_in_another_and_keeps_its_own_limit(host: tz.Context) -> None:
    with tz.open("cpu", within=host, memory_limit="1MiB") as inner:
        with pytest.raises(OutOfMemoryError) as info:
            inner.allocate(2 * MIB)
        assert info.value.limit == MIB
        with inner.memory.budget("512KiB", name="small") as small:
            buffer = inner.allocate(1024)
            assert (small.live, inner.memory.stats().live, host.memory.stats().live) == (1024, 1024, 1024)
        assert tz.context_of(buffer) is inner
        paths = [balance.owner for balance in host.memory.snapshot().balances]
        assert ("context on cpu:0", "context on cpu:0", "small") in paths


def test_leaks_and_holders_are_found_across_devices(host: tz.Context) -> None:
    part = tz.device("cpu").split(1)[0]
    with tz.open(part, within=host) as ctx:
        buffer = ctx.allocate(4096, label="kept")
        charge = ctx.memory.charge(8192, label="a table", library="arrow")
        for one in (ctx, host):
            assert [(leak.label, leak.nbytes) for leak in one.memory.leaks()] == [("a table", 8192), ("kept", 4096)]
        holders = {holding.label: holding.nbytes for holding in host.memory.snapshot().holdings}
        assert holders["kept"] == 4096
        assert holders["a table"] == 8192
        charge.close()
        del buffer
        assert host.memory.leaks() == ()


@pytest.mark.skipif(not HOOKED, reason="uncompiled builds have no allocation hook in NumPy")
def test_numpys_arrays_count_in_the_shared_budget(host: tz.Context) -> None:
    budget = host.memory.budget("1MiB", name="both")
    part = tz.device("cpu").split(1)[0]
    with tz.open(part, within=budget) as ctx:
        x = ctx.launch(lambda: np.ones(1 << 16), stream=ctx.new_stream()).result(timeout=10)
        assert budget.live == x.nbytes
        assert [leak.nbytes for leak in ctx.memory.leaks()] == [x.nbytes]
        with pytest.raises(MemoryError):
            np.ones(1 << 17)
        del x
        assert budget.live == 0


def test_handlers_of_both_contexts_are_asked_in_one_order(host: tz.Context) -> None:
    asked: list[str] = []
    part = tz.device("cpu").split(1)[0]
    budget = host.memory.budget("1MiB", name="both")
    with tz.open(part, within=budget) as inner:
        host.memory.on_pressure(lambda nbytes: asked.append("host"), priority=1)
        inner.memory.on_pressure(lambda nbytes: asked.append("inner, not under what refused"), priority=2)
        host.memory.on_pressure(lambda nbytes: asked.append("host, first"), priority=3)
        with pytest.raises(OutOfMemoryError):
            inner.allocate(2 * MIB)
    assert asked == ["host, first", "host"]


def test_the_account_outlives_the_budget_and_its_context() -> None:
    with tz.open("cpu") as host:
        budget = host.memory.budget("1MiB", name="both")
        inner = tz.context("cpu", within=budget)
    with inner, pytest.raises(OutOfMemoryError):
        inner.allocate(2 * MIB)
    inner.close()


def test_rebuild_stays_within(host: tz.Context) -> None:
    inner = tz.context("cpu", within=host)
    again = inner.rebuild()
    buffer = again.allocate(4096)
    assert host.memory.stats().live == buffer.nbytes
    inner.close()
    again.close()


def test_it_is_no_part_of_the_spec(host: tz.Context) -> None:
    with tz.open("cpu", within=host, seed=1) as inner, tz.open("cpu", seed=1) as outer:
        assert inner.spec == outer.spec


@pytest.mark.parametrize("within", ["cpu", 1 << 20, object()])
def test_only_a_context_or_a_budget_can_be_within(within: object) -> None:
    with pytest.raises(ArgumentError, match="within"):
        tz.context("cpu", within=within)  # type: ignore[arg-type]


def test_another_memory_is_refused(host: tz.Context) -> None:
    with pytest.raises(WrongDeviceError, match="sim:0"):
        tz.context("sim:0", within=host)


def test_a_closed_context_takes_no_other(host: tz.Context) -> None:
    closed = tz.context("cpu")
    closed.close()
    with pytest.raises(ClosedError):
        tz.context("cpu", within=closed)


def test_a_dropped_charge_is_taken_back_by_the_next(host: tz.Context) -> None:
    """Else the peak would show what was never held at once, and each charge would need relief at the limit."""
    for _ in range(3):
        charge = host.memory.charge("1MiB")
        del charge
    assert host.memory.stats().peak == MIB


def test_what_is_set_aside_has_a_holder(host: tz.Context) -> None:
    with host.memory.budget("1MiB", name="all") as everything:
        with host.memory.budget(None, name="later", reserve="768KiB"):
            buffer = host.allocate(256 << 10, label="used")
            with host.memory.budget(None), pytest.raises(OutOfMemoryError) as info:
                host.allocate(900 << 10)
            assert info.value.holders == (("later (set aside)", 512 << 10, 1), ("used", 256 << 10, 1))
            assert sum(nbytes for _, nbytes, _ in info.value.holders) == everything.live == 768 << 10
        assert host.memory.holders() == (("used", buffer.nbytes, 1),)


@pytest.mark.skipif(not HOOKED, reason="uncompiled builds have no allocation hook in NumPy")
def test_what_the_array_namespace_keeps_for_good_is_charged_to_nobody() -> None:
    program = """
import tazza as tz
with tz.open("cpu") as ctx:
    ctx.xp
    assert ctx.memory.leaks() == (), ctx.memory.leaks()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
