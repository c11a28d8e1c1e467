"""The memory account against a model: allocations, NumPy's arrays, charges, budgets, handlers, snapshots, failures.

The model knows what is held, by whom, and which accounts each byte counts in; after every step the account of the
device must say the same, no limit may be exceeded, and the headings must add up to what the device reports.
"""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import tazza as tz
from tazza.hot import HOOKED, Account
from tazza.testing import simulate
from tazza.testing.faults import Fault, inject

FULL = os.environ.get("TAZZA_FULL") == "1"
pytestmark = pytest.mark.timeout(300)
_numbers = itertools.count()
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 20_000), st.sampled_from([1 << 17, 1 << 30]))


@dataclass(eq=False)
class Tenant:
    """A budget (or the context, for the first) and what the model says is live in it, its parents' not counted."""

    account: Account
    limit: int | None
    parent: Tenant | None
    budget: tz.Budget | None = None
    reserve: int = 0
    entered: bool = False
    held: int = 0
    children: list[Tenant] = field(default_factory=list)

    def live(self) -> int:
        """What must be live in it: its own bytes, and of each child the larger of live and reserve."""
        return self.held + sum(max(child.live(), child.reserve if child.entered else 0) for child in self.children)


@dataclass(eq=False)
class Holding:
    """One thing that is held, in whose name, and how many bytes it counts."""

    tenant: Tenant
    nbytes: int
    thing: Any


