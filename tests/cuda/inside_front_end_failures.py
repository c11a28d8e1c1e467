"""Run by test_front_end.py on emulated devices: what is refused before anything is called, and what fails in a call."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import pytest
from cuda.bindings import driver

import tazza as tz
from tazza.dnn import CudnnState, CudnnWrapper, Operation, Plan
from tazza.dnn.cuda import front_end as ours
from tazza.dnn.cuda import loaded as loading
from tazza.dnn.cudnn import CudnnPlan
from tazza.dnn.cudnn.child import read_ubjson
from tazza.drivers.cuda.libraries import load_library
from tazza.errors import (
    ArgumentError,
    BackendError,
    BackendUnavailableError,
    ClosedError,
    DeviceLostError,
    OutOfMemoryError,
    UnsupportedError,
    UsageError,
    WrongDeviceError,
)
from tests.cuda import front_end
from tests.cuda.front_end_cases import CASES, executed, placed, read, run
from tests.unit.cudnn_fake.cudnn.ubjson import encoded

TIMEOUT = 20.0
CASE = CASES["conv-bias-relu"]
front_end.install()


@pytest.fixture
def ctx() -> Iterator[tz.CUDAContext]:
    front_end.calls.clear()
    front_end.install()
    with tz.CUDAContext(device="cuda:0", seed=5) as opened:
        yield opened
    assert not front_end.failures


@pytest.fixture
def wrapper(ctx: tz.CUDAContext) -> CudnnWrapper:
    return CudnnWrapper(ctx)


@pytest.fixture
def plan(wrapper: CudnnWrapper) -> Plan:
    return wrapper.load(planned(wrapper))


@pytest.fixture
def arrays(ctx: tz.CUDAContext) -> list[Any]:
    pairs = [*zip(CASE.operation.inputs, CASE.inputs, strict=True), (CASE.operation.outputs[0], None)]
    return [placed(ctx, *pair) for pair in pairs]


def planned(wrapper: CudnnWrapper, **changed: Any) -> CudnnPlan:
    return front_end.planned(CASE.operation, wrapper.description, **changed)


def works(ctx: tz.CUDAContext, wrapper: CudnnWrapper, plan: Plan) -> None:
    [y] = executed(ctx, wrapper, plan, CASE)
    assert y is not None
    np.testing.assert_array_equal(read(ctx, y), CASE.outputs[0])


def alive(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> int:
    """Graphs that there are once no state has work."""
    wrapper.close(TIMEOUT)
    gc.collect()
    ctx.own_stream.runtime.check()
    return front_end.alive[0]


class Untouched:
    """Fails where anything of cuDNN or its front end is called inside ``with``."""

    def __enter__(self) -> None:
        self._before = self._calls()

    def __exit__(self, *_: object) -> None:
        assert self._calls() == self._before

    def _calls(self) -> tuple[int, dict[str, int]]:
        told = cuda_emulator.start().report()["libraries"]["calls"]
        return len(front_end.calls), {name: count for name, count in told.items() if name.startswith("cudnn")}


# Loading -------------------------------------------------------------------------------------------------------------


def changed_json(plan: CudnnPlan, **changed: Any) -> bytes:
    """The bytes of a plan with parts of cuDNN's own plan changed."""
    outer = read_ubjson(plan.serialized)
    inner = json.loads(outer["cudnn_backend_data"]) | changed
    return encoded(outer | {"cudnn_backend_data": json.dumps(inner)})


