"""Run by test_libraries.py: ``algorithm="measure"`` among algorithms of cuDNN whose times are declared."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.core.runtime import DeviceRuntime, runtime_of
from tazza.dnn import Choice, CudnnLibrary, CudnnWrapper, Plan
from tazza.dnn.cuda.search import Search
from tazza.errors import (
    BackendError,
    CleanupWarning,
    DeviceLostError,
    OutOfMemoryError,
    TazzaError,
    UnsupportedError,
    UsageError,
)
from tests.dnn.cudnn_calls import operation, told_stream

TIMEOUT = 20.0
FORWARD, FILTER, DATA = (f"cudnnConvolution{what}" for what in ("Forward", "BackwardFilter", "BackwardData"))
ALGORITHMS = {FORWARD: (2, 0, 7), FILTER: (1, 0), DATA: (1, 0)}
"""By call, in the order of the library; 0 needs no workspace, forward 7 that of 2 for each image."""

COLUMNS = 4 * 2 * 9 * 9
CONVOLUTION = operation("conv2d", ((2, 2, 5, 5), (2, 2, 3, 3), None), ((2, 2, 3, 3),))
GRADIENTS = operation(
    "conv2d.backward", ((2, 2, 3, 3), (2, 2, 5, 5), (2, 2, 3, 3), None), ((2, 2, 5, 5), (2, 2, 3, 3), (2,))
)
EACH = 1 + 2 * 3
"""Executions of a candidate where there is no time: one before, and twice three between events."""

ELSEWHERE = {"cuCtxPopCurrent"}
"""Its failure leaves the thread with a context that is not its own: every_call.py has it."""

UNHEARD = {"cuEventQuery", "cuCtxPushCurrent"}
"""A wait that cannot look looks again, and so does the pool."""

Slow = Callable[[str, Mapping[int, float]], None]


def emulator() -> cuda_emulator.Emulator:
    return cuda_emulator.start()


@pytest.fixture
def ctx() -> Iterator[tz.CUDAContext]:
    with tz.CUDAContext(device="cuda:0", seed=5) as opened:
        for states in opened.own_stream.runtime.libraries.values():
            states.plans.clear()  # other tests have declared other times
            states.smaller.clear()
        yield opened


@pytest.fixture
def slow() -> Iterator[Slow]:
    """Declares how many seconds the algorithms of a call take, by number."""

    def declare(call: str, times: Mapping[int, float]) -> None:
        for number in ALGORITHMS[call]:
            emulator().declare_time(f"{call}/{number}", times.get(number, 0))

    yield declare
    for call in ALGORITHMS:
        declare(call, {})


def library(ctx: tz.CUDAContext) -> CudnnLibrary:
    return CudnnLibrary.of(ctx.device)


def measured(ctx: tz.CUDAContext, described: Any = CONVOLUTION, most: int | None = None) -> Plan:
    """The plan of a search that times each algorithm as little as it may."""
    return library(ctx).compile(described, Choice("measure", most, 0))


def calls(name: str) -> int:
    return int(emulator().report()["libraries"]["calls"].get(name, 0))


def integers(*shape: int) -> Any:
    """Whole numbers of float32: sums of products are exact in any order."""
    return np.random.default_rng(len(shape)).integers(-3, 4, shape).astype("f4")


def left(runtime: DeviceRuntime) -> tuple[int, int, int]:
    """Streams in the driver, and bytes that are charged to the device, and that the driver has given out on it."""
    assert emulator().wait_idle()
    runtime.reclaim()
    streams = int(emulator().report()["objects"].get("stream", 0))
    return streams, runtime.account.live, int(emulator().live_bytes(runtime.info.ordinal))


def in_thread(function: Callable[[], object]) -> None:
    """Run it in a thread that must end, well."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "it waits for somebody"
    if errors:
        raise errors[0]


# What is chosen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", ALGORITHMS[FORWARD])
def test_the_fastest_is_taken(ctx: tz.CUDAContext, slow: Slow, best: int) -> None:
    slow(FORWARD, {2: 20, 0: 30, 7: 40} | {best: 10})
    plan = measured(ctx)
    assert plan.algorithm == f"forward {best}"
    assert plan.workspace_bytes == {2: COLUMNS, 0: 0, 7: 2 * COLUMNS}[best]
    assert library(ctx).compile(CONVOLUTION, Choice()).algorithm == "forward 2", "the library's own order"
    assert library(ctx).compile(CONVOLUTION, Choice("deterministic")).algorithm == "forward 2"