class AccountMachine(RuleBasedStateMachine):
    """Everything happens in one thread; the same steps from eight run in tests/stress."""

    device = "cpu"
    tenants = Bundle("tenants")
    holdings = Bundle("holdings")

    @initialize(
        target=tenants,
        limit=st.sampled_from([None, 60_000, 400_000]),
        pool=st.sampled_from(["caching", "direct"]),
        faults=st.sets(st.integers(1, 30), max_size=6),
    )
    def start(self, limit: int | None, pool: str, faults: set[int]) -> Tenant:
        plan = [Fault("memory_allocate", nth, tz.OutOfMemoryError("injected")) for nth in faults]
        gc.freeze()  # relief collects garbage: of this run, not of all that the process has
        self.simulated = simulate(devices=1, memory="64MiB", lateness=0)
        self.simulated.__enter__()
        self.injected = inject(self.device, plan)
        self.driver = self.injected.__enter__()
        self.ctx = tz.context(self.device, memory_limit=limit, pool=pool)
        # A name of its own: what other tests left live in contexts of this device is listed under theirs.
        self.ctx.account.name = f"context {next(_numbers)}"
        self.root = Tenant(self.ctx.account, limit, None)
        self.all = [self.root]
        self.open: list[Holding] = []
        self.called: list[int] = []
        self.asked = 0  # of `called`, when the last request began
        self.handlers: list[tuple[int, Callable[[], None], list[Holding]]] = []
        return self.root

    # Steps ---------------------------------------------------------------------------------------------------------

    @rule(target=tenants, parent=tenants, limit=st.sampled_from([None, 5_000, 50_000]), reserve=st.integers(0, 5_000))
    def make_budget(self, parent: Tenant, limit: int | None, reserve: int) -> Any:
        made: list[tz.Budget] = []
        name = f"b{len(self.all)}"
        try:
            self.inside(parent, lambda: made.append(self.ctx.memory.budget(limit, name=name, reserve=reserve)))
        except tz.OutOfMemoryError:
            assert not self.would_fit(parent, 0), "a reserve was refused that fits"
            return multiple()
        tenant = Tenant(made[0].account, limit, parent, made[0], reserve)
        parent.children.append(tenant)
        self.all.append(tenant)
        return tenant

    @rule(target=holdings, tenant=tenants, nbytes=SIZES, kind=st.sampled_from(["allocate", "numpy", "charge"]))
    def take(self, tenant: Tenant, nbytes: int, kind: str) -> Any:
        if kind == "numpy" and not (HOOKED and self.device == "cpu"):
            kind = "allocate"
        if kind == "numpy":
            nbytes = max(1, nbytes)  # NumPy asks for an element where there is none
        granted = -(-nbytes // 64) * 64 if kind == "allocate" else nbytes
        made: list[Any] = []
        makers: dict[str, Callable[[], Any]] = {
            "allocate": lambda: self.ctx.allocate(nbytes, label="x"),
            "numpy": lambda: np.empty(nbytes, np.uint8),
            "charge": lambda: self.ctx.memory.charge(nbytes, label="c"),
        }
        refused: list[tz.OutOfMemoryError] = []

        def make() -> None:
            self.asked = len(self.called)
            made.append(makers[kind]())

        try:
            self.inside(tenant, make)
        except tz.OutOfMemoryError as error:
            refused.append(error)
        if refused:
            fits = self.would_fit(tenant, granted)
            assert not fits or kind == "allocate", f"{kind} was refused although there was room: {refused}"
            assert not fits or refused[0].limit is None, "a limit refused what fits in it"
            told = [priority for priority, _, _ in self.handlers]
            assert self.called[self.asked :] == sorted(told, reverse=True), "a handler was left out, or out of its turn"
            return multiple()
        assert self.would_fit(tenant, granted), f"{kind} of {nbytes} went above a limit"
        holding = Holding(tenant, granted, made.pop())
        tenant.held += granted
        self.open.append(holding)
        return holding

    @rule(holding=consumes(holdings))
    def give_back(self, holding: Holding) -> None:
        if holding in self.open:  # else a handler gave it back
            self.drop(holding)

    @rule(holding=holdings, nbytes=st.integers(0, 10_000))
    def resize_charge(self, holding: Holding, nbytes: int) -> None:
        if holding in self.open and isinstance(holding.thing, tz.Charge):
            more = nbytes - holding.nbytes
            fits = more <= 0 or self.would_fit(holding.tenant, more)
            try:
                holding.thing.resize(nbytes)
            except tz.OutOfMemoryError:
                assert not self.would_fit(holding.tenant, more)
                return
            assert fits or self.called
            holding.tenant.held += more
            holding.nbytes = nbytes

    @rule(tenant=tenants)
    def close_charge_twice(self, tenant: Tenant) -> None:
        for holding in [one for one in self.open if isinstance(one.thing, tz.Charge) and one.tenant is tenant][:1]:
            charge = holding.thing
            self.drop(holding)
            charge.close()
            charge.close()

    @rule(priority=st.integers(-2, 2), frees=st.integers(0, 2))
    def add_handler(self, priority: int, frees: int) -> None:
        if len(self.handlers) >= 3 or any(priority == other for other, _, _ in self.handlers):
            return
        mine = [holding for holding in self.open if not isinstance(holding.thing, tz.Charge)][:frees]

        def handler(nbytes: int) -> None:
            assert nbytes >= 0
            self.called.append(priority)
            for holding in mine:
                if holding in self.open:
                    self.drop(holding)

        self.handlers.append((priority, self.ctx.memory.on_pressure(handler, priority=priority), mine))

    @rule()
    def remove_handlers(self) -> None:
        for _, remove, _ in self.handlers:
            remove()
            remove()
        self.handlers.clear()

    @rule()
    def trim_and_collect(self) -> None:
        self.ctx.memory.trim()
        gc.collect()

    @rule()
    def look(self) -> None:
        """Take a snapshot: what it lists is what the model holds."""
        snapshot = self.ctx.memory.snapshot()
        assert sum(heading.nbytes for heading in snapshot.headings) == snapshot.used
        own = {tenant.account.path: tenant for tenant in self.all}
        mine = [one for one in snapshot.holdings if one.owner in own and one.owner[0] == self.ctx.account.name]
        listed = sum(one.nbytes for one in mine)
        others = sum(b.live for b in snapshot.balances if b.owner == self.ctx.account.path) - self.ctx.account.live
        reserved = self.root.live() - sum(tenant.held for tenant in self.all)
        assert listed - others == self.root.live() - reserved
        free = [b.nbytes for s in snapshot.segments for b in s.blocks if b.state == "free"]
        assert snapshot.largest_placeable == max(free, default=0)
        assert 0 <= snapshot.fragmentation < 1
        for segment in snapshot.segments:
            assert sum(block.nbytes for block in segment.blocks) == segment.nbytes, "a byte of a segment is not listed"

    # The model -----------------------------------------------------------------------------------------------------

    def inside(self, tenant: Tenant, step: Callable[[], object]) -> None:
        """Do a step with a tenant's budget current, all budgets around it entered first."""
        if tenant.budget is None:
            with self.ctx:
                step()
            return
        assert tenant.parent is not None

        def enter() -> None:
            assert tenant.budget is not None
            self.asked = len(self.called)  # a reserve is a request of its own
            with tenant.budget:
                tenant.entered = True
                try:
                    step()
                finally:
                    tenant.entered = False

        self.inside(tenant.parent, enter)

    def would_fit(self, tenant: Tenant, nbytes: int) -> bool:
        """Tell whether every account takes so many bytes more, with the budgets of the tenant entered."""
        path: list[Tenant] = []
        inner: Tenant | None = tenant
        while inner is not None:
            path.append(inner)
            inner = inner.parent
        for one in path:
            one.entered = True
        tenant.held += nbytes
        fits = all(one.limit is None or one.live() <= one.limit for one in path)
        tenant.held -= nbytes
        for one in path:
            one.entered = False
        return fits

    def drop(self, holding: Holding) -> None:
        self.open.remove(holding)
        holding.tenant.held -= holding.nbytes
        if isinstance(holding.thing, tz.Charge) and holding.nbytes % 2:
            holding.thing.close()
        holding.thing = None  # the finaliser gives it back

    @invariant()
    def the_account_says_what_the_model_says(self) -> None:
        if not hasattr(self, "ctx"):
            return
        self.ctx.memory.stats()  # drains
        for tenant in self.all:
            account = tenant.account
            assert account.live == tenant.live(), f"{account!r}, the model says {tenant.live()}"
            assert account.limit is None or account.live <= account.limit
            assert account.live <= account.peak
            assert account.total_allocated - account.total_freed >= 0
        blocks = sum(1 for holding in self.open)
        assert self.root.account.blocks == blocks, "a block was uncharged twice, or never"

    def teardown(self) -> None:
        if hasattr(self, "ctx"):
            for holding in list(self.open):
                self.drop(holding)
            self.remove_handlers()
            self.the_account_says_what_the_model_says()
            assert [tenant.account.live for tenant in self.all] == [0] * len(self.all)
            self.ctx.memory.trim()  # a few GiB that stay mapped, though untouched, and no process as large can fork
            self.ctx.close()
            self.injected.__exit__(None, None, None)
            self.simulated.__exit__(None, None, None)
            gc.unfreeze()


class SimAccountMachine(AccountMachine):
    """The same on a simulated device, whose memory NumPy's arrays are not."""

    device = "sim"


COUNTS = settings(max_examples=400 if FULL else 60, stateful_step_count=60 if FULL else 40, deadline=None)
TestOnTheHost = AccountMachine.TestCase
TestOnADevice = SimAccountMachine.TestCase
TestOnTheHost.settings = TestOnADevice.settings = COUNTS