def test_plans_that_do_not_fit_are_refused_before_anything_is_called(wrapper: CudnnWrapper) -> None:
    fine, other = planned(wrapper), CASES["matmul"].operation
    planes = CASES["conv-planes"].operation
    cases: list[tuple[type[Exception], str, Any]] = [
        (ArgumentError, "plan: got 'conv'.*CudnnPlanner.plan", "conv"),
        (ArgumentError, "no serialized plan of cuDNN", replace(fine, serialized=b"")),
        (ArgumentError, "no serialized plan of cuDNN", replace(fine, serialized=fine.serialized[:-9])),
        (ArgumentError, "no serialized plan of cuDNN", replace(fine, serialized=encoded([1]))),
        (ArgumentError, "do not tell which", replace(fine, serialized=changed_json(fine, cudnnVersion=None))),
        (ArgumentError, "do not tell which", planned(wrapper, cudnn_frontend_version="1.2.3")),
        (UnsupportedError, "made by cuDNN 92800, and 90000 is in use", planned(wrapper, version=92800)),
        (ArgumentError, "not of the matmul that", replace(fine, operation=other)),
        (ArgumentError, "not of the conv2d that", replace(fine, operation=planes)),
        (ArgumentError, "not of the conv2d that", planned(wrapper, variant_pack_uids=[1, 2, 3])),
        (ArgumentError, "not of the conv2d that", planned(wrapper, variant_pack_uids=None)),
        (ArgumentError, "not of the conv2d that", planned(wrapper, tensors={})),
        (ArgumentError, "not of the conv2d that", planned(wrapper, tensors={"1": {"dim": [1], "stride": None}})),
        (ArgumentError, "operation: got None", replace(fine, operation=None)),  # type: ignore[arg-type]
        (WrongDeviceError, "made for None", replace(fine, serialized=changed_json(fine, GPUProfile={}))),
    ]
    for error, message, plan in cases:
        with Untouched(), pytest.raises(error, match=message):
            wrapper.load(plan)


def test_a_plan_of_another_front_end_is_refused(wrapper: CudnnWrapper) -> None:
    with Untouched(), pytest.raises(UnsupportedError, match=r"front end 12300, and 10203 \(1.2.3\) is in use here"):
        wrapper.load(planned(wrapper, cudnn_frontend_version=12300))


def test_a_front_end_that_is_not_there_or_does_not_fit_is_said(
    wrapper: CudnnWrapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = planned(wrapper)
    monkeypatch.setattr(ours, "_found", None)
    monkeypatch.delitem(sys.modules, "cudnn")
    with Untouched(), pytest.raises(BackendUnavailableError, match="front end does not run on the emulated driver"):
        wrapper.load(fine)
    monkeypatch.setattr(ours, "is_emulated", lambda: False)
    monkeypatch.setitem(sys.modules, "cudnn", None)
    with Untouched(), pytest.raises(BackendUnavailableError, match="no front end: .*pip install nvidia-cudnn-frontend"):
        wrapper.load(fine)
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(backend_version=lambda: 92800))
    with Untouched(), pytest.raises(BackendUnavailableError, match="libcudnn of version 92800, and .*version 90000"):
        wrapper.load(fine)
    monkeypatch.setitem(sys.modules, "cudnn", front_end)
    monkeypatch.setattr(load_library("cudnn"), "emulated", False)

    def find(name: str) -> None:
        raise RuntimeError(f"no {name} anywhere")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=find))
    with Untouched(), pytest.raises(BackendUnavailableError, match="'cudart' is not usable: no cudart anywhere .pip"):
        wrapper.load(fine)
    monkeypatch.setattr(load_library("cudnn"), "emulated", True)
    wrapper.load(fine)
    assert repr(ours._found).startswith("<FrontEnd 1.2.3 over <cudnn 9.0.0")


FAILURES: list[tuple[Exception, type[Exception], str]] = [
    (RuntimeError("Error: CUDNN_STATUS_EXECUTION_FAILED; why:\n\n  a kernel"), BackendError, "; why: a kernel"),
    (ValueError("Uid 3 not found in variant pack."), BackendError, "Uid 3 not found"),
    (TypeError("_execute(): incompatible function arguments"), BackendError, "incompatible"),
    (IndexError(), BackendError, "IndexError"),
    (front_end.cudnnGraphNotSupportedError("No valid engine"), UnsupportedError, "cudnn {call}: No valid engine"),
    (
        front_end.cudnnGraphNotSupportedError("status: CUDNN_STATUS_NOT_SUPPORTED_SHAPE"),
        UnsupportedError,
        "cudnn {call}: status: CUDNN_STATUS_NOT_SUPPORTED_SHAPE",
    ),
    (
        front_end.cudnnGraphNotSupportedError("Check and Set the HANDLE cudnn_status: CUDNN_STATUS_BAD_PARAM"),
        BackendError,
        "cudnn.{call}: Check and Set",
    ),
    (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), OutOfMemoryError, "ALLOCATION_FAILED"),
    (MemoryError("std::bad_alloc"), OutOfMemoryError, "bad_alloc"),
]