@pytest.mark.parametrize(("most", "best"), [(None, 7), (2 * COLUMNS - 1, 2), (COLUMNS - 1, 0)])
def test_the_cap_changes_the_choice(ctx: tz.CUDAContext, slow: Slow, most: int | None, best: int) -> None:
    slow(FORWARD, {2: 20, 0: 30, 7: 10})
    before = calls(FORWARD)
    assert measured(ctx, most=most).algorithm == f"forward {best}"
    assert calls(FORWARD) - before == {7: 3, 2: 2, 0: 0}[best] * EACH, "what does not fit is not run, nor what is alone"


@pytest.mark.parametrize("filters", [0, 1])
@pytest.mark.parametrize("data", [0, 1])
def test_each_gradient_has_the_fastest(ctx: tz.CUDAContext, slow: Slow, filters: int, data: int) -> None:
    slow(FILTER, {filters: 10, 1 - filters: 20})
    slow(DATA, {data: 10, 1 - data: 20})
    plan = measured(ctx, GRADIENTS)
    assert plan.algorithm == f"filter {filters}, data {data}"
    assert plan.workspace_bytes == (COLUMNS if filters or data else 0)
    assert measured(ctx, GRADIENTS, 8).algorithm == "filter 0, data 0"
    alone = measured(ctx, GRADIENTS._replace(outputs=(None, *GRADIENTS.outputs[1:])))
    assert alone.algorithm == f"filter {filters}"


def test_deterministic_takes_only_what_is(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FILTER, {1: 20})
    slow(DATA, {1: 20})
    assert library(ctx).compile(GRADIENTS, Choice("deterministic")).algorithm == "filter 1, data 1"
    with pytest.raises(UnsupportedError, match=f"no deterministic algorithm .* the smallest needs {COLUMNS}"):
        library(ctx).compile(GRADIENTS, Choice("deterministic", 8))


@pytest.mark.parametrize("best", ALGORITHMS[FORWARD])
def test_results_are_those_of_the_reference_and_arguments_stay(ctx: tz.CUDAContext, slow: Slow, best: int) -> None:
    slow(FORWARD, {2: 20, 0: 30, 7: 40} | {best: 10})
    slow(FILTER, {best % 2: 10, 1 - best % 2: 20})
    slow(DATA, {1 - best % 2: 10, best % 2: 20})
    x, w, bias, options = integers(3, 4, 7, 6), integers(6, 2, 3, 3), integers(6), {"groups": 2, "activation": "relu"}
    with tz.open("cpu", dnn="reference") as cpu:
        y = cpu.dnn.conv2d(x, w, bias, **options)
        dy = integers(*y.shape)
        gradients = cpu.dnn.conv2d_backward(dy, x, w, y=y, **options)
    sent = [ctx.asarray(one) for one in (x, w, bias, y, dy)]
    dnn = ctx.dnn.configured(algorithm="measure", seconds=0)
    np.testing.assert_array_equal(ctx.to_numpy(dnn.conv2d(*sent[:3], **options)), y)
    found = dnn.conv2d_backward(sent[4], *sent[:2], y=sent[3], **options)
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_array_equal(ctx.to_numpy(one), other)
    for one, other in zip(sent, (x, w, bias, y, dy), strict=True):
        np.testing.assert_array_equal(ctx.to_numpy(one), other)
    assert not emulator().report()["n_hazards"], emulator().report()["hazards"]


def test_arrays_with_gaps_are_made_up_as_they_lie(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 20, 0: 10, 7: 20})
    x = CONVOLUTION.inputs[0]
    assert x is not None
    gaps = CONVOLUTION._replace(inputs=(x._replace(strides=(-400, 100, 12, -2)), *CONVOLUTION.inputs[1:]))
    assert measured(ctx, gaps).algorithm == "forward 0"
    assert not emulator().report()["n_hazards"], emulator().report()["hazards"]


