"""Charges: bytes of other libraries that count in an account."""

from __future__ import annotations

import gc
import pickle
from typing import Any

import pytest

import tazza as tz


def test_a_charge_counts_until_it_is_closed() -> None:
    with tz.open("cpu", memory_limit=10_000) as ctx:
        with ctx.memory.charge(4000, label="table", library="arrow") as charge:
            assert (charge.nbytes, ctx.memory.stats().live) == (4000, 4000)
            assert ctx.memory.holders() == (("table", 4000, 1),)
            with pytest.raises(tz.OutOfMemoryError, match="table 4000 bytes"):
                ctx.memory.charge(7000)
            charge.resize("5000")
            assert ctx.memory.stats().live == 5000
            with pytest.raises(tz.OutOfMemoryError):
                charge.resize(20_000)
            assert charge.nbytes == ctx.memory.stats().live == 5000
            charge.resize(1000)
            block = ctx.memory.leaks()[0]
            assert (block.nbytes, block.label, block.library, block.owner) == (
                1000,
                "table",
                "arrow",
                ("context on cpu:0",),
            )
        charge.close()
        assert (charge.nbytes, ctx.memory.stats().live, ctx.memory.leaks()) == (0, 0, ())
        with pytest.raises(tz.errors.ClosedError):
            charge.resize(1)
        assert "Charge of 0 bytes for table" in repr(charge)
        with pytest.raises(tz.errors.UsageError, match="pickled"):
            pickle.dumps(charge)


def test_a_dropped_charge_is_taken_back_later() -> None:
    with tz.open("cpu", memory_limit=10_000) as ctx:
        with ctx.memory.budget(8000) as budget:
            charge = ctx.memory.charge(8000)
        del charge
        gc.collect()
        assert ctx.account.live == 8000, "a finaliser only leaves word"
        assert (budget.live, ctx.account.live) == (0, 0)
        ctx.memory.charge(10_000)
        assert ctx.memory.charge(10_000).nbytes == 10_000  # relief takes the dropped one back


def test_a_charge_is_no_heading_because_it_holds_nothing() -> None:
    with tz.open("cpu") as ctx, ctx.memory.charge(1 << 40):
        snapshot = ctx.memory.snapshot()
        assert max(heading.nbytes for heading in snapshot.headings) < 1 << 40
        assert snapshot.holdings[0].nbytes == 1 << 40


def test_bad_arguments_are_named() -> None:
    with tz.open("cpu") as ctx:
        memory: Any = ctx.memory
        for arguments, name in (((-1,), "nbytes"), ((1.5,), "nbytes")):
            with pytest.raises(tz.errors.ArgumentError, match=f"^{name}: got"):
                memory.charge(*arguments)
        with pytest.raises(tz.errors.ArgumentError, match="^label: got"):
            memory.charge(1, label=1)
        with pytest.raises(tz.errors.ArgumentError, match="^library: got"):
            memory.charge(1, library=1)
        assert ctx.memory.stats().live == 0