@pytest.mark.parametrize("number", range(len(FAILURES)))
def test_what_the_front_end_raises_is_told_in_our_errors(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper, plan: Plan, arrays: list[Any], number: int
) -> None:
    raised, expected, message = FAILURES[number]
    before = alive(ctx, wrapper)
    for call, use in (
        ("deserialize", lambda: wrapper.load(planned(wrapper))),
        ("execute", lambda: run(wrapper, plan, arrays)),
    ):
        front_end.failures.append(raised)
        with pytest.raises(expected, match=message.format(call=call)) as caught:
            use()
        assert type(caught.value) is expected
        assert caught.value.__cause__ is raised
        if isinstance(caught.value, BackendError):
            assert (caught.value.backend, caught.value.call) == ("cudnn", call)
            assert ("CUDNN_STATUS" in str(raised)) == caught.value.symbol.startswith("CUDNN_STATUS")
        raised.__traceback__ = None
        works(ctx, wrapper, plan)
    assert ctx.health
    assert {info.leased_bytes for info in wrapper.states()} == {0}
    assert alive(ctx, wrapper) == before, "an error that somebody keeps keeps no graph"


@pytest.mark.parametrize("call", ["cudnnCreate", "cudnnSetStream"])
def test_a_handle_that_cannot_be_had_is_named(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr("tazza.dnn.cuda.loaded._loaders", {})
    with cuda_emulator.start().injecting(f"{call}:1:UNKNOWN"), pytest.raises(BackendError, match=call):
        wrapper.load(planned(wrapper))
    works(ctx, wrapper, wrapper.load(planned(wrapper)))


@pytest.mark.parametrize("call", ["cuDeviceGetAttribute", "cuDriverGetVersion"])
def test_a_driver_that_does_not_tell_what_the_device_is(ctx: tz.CUDAContext, wrapper: CudnnWrapper, call: str) -> None:
    with cuda_emulator.start().injecting(f"{call}:1:UNKNOWN"), pytest.raises(BackendError, match=call):
        wrapper.description  # noqa: B018
    assert wrapper.description == CudnnWrapper(ctx).description


def test_a_figure_that_makes_no_sense_is_named(wrapper: CudnnWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    driver: Any = wrapper._ctx.device.driver
    ask, made = driver.attributes, planned(wrapper)
    blind = {"CLOCK_RATE": 0}

    def attributes(info: Any, *names: str) -> list[int]:
        return [blind.get(name, told) for name, told in zip(names, ask(info, *names), strict=True)]

    monkeypatch.setattr(driver, "attributes", attributes)
    with pytest.raises(ArgumentError, match="clock_khz: got 0"):
        wrapper.description  # noqa: B018
    wrapper.load(made)  # which asks only for what cuDNN goes by


def test_loading_waits_for_its_turn_and_no_longer(wrapper: CudnnWrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper.load(planned(wrapper))
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.05")
    with loading._loader_of(wrapper._ctx.own_stream.runtime)._lock:
        with Untouched(), pytest.raises(tz.errors.WaitTimeoutError, match="still loads a plan on cuda:0"):
            wrapper.load(planned(wrapper))
    wrapper.load(planned(wrapper))


# Execution -----------------------------------------------------------------------------------------------------------


def test_scratch_memory_that_cannot_be_used_is_refused(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper, plan: Plan, arrays: list[Any]
) -> None:
    with wrapper.lease() as state:
        over = state.workspace.get(plan.workspace_bytes)
        over.release()

    def misuse(state: CudnnState) -> None:
        small = state.workspace.get(plan.workspace_bytes - 1)
        for error, message, lease in (
            (UsageError, "needs a lease of", None),
            (UsageError, "too small for this plan, which needs", small),
            (UsageError, "expected what state.workspace.get", 4096),
            (ClosedError, "this lease is over", over),
        ):
            with Untouched(), pytest.raises(error, match=message):
                plan.execute(state, arrays, lease)  # type: ignore[arg-type]
        small.release()

    wrapper.with_state(0, misuse)
    with wrapper.lease() as state:
        foreign = state.workspace.get(plan.workspace_bytes)

        def other(inner: CudnnState) -> None:
            with Untouched(), pytest.raises(UsageError, match="of another state's workspace"):
                plan.execute(inner, arrays, foreign)

        wrapper.with_state(9, other)
        foreign.release()
    with Untouched(), pytest.raises(UsageError, match="not held by this thread"):
        plan.execute(state, arrays, over)
    works(ctx, wrapper, plan)


def test_states_of_other_devices_and_libraries_are_refused(plan: Plan, arrays: list[Any]) -> None:
    with tz.CUDAContext(device="cuda:1") as other, CudnnWrapper(other).lease() as state:
        with Untouched(), pytest.raises(WrongDeviceError, match="cuda:1> is on another device than <LoadedPlan"):
            plan.execute(state, arrays, None)
    with Untouched(), pytest.raises(UsageError, match="expected a CudnnState"):
        plan.execute(None, arrays, None)


def test_arrays_that_do_not_fit_are_refused_by_their_number(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper, plan: Plan, arrays: list[Any]
) -> None:
    x, w, bias, y = arrays
    gone = placed(ctx, CASE.operation.inputs[2], 0)
    assert gone is not None
    gone.close()
    with tz.CUDAContext(device="cuda:1") as other, tz.open("cpu") as cpu:
        away, host = placed(other, CASE.operation.inputs[0], 0), cpu.allocate(64, dtype="float32")
        unaligned = ctx.empty(17, "float32")[1:]
        cases: list[tuple[type[Exception], str, Any]] = [
            (ArgumentError, "arrays: got 3", (x, w, bias)),
            (ArgumentError, "arrays: got None", None),
            (ArgumentError, r"arrays\[3\]: got None .*expected a Buffer of Layout", (x, w, bias, None)),
            (ArgumentError, r"arrays\[0\]: got array", (np.ones(3), w, bias, y)),
            (ArgumentError, r"arrays\[1\]: got 'float32 \(2, 8, 6, 5\) with strides", (x, x, bias, y)),
            (ArgumentError, r"arrays\[2\]: .*float64", (x, w, ctx.empty(16), y)),
            (
                ArgumentError,
                r"arrays\[2\]: .*strides \(8,\)",
                (x, w, ctx.empty(32, "float32").view("float32", (16,), (8,)), y),
            ),
            (ArgumentError, r"arrays\[2\]: got 'bytes \(64,\)", (x, w, ctx.allocate(64), y)),
            (ArgumentError, r"arrays\[2\]: got '0x.*a multiple of 16 bytes", (x, w, unaligned, y)),
            (ClosedError, "closed", (x, w, gone, y)),
            (WrongDeviceError, r"arrays\[0\]: memory of cuda:1, not of cuda:0", (away, w, bias, y)),
            (WrongDeviceError, r"arrays\[2\]: memory of cpu:0, not of cuda:0", (x, w, host, y)),
        ]

        def misuse(state: CudnnState) -> None:
            with state.workspace.get(plan.workspace_bytes) as lease:
                for error, message, given in cases:
                    with Untouched(), pytest.raises(error, match=message):
                        plan.execute(state, given, lease)

        wrapper.with_state(0, misuse)
    works(ctx, wrapper, plan)


def test_what_the_plan_does_not_read_may_be_given_if_it_fits(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    case = CASES["conv-backward-x"]
    plan = wrapper.load(front_end.planned(case.operation, wrapper.description))
    dy, _, w, _ = (placed(ctx, *pair) for pair in zip(case.operation.inputs, case.inputs, strict=True))
    x, dx = placed(ctx, case.operation.inputs[1], 0), placed(ctx, case.operation.outputs[0])
    run(wrapper, plan, [dy, x, w, None, dx, None, None])
    assert dx is not None
    np.testing.assert_array_equal(read(ctx, dx), case.outputs[0])
    assert 2 not in front_end.calls[-1].addresses
    for arrays, message in (
        ([dy, w, w, None, dx, None, None], r"arrays\[1\]"),
        ([dy, x, w, dy, dx, None, None], r"arrays\[3\]: .*expected None, as the operation leaves it out"),
    ):
        with Untouched(), pytest.raises(ArgumentError, match=message):
            run(wrapper, plan, arrays, index=0)  # used above: an idle one may have to be made, with a handle


def test_bfloat16_comes_as_the_bits_that_it_is(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    """Which this front end cannot compute: the call is what is looked at."""
    case = CASES["matmul"].operation
    inputs, outputs = (
        tuple(one._replace(dtype="bfloat16") for one in part if one) for part in (case.inputs, case.outputs)
    )
    operation: Operation = case._replace(inputs=inputs, outputs=outputs)
    plan = wrapper.load(front_end.planned(operation, wrapper.description))
    arrays = [ctx.empty(one.shape, "uint16") for one in (*inputs, *outputs)]
    front_end.failures.append(RuntimeError("that is enough"))
    with pytest.raises(BackendError, match="that is enough"):
        run(wrapper, plan, arrays)
    assert front_end.calls[-1].addresses == {number: one.address for number, one in enumerate(arrays, 1)}


def test_the_driver_s_refusal_of_a_kernel_is_an_error_and_no_end(
    ctx: tz.CUDAContext, wrapper: CudnnWrapper, plan: Plan, arrays: list[Any]
) -> None:
    with cuda_emulator.start().injecting("cuLaunchKernel:2:LAUNCH_OUT_OF_RESOURCES"):
        with pytest.raises(BackendError, match="OUT_OF_RESOURCES") as caught:
            run(wrapper, plan, arrays)
    assert caught.value.symbol == "CUDNN_STATUS_EXECUTION_FAILED"
    assert int(driver.cuCtxGetCurrent()[1]) == 0
    assert ctx.health
    works(ctx, wrapper, plan)


def test_a_graph_that_cannot_be_destroyed_stays_and_is_named(ctx: tz.CUDAContext, wrapper: CudnnWrapper) -> None:
    before, runtime = alive(ctx, wrapper), ctx.own_stream.runtime
    plan = wrapper.load(planned(wrapper))
    del plan
    gc.collect()
    with cuda_emulator.start().injecting("cuCtxPushCurrent:1:UNKNOWN"):
        with pytest.warns(tz.errors.CleanupWarning, match="a plan of cuDNN stays loaded on cuda:0: .*cuCtxPushCurrent"):
            runtime.end_loans()
    assert not runtime.loans
    assert ctx.health
    assert front_end.alive[0] == before + 1


def test_a_fault_in_a_plan_loses_the_device() -> None:
    """Last of its device: nothing works on it afterwards."""
    ordinal = cuda_emulator.start().settings.devices - 1
    with tz.CUDAContext(device=f"cuda:{ordinal}") as ctx:
        wrapper = CudnnWrapper(ctx)
        plan = wrapper.load(planned(wrapper))
        before = len(loading._kept)
        with cuda_emulator.start().injecting(f"@kernel:1:ILLEGAL_ADDRESS:device={ordinal}"):
            with pytest.raises(BackendError):
                executed(ctx, wrapper, plan, CASE)
                ctx.synchronize(TIMEOUT)
        for use in (lambda: wrapper.load(planned(wrapper)), lambda: wrapper.description, wrapper.lease):
            with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
                use()
        del plan
        gc.collect()
        ctx.own_stream.runtime.end_loans()
        assert len(loading._kept) == before + 1, "what a lost device has is not touched"