def test_for_products_there_is_nothing_to_choose(ctx: tz.CUDAContext) -> None:
    x, w = integers(3, 4), integers(5, 4)
    dnn, before = ctx.dnn.configured(algorithm="measure"), calls("cudnnSetStream")
    np.testing.assert_array_equal(ctx.to_numpy(dnn.linear(ctx.asarray(x), ctx.asarray(w))), x @ w.T)
    described = operation("linear", ((3, 4), (5, 4), None), ((3, 5),), (None,))
    plan, other = (library(ctx).compile(described, Choice(how)) for how in ("measure", "heuristic"))
    assert (plan.algorithm, plan.workspace_bytes) == (other.algorithm, other.workspace_bytes)
    assert calls("cudnnSetStream") - before == 1, "the call's own: nothing was timed"


# What is kept --------------------------------------------------------------------------------------------------------


def test_a_choice_is_kept_for_the_device(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 20, 0: 10, 7: 20})
    sent = [ctx.asarray(integers(2, 2, 5, 5)), ctx.asarray(integers(2, 2, 3, 3))]
    dnn, start, before = ctx.dnn.configured(algorithm="measure", seconds=0), ctx.dnn.plans(), calls(FORWARD)
    dnn.conv2d(*sent)
    assert calls(FORWARD) - before == 3 * EACH + 1
    slow(FORWARD, {0: 20})
    dnn.conv2d(*sent)
    with tz.CUDAContext(device="cuda:0") as second:
        again = second.dnn.configured(algorithm="measure", seconds=0)
        again.conv2d(*[second.asarray(ctx.to_numpy(one)) for one in sent])
    assert calls(FORWARD) - before == 3 * EACH + 3
    info = ctx.dnn.plans()
    assert (info.misses - start.misses, info.hits - start.hits, info.size - start.size) == (1, 2, 1)
    ctx.dnn.conv2d(*sent)  # another choice is another plan
    dnn.configured(max_workspace=0).conv2d(*sent)
    assert ctx.dnn.plans().misses - start.misses == 3


