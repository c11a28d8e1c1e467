"""The memory account from eight threads at once: no cap is exceeded, every block is uncharged once, nothing hangs."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.hot import HOOKED
from tests.stress.test_threads import rounds, together

LIMIT = 1 << 20
pytestmark = pytest.mark.timeout(300)


def test_eight_threads_under_nested_budgets_never_exceed_a_cap() -> None:
    with tz.open("cpu", memory_limit=LIMIT) as ctx:
        shared = ctx.memory.budget(LIMIT // 2, name="shared")
        waiting = ctx.memory.budget(LIMIT // 4, name="waiting", on_full="wait", timeout=30)
        given: list[int] = []
        remove = ctx.memory.on_pressure(given.append, priority=1)
        over: list[str] = []

        def check() -> None:
            accounts = ctx.account, shared.account, waiting.account
            over.extend(f"{account!r}" for account in accounts if account.live > account.cap)

        def work(number: int) -> None:
            draws = random.Random(number)
            for _ in rounds():
                held: list[Any] = []
                with ctx, shared if number % 2 else waiting:
                    try:
                        with ctx.memory.budget(LIMIT // 8, name=f"own {number}", reserve=draws.choice([0, 1000])):
                            for _ in range(draws.randrange(1, 12)):
                                held.append(take(ctx, draws))
                                check()
                                if draws.random() < 0.3 and held:
                                    held.pop(draws.randrange(len(held)))
                    except MemoryError:
                        held.clear()
                    if draws.random() < 0.1:
                        snapshot = ctx.memory.snapshot()
                        assert sum(heading.nbytes for heading in snapshot.headings) == snapshot.used
                del held

        together(work, threads=8)
        remove()
        gc.collect()
        assert not over
        assert (ctx.memory.stats().live, shared.live, waiting.live) == (0, 0, 0)
        assert (ctx.account.blocks, ctx.account.requested) == (0, 0)
        assert ctx.account.total_allocated == ctx.account.total_freed
        assert max(shared.peak, 1) <= LIMIT // 2
        assert waiting.peak <= LIMIT // 4


def take(ctx: tz.Context, draws: random.Random) -> Any:
    nbytes = draws.choice([0, 100, 5_000, 40_000])
    kind = draws.randrange(3)
    if kind == 0:
        return ctx.allocate(nbytes)
    if kind == 1:
        return np.empty(nbytes, np.uint8)
    return ctx.memory.charge(nbytes)


@pytest.mark.skipif(not HOOKED, reason="uncompiled: NumPy's arrays are declared to be outside")
def test_arrays_that_threads_hand_to_each_other_are_uncharged_once() -> None:
    with tz.open("cpu") as ctx:
        lock, parcels = threading.Lock(), list[Any]()

        def work(number: int) -> None:
            draws = random.Random(number)
            for _ in rounds():
                with ctx:
                    made = [np.zeros(draws.randrange(1, 2000)) for _ in range(20)]
                with lock:
                    parcels.extend(made)
                    draws.shuffle(parcels)
                    taken = [parcels.pop() for _ in range(15)]
                made.clear()
                taken.clear()  # freed here, outside of the scope, whoever made them

        together(work, threads=8)
        parcels.clear()
        assert (ctx.account.live, ctx.account.blocks) == (0, 0)
