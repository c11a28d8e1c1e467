"""The account of a device: it adds up, on the host to what the system says, and names what is not explained."""

from __future__ import annotations

import doctest
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core import recording, snapshot
from tazza.core.snapshot import MemorySnapshot
from tazza.dnn import DnnWorkspace
from tazza.hot import HOOKED
from tazza.testing import simulate

ALLOWED = 64 << 20  # bytes that may stay unexplained, and two hundredths of what is used


def headings(snapshot: MemorySnapshot) -> dict[str, int]:
    return {heading.name: heading.nbytes for heading in snapshot.headings}


@pytest.mark.skipif(sys.platform != "linux", reason="the system's figures come from /proc")
def test_the_host_adds_up_to_what_the_system_reports() -> None:
    with tz.open("cpu") as ctx:
        touched = ctx.asarray(np.ones(4 << 20), copy=True)
        untouched = ctx.allocate(64 << 20)
        arrays = [np.ones(1 << 20), np.empty(8 << 20)]
        seen = ctx.memory.snapshot()
        found = headings(seen)
        assert sum(found.values()) == seen.used <= seen.total
        assert abs(found["unexplained"]) <= ALLOWED + seen.used // 50, found
        assert found["live"] >= (32 << 20) + (64 << 20)
        assert found["not touched yet"] <= -(60 << 20)
        if HOOKED:
            assert found["live: numpy"] >= 72 << 20
            assert found["not touched yet"] <= -(120 << 20)
        assert found["other of this process"] > 0
        assert found["file cache"] > 0
        assert found["pending"] == 0
        scratch = [one for one in ctx.own_stream.runtime.workspaces.now() if isinstance(one, DnnWorkspace)]
        assert found["workspaces"] == sum(one.nbytes for one in scratch), "states are the device's, whoever used them"
        del touched, untouched, arrays


def test_a_simulated_device_adds_up_exactly() -> None:
    with simulate(devices=1, memory="1MiB", lateness=0), tz.open("sim:0") as ctx:
        kept = [ctx.allocate(10_000, label="a"), ctx.allocate(20_000, label="workspace of a library")]
        stream = ctx.new_stream()
        gate = tz.HostEvent()
        freed = ctx.allocate(5_000, label="b")
        stream.wait(gate)
        ctx.fill(freed, 0, stream=stream)
        freed.used_on(stream)
        del freed
        found = headings(ctx.memory.snapshot())
        assert found["live"] == 10_048
        assert found["workspaces"] == 20_032
        assert found["pending"] == 5_056
        assert found["unexplained"] == 0
        gate.succeed()
        stream.synchronize(timeout=20)
        assert headings(ctx.memory.snapshot())["pending"] == 0
        assert ctx.memory.snapshot().used == found["live"] + found["workspaces"] + found["pending"] + found["cached"]
        del kept


def test_fragmentation_is_measured_against_the_largest_block_that_fits() -> None:
    with simulate(devices=1, memory="1MiB", lateness=0), tz.open("sim:0") as ctx:
        blocks: list[Any] = [ctx.allocate(1024) for _ in range(16)]
        whole = ctx.memory.snapshot()
        del blocks[::2]
        seen = ctx.memory.snapshot()
        free = sum(b.nbytes for s in seen.segments for b in s.blocks if b.state == "free")
        assert free == sum(b.nbytes for s in whole.segments for b in s.blocks if b.state == "free") + 8 * 1024
        assert seen.largest_placeable >= 1024
        assert seen.fragmentation == pytest.approx(1 - seen.largest_placeable / free)
        assert seen.fragmentation > 0.3
        sizes = [block.requested for s in seen.segments for block in s.blocks if block.state == "live"]
        assert sizes == [1024] * 8
        blocks.clear()
        ctx.memory.trim()
        assert (ctx.memory.snapshot().segments, ctx.memory.snapshot().fragmentation) == ((), 0.0)


def test_holdings_are_by_owner_label_and_library() -> None:
    with tz.open("cpu") as ctx, ctx.memory.budget(None, name="model") as budget:
        kept = [ctx.allocate(64, label="w"), ctx.allocate(128, label="w"), ctx.allocate(64)]
        charge = ctx.memory.charge(10, library="arrow")
        mine = [one for one in ctx.memory.snapshot().holdings if one.owner == ("context on cpu:0", "model")]
        assert [(one.label, one.library, one.nbytes, one.blocks) for one in mine] == [
            ("w", "tazza", 192, 2),
            (None, "tazza", 64, 1),
            (None, "arrow", 10, 1),
        ]
        balance = [one for one in ctx.memory.snapshot().balances if one.owner[-1] == "model"]
        assert [(one.live, one.limit, one.ooms) for one in balance] == [(266, None, 0)]
        del kept, charge, budget


def test_budgets_of_one_name_are_one_row() -> None:
    with tz.open("cpu") as ctx:
        budgets = [ctx.memory.budget(limit, name="request", reserve=100) for limit in (1000, 2000, 3000)]
        kept = []
        for budget in budgets[:2]:
            with budget:
                kept.append(ctx.memory.charge(500))
        with budgets[2], pytest.raises(tz.OutOfMemoryError):
            ctx.memory.charge(4000)
        [row] = [one for one in ctx.memory.snapshot().balances if one.owner == budgets[0].account.path]
        assert row[1:] == (1000, 500, 3000, 0, 1, 3)
        unlimited = ctx.memory.budget(None, name="request")
        with unlimited:
            [row] = [one for one in ctx.memory.snapshot().balances if one.owner == unlimited.account.path]
        assert (row.limit, row.accounts) == (None, 4)


@pytest.mark.parametrize("module", [recording, snapshot])
def test_examples_of_what_memory_returns_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_a_snapshot_is_saved_by_its_suffix(tmp_path: Path) -> None:
    with tz.open("cpu") as ctx, pytest.raises(tz.errors.ArgumentError, match=r"path: got .*ends in \.html or \.pickle"):
        ctx.memory.snapshot().save(tmp_path / "memory.txt")
