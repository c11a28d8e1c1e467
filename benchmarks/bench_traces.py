"""Memory reserved over memory live, on allocation traces recorded from real training (`record_traces.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import tazza as tz
from benchmarks.harness import Area, Budget
from tazza.core.runtime import forget_runtimes

TRACES = sorted((Path(__file__).parent / "traces").glob("*.npz"))
AT_MOST = 1.15


def replay(events: np.ndarray, allocate: Callable[[int], object]) -> None:
    """Allocate for each positive entry; an entry ``-1 - k`` frees what the k-th allocation returned."""
    held: list[object] = []
    for event in events.tolist():
        if event > 0:
            held.append(allocate(event))
        else:
            held[-1 - event] = None


def most_live(events: np.ndarray) -> int:
    """The most bytes asked for and not yet freed."""
    sizes = events[events > 0].astype(np.int64)
    changes = events.astype(np.int64)
    changes[events < 0] = -sizes[-1 - events[events < 0]]
    return int(np.cumsum(changes).max())


def area() -> Area:
    """Count for every trace the bytes live and the bytes that our pool reserved for them, both at their peaks."""
    amounts: dict[str, float] = {}
    budgets = []
    for path in TRACES:
        events = np.load(path)["events"]
        forget_runtimes("cpu")  # a pool that has seen nothing
        with tz.open("cpu") as ctx:
            replay(events, ctx.allocate)
            reserved = ctx.memory.stats().reserved_bytes_peak
        names = f"traces.{path.stem}.reserved", f"traces.{path.stem}.live"
        amounts |= dict(zip(names, (reserved, most_live(events)), strict=True))
        budgets.append(Budget(*names, at_most=AT_MOST))
    return Area(cases=[], budgets=budgets, amounts=amounts)
