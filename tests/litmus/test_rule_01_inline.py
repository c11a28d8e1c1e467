"""Rule 1: the CPU context's own stream is inline, always."""

from __future__ import annotations

import threading

import numpy as np

import tazza as tz
from tazza.errors import UsageError
from tests.litmus.harness import CPU, TIMEOUT, World, attempt, litmus, put


@litmus(1, only="the task is done and its writing seen when the call returns", allowed={(True, 7)}, worlds=CPU)
def test_inline_launch(w: World) -> tuple[bool, int]:
    """Launch a writer on the context's own stream and look at the raw memory at once."""
    x = w.cell()
    seen = np.asarray(x)
    task = w.here.launch(put, x, 7)
    return task.is_done, int(seen[0])


@litmus(1, only="both are seen when the call returns", allowed={(3, 5)}, worlds=CPU)
def test_inline_fill_and_copy(w: World) -> tuple[int, int]:
    """Fill one cell, copy into another, and look at the raw memory after each call."""
    x, y = w.cell(), w.cell()
    here, there = np.asarray(x), np.asarray(y)
    w.here.fill(x, 3)
    filled = int(here[0])
    w.here.copy(y, np.array([5]))
    return filled, int(there[0])


@litmus(1, only="the worker's writing is seen when the wait returns", allowed={1}, worlds=CPU)
def test_inline_wait_blocks_the_caller(w: World) -> int:
    """Have the own stream wait for a worker's task and look at the raw memory."""
    x, (worker,) = w.cell(), w.streams(1)
    seen = np.asarray(x)
    w.here.stream.wait(w.here.launch(w.late(put), x, 1, stream=worker))
    return int(seen[0])


@litmus(1, only="own stream: always the caller; worker stream: never the caller", allowed={(True, True)}, worlds=CPU)
def test_load_decides_nothing(w: World) -> tuple[bool, bool]:
    """Launch on the own stream and on busy worker streams, and note which thread each function runs in."""
    me, workers = threading.get_ident(), w.streams(4)
    queued = [w.here.launch(threading.get_ident, stream=workers[n % 4]) for n in range(20)]
    inline = [w.here.launch(threading.get_ident) for _ in range(20)]
    return {task.result() for task in inline} == {me}, me not in tz.wait(queued, timeout=TIMEOUT)


@litmus(1, only="refused on the worker stream, fine on the own one", allowed={(UsageError, True)}, worlds=CPU)
def test_eager_work_beside_a_worker_stream(w: World) -> tuple[object, bool]:
    """Ask for the eager namespace while a worker stream is current, and afterwards."""
    with w.here.on(w.streams(1)[0]):
        beside = attempt(lambda: w.here.xp)
    return beside, hasattr(w.here.xp, "matmul")


@litmus(1, only="the value of either thread", allowed={1, 2}, worlds=CPU)
def test_inline_orders_nothing_between_threads(w: World) -> int:
    """Two threads write one cell through the context's own stream."""
    x = w.cell()
    w.threads(lambda: w.here.launch(put, x, 1), lambda: w.here.launch(put, x, 2))
    return w.read(x)
