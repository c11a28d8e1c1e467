"""Run by test_front_end.py on emulated devices: plans of a front end that stands for NVIDIA's, and computes."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import cuda_emulator
import numpy as np
import pytest
from cuda.bindings import driver

import tazza as tz
from tazza.dnn import CudnnState, CudnnWrapper, Plan
from tazza.dnn.cudnn import H100, CudnnPlan, DeviceDescription, describe
from tazza.hot import Operation, listen
from tests.cuda import front_end
from tests.cuda.front_end_cases import CASES, Case, executed, placed, read, run

TIMEOUT = 20.0
front_end.install()


@pytest.fixture
def ctx() -> Iterator[tz.CUDAContext]:
    front_end.calls.clear()
    with tz.CUDAContext(device="cuda:0", seed=5) as opened:
        yield opened


@pytest.fixture
def wrapper(ctx: tz.CUDAContext) -> CudnnWrapper:
    return CudnnWrapper(ctx)


def loaded(wrapper: CudnnWrapper, case: Case) -> Plan:
    return wrapper.load(front_end.planned(case.operation, wrapper.description))


def agree(ctx: tz.Context, found: list[Any], expected: tuple[Any, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(read(ctx, one), other, atol=1e-5)


def in_threads(*functions: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def hazards() -> list[str]:
    return [hazard["text"] for hazard in cuda_emulator.start().report()["hazards"]]


def test_a_device_is_described_by_what_its_driver_says(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    told = wrapper.description
    assert (told.compute_capability, told.multiprocessors, told.device_id) == ((9, 0), 4, ctx.device.info.ordinal)
    assert (told.name, told.memory) == (ctx.device.info.title, ctx.device.info.memory_total)
    assert told.max_grid == (2**31 - 1, 65535, 65535)
    assert (told.cooperative_launch, told.tcc_driver) == (False, False)
    assert DeviceDescription.from_json(told.to_json()) == told


@pytest.mark.parametrize("name", CASES)
def test_plans_compute_what_numpy_does(ctx: tz.CUDAContext, wrapper: CudnnWrapper, name: str) -> None:
    case = CASES[name]
    plan = loaded(wrapper, case)
    assert plan.operation == case.operation
    assert plan.algorithm == "eng0"
    assert repr(plan) == f"<LoadedPlan {case.operation.name} on cuda:0: eng0>"
    for _ in range(2):
        agree(ctx, executed(ctx, wrapper, plan, case), case.outputs)
    assert not hazards()


def test_a_call_is_made_on_the_states_stream_with_its_handle_and_lease(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper
) -> None:
    case = CASES["conv-bias-relu"]
    plan = loaded(wrapper, case)
    assert plan.workspace_bytes == 2 * 4 * case.outputs[0].size
    pairs = [*zip(case.operation.inputs, case.inputs, strict=True), (case.operation.outputs[0], None)]
    arrays = [placed(ctx, *pair) for pair in pairs]

    def inside(state: CudnnState) -> tuple[int, int, int]:
        with state.workspace.get(plan.workspace_bytes) as lease:
            plan.execute(state, arrays, lease)
            return state.handle, state.native_stream, lease.address

    handle, stream, scratch = wrapper.with_state(3, inside)
    loading, call = front_end.calls
    assert (loading.name, call.name) == ("deserialize", "execute")
    assert (call.handle, call.stream, call.workspace) == (handle, stream, scratch)
    assert stream != int(ctx.own_stream.native)  # type: ignore[call-overload]
    assert call.addresses == {number: array.address for number, array in enumerate(arrays, 1) if array is not None}
    assert loading.handle not in (handle, ctx.cudnn_handle())
    assert loading.stream == 0, "the front end captures what is on the stream of the handle that loads"
    assert loading.context == call.context == ctx.cuda_context
    assert int(driver.cuCtxGetCurrent()[1]) == 0, "the caller's context is back"
    assert [info.leased_bytes for info in wrapper.states() if info.number == 3] == [0]


def test_no_scratch_memory_is_needed_where_the_plan_has_none(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["matmul"]
    plan = loaded(wrapper, case)
    assert plan.workspace_bytes == 0
    arrays = [placed(ctx, *pair) for pair in zip(case.operation.inputs, case.inputs, strict=True)]
    arrays.append(placed(ctx, case.operation.outputs[0]))
    wrapper.with_state(0, lambda state: plan.execute(state, arrays, None))
    assert front_end.calls[-1].workspace == 0
    agree(ctx, arrays[2:], case.outputs)


def test_the_order_is_that_of_the_callers_stream(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    """What the stream has comes before, what it gets later comes after, and another stream waits for it."""
    case = CASES["linear-bias-relu"]
    plan, operation = loaded(wrapper, case), case.operation
    x, w, bias = (placed(ctx, *pair) for pair in zip(operation.inputs, case.inputs, strict=True))
    sent = ctx.asarray(case.inputs[0])
    stream, other = ctx.new_stream(), ctx.new_stream()
    results = [placed(ctx, operation.outputs[0]) for _ in range(8)]
    ctx.synchronize(TIMEOUT)
    for number, result in enumerate(results):
        with ctx.on(stream if number % 2 else other):
            here = ctx.stream
            here.wait(other if number % 2 else stream)
            ctx.copy(x, sent)
            run(wrapper, plan, [x, w, bias, result], index=number % 3)
            ctx.fill(x, number)
    ctx.synchronize(TIMEOUT)
    for result in results:
        agree(ctx, [result], case.outputs)
    assert (ctx.to_numpy(x) == len(results) - 1).all()


def test_an_array_that_is_still_made_elsewhere_is_waited_for(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["matmul"]
    plan = loaded(wrapper, case)
    for _ in range(5):
        with ctx.on(ctx.new_stream()):
            arrays = [placed(ctx, *pair) for pair in zip(case.operation.inputs, case.inputs, strict=True)]
        arrays.append(placed(ctx, case.operation.outputs[0]))
        run(wrapper, plan, arrays)
        agree(ctx, arrays[2:], case.outputs)


def test_memory_that_is_dropped_after_the_call_is_not_reused_before_it(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper
) -> None:
    case = CASES["linear-bias-relu"]
    plan = loaded(wrapper, case)
    for _ in range(10):
        [result] = executed(ctx, wrapper, plan, case)  # its inputs are gone
        gc.collect()
        for one in case.inputs:
            ctx.fill(ctx.empty(one.shape, "float32"), -1.0)
        agree(ctx, [result], case.outputs)


def test_threads_execute_one_plan_each_in_a_state_of_its_own(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["conv-bias-relu"]
    plan = loaded(wrapper, case)

    def work(index: int) -> None:
        with tz.CUDAContext(device="cuda:0") as mine:
            own = CudnnWrapper(mine)
            for _ in range(4):
                agree(mine, executed(mine, own, plan, case, index), case.outputs)

    in_threads(*(partial(work, index) for index in range(4)))
    done = [call for call in front_end.calls if call.name == "execute"]
    assert len({call.handle for call in done}) == len({call.stream for call in done}) == 4
    assert len({call.workspace for call in done}) >= 4, "no two states share scratch memory"
    assert not hazards()


def test_a_launched_function_executes(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["attention-causal"]
    plan, operation = loaded(wrapper, case), case.operation
    inputs = [placed(ctx, *pair) for pair in zip(operation.inputs, case.inputs, strict=True)]

    def attend(*given: tz.Buffer) -> list[Any]:
        made = [tz.current().empty(one.shape, one.dtype) for one in operation.outputs if one]
        run(CudnnWrapper(tz.current()), plan, [*given, *made])
        return made

    tasks = [ctx.launch(attend, *inputs, stream=ctx.new_stream()) for _ in range(4)]
    for task in tasks:
        for one, other in zip(task.result(timeout=TIMEOUT), case.outputs, strict=True):
            np.testing.assert_allclose(ctx.to_numpy(one), other, atol=1e-5)


def test_who_listens_is_told_what_is_read_and_written(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case, heard = CASES["conv-backward-x"], list[Operation]()
    plan = loaded(wrapper, case)
    stop = listen(heard.append)
    try:
        [dx, _, _] = executed(ctx, wrapper, plan, case)
    finally:
        stop()
    [told] = [one for one in heard if one.kind == "kernel"]
    assert (told.label, told.subject) == ("cudnn conv2d.backward", plan)
    assert [one.shape for one in told.reads] == [case.inputs[0].shape, case.inputs[2].shape]
    assert dx is not None
    assert [one.address for one in told.writes] == [dx.address]


def test_a_plan_travels_and_serves_every_context_of_the_device(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["matmul"]
    sent: CudnnPlan = pickle.loads(pickle.dumps(front_end.planned(case.operation, wrapper.description)))
    plan = wrapper.load(sent)
    with tz.CUDAContext(device="cuda:0") as second:
        agree(second, executed(second, CudnnWrapper(second), plan, case), case.outputs)
    agree(ctx, executed(ctx, wrapper, plan, case), case.outputs)


def test_a_plan_that_is_dropped_is_unloaded_after_its_work(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["conv"]
    wrapper.close(TIMEOUT)  # and so nothing runs what earlier tests have dropped
    gc.collect()
    ctx.own_stream.runtime.check()
    before = front_end.alive[0]
    plan = loaded(wrapper, case)
    assert front_end.alive[0] == before + 1
    outputs = executed(ctx, wrapper, plan, case)
    del plan
    gc.collect()
    assert front_end.alive[0] == before + 1, "a finaliser calls nothing"
    agree(ctx, outputs, case.outputs)
    ctx.synchronize(TIMEOUT)
    wrapper.close(TIMEOUT)
    ctx.own_stream.runtime.check()
    assert front_end.alive[0] == before


def test_plans_of_a_described_device_are_for_that_alone(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    operation = describe.matmul(describe.contiguous("float32", 4, 4), describe.contiguous("float32", 4, 4))
    here = wrapper.description
    for other in (H100, replace(here, multiprocessors=5), replace(here, compute_capability=(8, 0))):
        with pytest.raises(tz.errors.WrongDeviceError, match=r"was made for .*multiprocessors\), and cuda:0 is "):
            wrapper.load(front_end.planned(operation, other))
    wrapper.load(front_end.planned(operation, replace(here, clock_khz=1, name="as fast as another")))
    assert [call.name for call in front_end.calls] == ["deserialize"]