def test_two_threads_that_want_the_same_plan_search_once(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 20, 0: 30, 7: 10})
    x, w = integers(2, 2, 5, 5), integers(2, 2, 3, 3)
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.conv2d(x, w)
    sent, dnn = [ctx.asarray(x), ctx.asarray(w)], ctx.dnn.configured(algorithm="measure", seconds=0)
    ctx.synchronize(TIMEOUT)
    start, before, together = ctx.dnn.plans(), calls(FORWARD), threading.Barrier(2)

    def call() -> None:
        together.wait(TIMEOUT)
        with ctx.on(ctx.new_stream()):
            np.testing.assert_array_equal(ctx.to_numpy(dnn.conv2d(*sent)), expected)

    threads = [threading.Thread(target=in_thread, args=(call,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert ctx.dnn.plans().misses - start.misses == 1
    assert calls(FORWARD) - before == 3 * EACH + 2


def test_nobody_else_waits_for_a_search(ctx: tz.CUDAContext, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """States, their cache and the pool serve another thread while a search waits for the device."""
    slow(FORWARD, {2: 20, 0: 30, 7: 10})
    over, meanwhile = Search._over, list[Any]()

    def others() -> None:
        with tz.CUDAContext(device="cuda:0") as other:
            x, w = other.asarray(integers(1, 2, 9, 9)), other.asarray(integers(3, 2, 3, 3))
            CudnnWrapper(other).with_state(0, lambda state: meanwhile.append(state.index))
            meanwhile.append(other.to_numpy(other.dnn.conv2d(x, w)).shape)
            meanwhile.append(other.to_numpy(other.dnn.configured(algorithm="measure", seconds=0).conv2d(x, w)).shape)

    def waits(self: Search, *args: Any) -> Any:
        if not meanwhile:
            meanwhile.append("here")
            in_thread(others)
        return over(self, *args)

    monkeypatch.setattr(Search, "_over", waits)
    dnn = ctx.dnn.configured(algorithm="measure", seconds=0)
    dnn.conv2d(ctx.asarray(integers(2, 2, 5, 5)), ctx.asarray(integers(2, 2, 3, 3)))
    assert meanwhile == ["here", 0, (1, 3, 7, 7), (1, 3, 7, 7)]


def test_inside_a_launched_function_too(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 20, 0: 10, 7: 20})
    x, w = integers(2, 2, 5, 5), integers(2, 2, 3, 3)
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.conv2d(x, w)

    def layer(x: tz.Buffer, w: tz.Buffer) -> Any:
        return tz.current().dnn.configured(algorithm="measure", seconds=0).conv2d(x, w)

    task = ctx.launch(layer, ctx.asarray(x), ctx.asarray(w), stream=ctx.new_stream())
    np.testing.assert_array_equal(ctx.to_numpy(task.result(timeout=TIMEOUT)), expected)


def test_nothing_is_left_and_the_threads_handle_stays_bound(ctx: tz.CUDAContext) -> None:
    runtime = runtime_of(ctx.device)
    measured(ctx), measured(ctx, GRADIENTS)
    handle, native = ctx.cudnn_handle(), int(ctx.stream.native)  # type: ignore[call-overload]
    before, handles = left(runtime), emulator().report()["libraries"]["objects"]["cudnnHandle"]
    measured(ctx), measured(ctx, GRADIENTS)
    assert left(runtime) == before
    assert emulator().report()["libraries"]["objects"]["cudnnHandle"] == handles, "a search takes the last one's"
    assert told_stream(ctx, "cudnnGetStream", handle) == native


# What fails ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "OUT_OF_MEMORY"])
def test_one_that_the_library_refuses_is_passed_over(ctx: tz.CUDAContext, slow: Slow, error: str) -> None:
    slow(FORWARD, {2: 10, 0: 20, 7: 30})
    for occurrence in (1, 3):  # before it is timed, and while it is
        with emulator().injecting(f"{FORWARD}:{occurrence}:{error}"):
            assert measured(ctx).algorithm == "forward 0"
    assert measured(ctx).algorithm == "forward 2"


def test_where_all_are_refused_the_error_says_why(ctx: tz.CUDAContext) -> None:
    before = left(runtime_of(ctx.device))
    with emulator().injecting(f"{FORWARD}:*:NOT_SUPPORTED"):
        with pytest.raises(UnsupportedError, match="none of 3 algorithms could be run.*NOT_SUPPORTED"):
            measured(ctx)
    with emulator().injecting(f"{FORWARD}:*:OUT_OF_MEMORY"), pytest.raises(OutOfMemoryError, match=FORWARD):
        measured(ctx)
    assert left(runtime_of(ctx.device)) == before
    assert ctx.health


def test_one_for_which_there_is_no_memory_is_passed_over(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 20, 0: 30, 7: 10})
    many = operation("conv2d", ((40, 4, 66, 66), (1, 4, 3, 3), None), ((40, 1, 64, 64),))
    assert measured(ctx, many).algorithm == "forward 7"
    held = ctx.allocate(50 << 20)  # of 64 MiB
    assert measured(ctx, many).algorithm == "forward 2"
    held.close()


def test_where_the_states_memory_is_short_nothing_is_timed_under_its_lock(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 10, 0: 30, 7: 20})
    x, w = integers(2, 2, 5, 5), integers(2, 2, 3, 3)
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.conv2d(x, w)
    wrapper = CudnnWrapper(ctx)
    wrapper.with_state(6, lambda state: setattr(state.workspace, "cap", 100))
    dnn, before = ctx.dnn.configured(algorithm="measure", seconds=0, state=6), calls(FORWARD)
    np.testing.assert_array_equal(ctx.to_numpy(dnn.conv2d(ctx.asarray(x), ctx.asarray(w))), expected)
    assert calls(FORWARD) - before == 3 * EACH + 1
    wrapper.close(TIMEOUT)


@pytest.mark.parametrize(
    "call",
    [
        *("cuStreamCreateWithPriority", "cuMemsetD32Async", "cuEventElapsedTime", "cudnnSetStream"),
        *("cudnnGetConvolutionForwardAlgorithm", FORWARD),
    ],
)
def test_a_call_that_fails_is_named_and_nothing_is_left(ctx: tz.CUDAContext, call: str) -> None:
    measured(ctx)
    before = left(runtime_of(ctx.device))
    with emulator().injecting(f"{call}:1:UNKNOWN"), pytest.raises(BackendError, match="UNKNOWN") as caught:
        measured(ctx)
    assert call in f"{caught.value} {caught.value.call}"
    del caught
    assert left(runtime_of(ctx.device)) == before
    assert ctx.health
    assert measured(ctx).algorithm.startswith("forward")


def driver_calls() -> dict[str, int]:
    """How often each call of the driver was made, by the name under which it fails."""
    found: dict[str, int] = {}
    for call, count in emulator().report()["calls"].items():
        name = call.split("_v")[0].removesuffix("_ptsz").removesuffix("_ptds")
        found[name] = found.get(name, 0) + int(count)
    return found


def test_whatever_call_of_the_driver_fails_nothing_is_left(ctx: tz.CUDAContext) -> None:
    """Each that a search makes, at its first, second and last time: it raises, warns, or can do without."""
    runtime = runtime_of(ctx.device)
    for _ in range(2):  # what is made once is made
        start = driver_calls()
        measured(ctx)
        made = {name: count - start.get(name, 0) for name, count in driver_calls().items()}
    before = left(runtime)
    for name in sorted(name for name, count in made.items() if count and name not in ELSEWHERE):
        for occurrence in sorted({1, min(2, made[name]), made[name]}):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                start = driver_calls()
                with emulator().injecting(f"{name}:{occurrence}:UNKNOWN"):
                    try:
                        measured(ctx)
                    except TazzaError as error:
                        said = f"{error} {vars(error)} {error.__cause__}"
                        assert name in said or "cudnn" in said, f"{name}:{occurrence}: {said}"  # its own calls
                    else:
                        heard = any(name in str(one.message) for one in warned) or name in UNHEARD
                        # How often it is made differs from run to run.
                        due = driver_calls()[name] - start.get(name, 0) >= occurrence
                        assert heard or not due, f"{name}:{occurrence}: nobody was told"
            assert left(runtime) == before, f"{name}:{occurrence}"
            assert ctx.health, name
    assert measured(ctx).algorithm.startswith("forward")


def test_a_handle_that_cannot_be_unbound_is_said(ctx: tz.CUDAContext) -> None:
    measured(ctx)
    with emulator().injecting("cudnnSetStream:2:UNKNOWN"), pytest.raises(BackendError, match="UNKNOWN"):
        measured(ctx)
    with emulator().injecting(f"cudnnSetStream:2:UNKNOWN;{FORWARD}:1:UNKNOWN"), pytest.raises(BackendError) as caught:
        measured(ctx)
    assert caught.value.call == FORWARD
    assert "unbinding the handle also failed" in caught.value.__notes__[0]
    measured(ctx)


def test_a_queue_that_cannot_be_destroyed_is_said(ctx: tz.CUDAContext) -> None:
    with emulator().injecting("cuStreamDestroy:1:UNKNOWN"), pytest.warns(CleanupWarning, match="cuStreamDestroy"):
        assert measured(ctx).algorithm.startswith("forward")


def test_a_capture_has_no_search_inside(ctx: tz.CUDAContext, slow: Slow) -> None:
    slow(FORWARD, {2: 20, 0: 30, 7: 10})
    x, w, other = ctx.asarray(integers(2, 2, 5, 5)), ctx.asarray(integers(2, 2, 3, 3)), ctx.new_stream()
    dnn, before, y = ctx.dnn.configured(algorithm="measure", seconds=0), calls(FORWARD), ctx.empty(4, "float32")
    ctx.synchronize(TIMEOUT)
    with ctx.stream.capture() as graph:
        ctx.fill(y, 7)
        with pytest.raises(UsageError, match="timed by running them: call the operation once before the capture"):
            dnn.conv2d(x, w)
        with ctx.on(other), pytest.raises(UsageError, match="timed by running them"):
            dnn.conv2d(x, w)
        assert calls(FORWARD) == before
        in_thread(lambda: measured(ctx))  # another thread captures nothing
    graph.replay()
    assert (ctx.to_numpy(y) == 7).all(), "what was refused has not spoilt the capture"
    graph.close()
    assert dnn.conv2d(x, w).shape == (2, 2, 3, 3)


def test_a_device_that_is_lost_is_said() -> None:
    """Last of its device: nothing works on it afterwards."""
    ordinal = emulator().settings.devices - 1
    with tz.CUDAContext(device=f"cuda:{ordinal}") as ctx:
        measured(ctx)
        with emulator().injecting(f"@kernel:3:ILLEGAL_ADDRESS:device={ordinal}"):
            with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
                measured(ctx)
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            measured(ctx)
