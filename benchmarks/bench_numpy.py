"""NumPy's own operations inside a context, limit on, and without one: what its arrays' accounting costs."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

import tazza as tz
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.hot import HOOKED

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
LOOPS = 20
STEP = 61  # elements
T = TypeVar("T")


class InContext:
    """Runs functions in a Python context of its own, where NumPy has our handler or its default one."""

    def __init__(self, context: tz.Context | None) -> None:
        self._python = contextvars.Context()
        if context is not None:
            self._python.run(context.__enter__)

    def __call__(self, work: Callable[[], T]) -> T:
        return self._python.run(work)


def add(size: int) -> Callable[[], None]:
    """Element-wise sums into fresh arrays, as a user's program makes them.

    How two operands and a result lie to each other in the caches changes the time by a tenth and more. Both sides
    therefore add the same operands, which lie differently in each loop.
    """
    x, y = (np.ones(size + LOOPS * STEP) for _ in range(2))
    pairs = [(x[loop * STEP :][:size], y[(LOOPS - loop) * STEP :][:size]) for loop in range(LOOPS)]

    def work() -> None:
        for left, right in pairs:
            left + right

    return work


def small() -> Callable[[], None]:
    """Arrays so small that the allocation is all there is."""
    empty = np.empty

    def work() -> None:
        for _ in range(LOOPS):
            empty(10)

    return work


def area() -> Area:
    """Sums of four sizes, and allocations of ten elements, with and without a context."""
    if not HOOKED:
        return Area([Missing("numpy.add.tazza", "uncompiled: NumPy's arrays are declared to be outside")])
    inside, outside = InContext(tz.context("cpu", memory_limit="8GiB")), InContext(None)
    cases, budgets = [], []
    for name, make in [*((f"add_{size}", partial(add, size)) for size in SIZES), ("empty_10", small)]:
        work = make()
        for who, run in (("tazza", inside), ("numpy", outside)):
            cases.append(Case(f"numpy.{name}.{who}", "run(work)", {"run": run, "work": work}, operations=LOOPS))
        budgets.append(Budget(f"numpy.{name}.tazza", f"numpy.{name}.numpy", 1.02, gated=name != "empty_10"))
    return Area(cases, budgets)
