"""When work lets go of its memory, and what the memory that a running task takes is free of."""

from __future__ import annotations

import weakref

import numpy as np

import tazza as tz
from tazza.testing import simulate
from tests.bad_input.health import Hold


def test_a_task_does_not_get_memory_that_is_used_behind_it() -> None:
    """The host frees a buffer whose fill is queued behind a task that waits; then the task allocates as much."""
    with simulate(devices=1, lateness=0), tz.open("sim:0") as ctx:
        freed = tz.HostEvent()

        def allocate_when_freed() -> np.ndarray:
            freed.synchronize(timeout=10)
            return np.ones(512)

        task = ctx.launch(allocate_when_freed)
        victim = ctx.allocate(4096, dtype="float64")
        ctx.fill(victim, 666.0)
        victim.close()
        ctx.memory.stats()  # takes the block back while its fill is still queued
        freed.succeed()
        result = task.result(timeout=10)
        ctx.stream.synchronize(timeout=10)
        assert np.all(ctx.to_numpy(result) == 1.0)


def test_its_memory_is_reused() -> None:
    with simulate(devices=1, lateness=0), tz.open("sim:0") as ctx:
        for _ in range(50):
            ctx.launch(lambda: np.ones(100_000)).result(timeout=10)
        assert ctx.memory.stats().reserved_bytes < 10 * 800_000


def test_relief_lets_go_of_what_finished_work_held() -> None:
    """A copy that is over holds its host source until somebody asks; the first step of relief asks."""
    with simulate(devices=1, lateness=0), tz.open("cpu") as cpu, tz.open("sim:0") as sim:
        source, target = cpu.allocate(4096), sim.allocate(4096)
        sim.copy(target, source)
        sim.stream.record().synchronize(timeout=10)
        del source
        assert cpu.memory.stats().live == 4096
        for runner in sim.own_stream.runtime.runners():
            runner.reached(0)
        assert cpu.memory.stats().live == 0


def test_a_stream_is_done_when_it_holds_nothing_any_more() -> None:
    """Who finds the stream idle may count on its buffers being free: the thread lets go of them before."""
    hold, idle = Hold(), list[bool]()
    with tz.open("cpu") as ctx:
        stream = ctx.new_stream()
        runner = stream.runner
        ctx.launch(hold.block, stream=stream)
        x = ctx.allocate(64)
        ctx.fill(x, 1, stream=stream)
        last = runner.submitted
        ref = weakref.ref(x, lambda _: idle.append(runner.reached(last)))
        del x
        hold.release()
        stream.synchronize(timeout=10)
        assert ref() is None
        assert idle == [False]
