"""Plans of NVIDIA's front end on emulated devices, executed by one that stands for it; each run in a child process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.conftest import Child
from tests.cuda.test_faults import START
from tests.cuda.test_libraries import OPTIONS, WORLDS

FILES = ("tests/cuda/inside_front_end.py", "tests/cuda/inside_front_end_failures.py")


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "jitter", "seed"), WORLDS, ids=["on-time", "late", "later"])
def test_the_tests_inside_pass(emulated: Child, devices: int, jitter: int, seed: int) -> None:
    settings: dict[str, Any] = {"devices": devices, "jitter_us": jitter, "seed": seed, "libraries": True}
    out = emulated("", "-m", "pytest", *OPTIONS, *FILES, **settings)
    assert " passed" in out


PLAN = """
from tazza.dnn import CudnnWrapper
from tests.cuda import front_end
from tests.cuda.front_end_cases import CASES, executed, placed, read, run
front_end.install()
case = CASES["linear-bias-relu"]
"""


def test_executions_that_share_scratch_memory_are_caught(emulated: Child) -> None:
    """States of which each has the workspace of the first, as a planted mistake, spoil results; their own do not."""
    emulated(
        START
        + PLAN
        + """
import ctypes, threading
from cuda.bindings import driver
released = threading.Event()
held = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: released.wait(T) and None)
with tz.CUDAContext() as ctx:
    wrapper = CudnnWrapper(ctx)
    plan = wrapper.load(front_end.planned(case.operation, wrapper.description))
    layouts = case.operation.inputs
    many = [[placed(ctx, layouts[0], case.inputs[0] + i), *(placed(ctx, *pair) for pair in
             list(zip(layouts, case.inputs))[1:]), placed(ctx, case.operation.outputs[0])] for i in range(4)]
    expected = [np.maximum((case.inputs[0] + i) @ case.inputs[1].T + case.inputs[2], 0) for i in range(4)]
    gate, *streams = [ctx.new_stream() for _ in range(5)]
    ctx.synchronize(timeout=T)
    def spoilt():
        released.clear()
        status, = driver.cuLaunchHostFunc(int(gate.native), ctypes.cast(held, ctypes.c_void_p).value, 0)
        assert not int(status)
        for i, arrays in enumerate(many):  # all are queued before the first begins, however slow this host is
            streams[i].wait(gate.record())
            with ctx.on(streams[i]): run(wrapper, plan, arrays, index=i)
        released.set()
        ctx.synchronize(timeout=T)
        return [(read(ctx, arrays[3]) != y).any() for arrays, y in zip(many, expected)]
    assert not any(spoilt())
    states = [wrapper._states.at(i).state for i in range(4)]
    own = [state.workspace for state in states]
    for state in states: state.workspace = own[0]
    assert any(spoilt()), "four calls in one scratch region without order"
    for state, workspace in zip(states, own): state.workspace = workspace
    assert not any(spoilt())
""",
        libraries=True,
        jitter_us=20_000,
    )


def test_a_forked_child_refuses_and_destroys_nothing(emulated: Child) -> None:
    emulated(
        START
        + PLAN
        + """
import gc
from tests.process.children import in_fork
ctx = tz.CUDAContext()
wrapper = CudnnWrapper(ctx)
made = front_end.planned(case.operation, wrapper.description)
plan, dropped = wrapper.load(made), wrapper.load(made)
with wrapper.lease() as state: pass
def child():
    global dropped
    before = front_end.alive[0]
    for use in (lambda: wrapper.load(made), lambda: wrapper.description, lambda: plan.execute(state, [None] * 4, None)):
        with pytest.raises(ForkedError): use()
    del dropped
    gc.collect()
    ctx.own_stream.runtime.end_loans()
    assert front_end.alive[0] == before
in_fork(child)
[y] = executed(ctx, wrapper, plan, case)
assert (read(ctx, y) == case.outputs[0]).all()
ctx.close(timeout=T)
""",
        libraries=True,
    )


def test_nothing_is_left_behind(emulated: Child) -> None:
    emulated(
        START
        + PLAN
        + """
import gc
ctx = tz.CUDAContext()
wrapper = CudnnWrapper(ctx)
for number in range(12):
    plan = wrapper.load(front_end.planned(case.operation, wrapper.description))
    with ctx.on(ctx.new_stream()): executed(ctx, wrapper, plan, case, index=number % 3)
del plan
ctx.synchronize(timeout=T)
wrapper.close(T)
gc.collect()
ctx.close(timeout=T)
assert emulator.wait_idle()
ctx.memory.trim()
gc.collect()
ctx.own_stream.runtime.end_loans()
assert front_end.alive[0] == 0
assert emulator.live_bytes() == 0, emulator.report()["allocations"]
assert not emulator.report()["n_hazards"]
""",
        libraries=True,
        jitter_us=300,
    )


def test_the_process_ends_with_plans_and_work(emulated: Child) -> None:
    out = emulated(
        START
        + PLAN
        + """
import sys
sys.stderr = sys.stdout
ctx = tz.CUDAContext()
wrapper = CudnnWrapper(ctx)
plan = wrapper.load(front_end.planned(case.operation, wrapper.description))
kept = [executed(ctx, wrapper, plan, case) for _ in range(5)]
""",
        libraries=True,
        jitter_us=2000,
    )
    assert not out
