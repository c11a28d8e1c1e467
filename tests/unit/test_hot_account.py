"""Accounts: all or nothing through the parents, limits, figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tazza.errors import ArgumentError
from tazza.hot import Account


def test_a_charge_counts_in_every_parent_or_in_none() -> None:
    device = Account("device", 200)
    context = Account("context", None, device)
    budget = Account("budget", 150, context)
    assert budget.charge(128, 100) is None
    assert [(a.live, a.requested, a.blocks) for a in (budget, context, device)] == [(128, 100, 1)] * 3
    assert budget.charge(64, 64) is budget
    assert context.charge(128, 128) is device
    assert [(a.live, a.requested, a.blocks, a.peak) for a in (budget, context, device)] == [(128, 100, 1, 128)] * 3
    budget.uncharge(128, 100)
    assert [(a.live, a.requested, a.blocks) for a in (budget, context, device)] == [(0, 0, 0)] * 3
    assert (device.total_allocated, device.total_freed, device.allocations) == (128, 128, 1)


def test_refuses_tells_without_counting() -> None:
    account = Account("a", 100, Account("b", 50))
    assert account.refuses(50) is None
    assert account.refuses(51) is account.parent
    assert account.refuses(101) is account
    assert account.live == 0


def test_peak_and_its_reset() -> None:
    account = Account("a")
    account.charge(100, 100)
    account.uncharge(100, 100)
    assert (account.live, account.peak) == (0, 100)
    account.reset_peak()
    assert account.peak == 0


def test_limit_is_checked_and_can_change() -> None:
    account = Account("a", 64)
    assert account.limit == 64
    account.limit = None
    assert account.limit is None
    account.limit = 1 << 80
    assert account.charge(1 << 40, 1) is None
    for bad in (-1, 1.5, True, "1GiB"):
        with pytest.raises(ArgumentError, match="limit: got"):
            account.limit = bad  # type: ignore[assignment]
    assert "a" in repr(account)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100)), max_size=60), st.integers(0, 300))
def test_limits_are_never_exceeded(charges: list[tuple[int, int]], limit: int) -> None:
    top = Account("top", limit)
    accounts = [top, Account("x", limit // 2, top), Account("y", None, top)]
    held: list[tuple[int, int]] = []
    for which, nbytes in charges:
        if accounts[which].charge(nbytes, nbytes) is None:
            held.append((which, nbytes))
        assert top.live == sum(n for _, n in held) <= limit
        assert accounts[1].live == sum(n for w, n in held if w == 1) <= limit // 2
    for which, nbytes in held:
        accounts[which].uncharge(nbytes, nbytes)
    assert [a.live for a in accounts] == [0, 0, 0]
