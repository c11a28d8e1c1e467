"""Plans of NVIDIA's front end on a real device: skipped everywhere else, with the reason."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.dnn import CudnnWrapper
from tazza.dnn.cudnn import CudnnPlanner, DeviceDescription
from tazza.errors import BackendUnavailableError, OutOfMemoryError, UsageError, WrongDeviceError
from tests.cuda.front_end_cases import Case, attentions, convolutions, executed, placed, products, read, run

pytestmark = pytest.mark.gpu

TIMEOUT = 60.0
CASES = {
    **{f"float16-{name}": case for name, case in {**convolutions("float16"), **products("float16")}.items()},
    **{f"float32-{name}": case for name, case in convolutions("float32").items()},
    **{f"float16-{name}": case for name, case in attentions("float16", rows=128, width=64).items()},
}


@pytest.fixture(scope="module")
def ctx() -> Iterator[tz.CUDAContext]:
    """A context on a real device."""
    try:
        found = [device for device in tz.devices("cuda") if not device.info.emulated]
    except BackendUnavailableError as error:
        pytest.skip(f"needs a CUDA device: {error.reason}")
    if not found:
        pytest.skip("needs a CUDA device that is not emulated: NVIDIA's front end does not run there")
    if importlib.util.find_spec("cudnn") is None:
        pytest.skip("needs NVIDIA's front end: pip install 'tazza[cudnn-plan]'")
    with tz.CUDAContext(device=found[0].name, seed=7) as opened:
        yield opened


@pytest.fixture(scope="module")
def planner(ctx: tz.CUDAContext, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudnnPlanner]:
    with CudnnPlanner(timeout=100, cache=tmp_path_factory.mktemp("cache")) as planner:
        yield planner


def close(found: Any, expected: Any, dtype: str) -> None:
    """Inputs are rounded before, results after, weights of attention between; sums are of float32."""
    scale = float(np.abs(expected).max()) or 1.0
    np.testing.assert_allclose(found.astype("f4"), expected, atol=(1e-2 if dtype == "float16" else 2e-3) * scale)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_executes_as_numpy_does(ctx: tz.CUDAContext, planner: CudnnPlanner, name: str) -> None:
    case, wrapper = CASES[name], CudnnWrapper(ctx)
    planned = planner.plan(case.operation, wrapper.description)
    plan = wrapper.load(pickle.loads(pickle.dumps(planned)))
    assert plan.workspace_bytes == planned.workspace_bytes, "a real device names the same workspace"
    for _ in range(2):
        for one, other in zip(executed(ctx, wrapper, plan, case), case.outputs, strict=True):
            if one is not None:
                close(read(ctx, one), other, str(one.dtype))


def test_the_driver_tells_what_the_front_end_does(ctx: tz.CUDAContext) -> None:
    import cudnn

    told = DeviceDescription.from_json(cudnn.create_device_properties(ctx.device.info.ordinal).serialize())
    assert CudnnWrapper(ctx).description == told


def test_a_plan_of_another_device_is_refused(ctx: tz.CUDAContext, planner: CudnnPlanner) -> None:
    wrapper = CudnnWrapper(ctx)
    other = replace(wrapper.description, multiprocessors=wrapper.description.multiprocessors - 2)
    with pytest.raises(WrongDeviceError, match="was made for"):
        wrapper.load(planner.plan(CASES["float16-conv"].operation, other))


def test_the_order_is_that_of_the_callers_stream(ctx: tz.CUDAContext, planner: CudnnPlanner) -> None:
    case: Case = CASES["float16-linear-bias-relu"]
    wrapper, operation = CudnnWrapper(ctx), case.operation
    plan = wrapper.load(planner.plan(operation, wrapper.description))
    x, w, bias = (placed(ctx, *pair) for pair in zip(operation.inputs, case.inputs, strict=True))
    sent, long = ctx.asarray(case.inputs[0].astype("f2")), ctx.empty((1 << 26,), "float32")
    results = [placed(ctx, operation.outputs[0]) for _ in range(8)]
    streams = [ctx.new_stream() for _ in range(3)]
    ctx.synchronize(TIMEOUT)
    for number, result in enumerate(results):
        with ctx.on(streams[number % 3]):
            ctx.stream.wait(streams[(number - 1) % 3])
            ctx.fill(long, number)  # so that what comes next is late
            ctx.copy(x, sent)
            run(wrapper, plan, [x, w, bias, result], index=number % 2)
            ctx.fill(x, number)
    ctx.synchronize(TIMEOUT)
    for result in results:
        assert result is not None
        close(read(ctx, result), case.outputs[0], "float16")


def test_misuse_calls_nothing_and_the_plan_goes_on(ctx: tz.CUDAContext, planner: CudnnPlanner) -> None:
    name = next(name for name in CASES if name.endswith("causal-backward"))
    case, wrapper = CASES[name], CudnnWrapper(ctx)
    plan = wrapper.load(planner.plan(case.operation, wrapper.description))
    assert plan.workspace_bytes > 0
    arrays = [placed(ctx, layout, 0) for layout in (*case.operation.inputs, *case.operation.outputs)]
    with wrapper.lease() as state:
        for lease in (None, state.workspace.get(plan.workspace_bytes - 1)):
            with pytest.raises(UsageError, match=r"needs a lease|too small"):
                plan.execute(state, arrays, lease)
        state.workspace.cap = 0
        try:
            with pytest.raises(OutOfMemoryError):
                state.workspace.get(1 << 40)
        finally:
            state.workspace.cap = None
    for one, other in zip(executed(ctx, wrapper, plan, case), case.outputs, strict=True):
        assert one is not None
        close(read(ctx, one), other, "float16")
