"""Run by test_libraries.py on emulated devices with the emulated libraries: handles, plans of cuDNN, and hazards."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable, Iterator
from ctypes import c_void_p
from functools import partial
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.contexts.cuda_handles import CUBLAS_WORKSPACE, handles_of
from tazza.dnn import (
    Choice,
    CudnnLibrary,
    CudnnState,
    CudnnWorkspace,
    CudnnWrapper,
    DnnState,
    DnnWrapper,
    SyncedCudnnState,
)
from tazza.drivers.cuda.libraries import load_library
from tazza.errors import (
    ArgumentError,
    BackendError,
    ClosedError,
    DeviceLostError,
    OutOfMemoryError,
    UnsupportedError,
    UsageError,
    WrongDeviceError,
)
from tests.dnn.cudnn_calls import backward, conv2d, operation, told_stream

TIMEOUT = 20.0


@pytest.fixture
def ctx() -> Iterator[tz.CUDAContext]:
    with tz.CUDAContext(device="cuda:0", seed=5) as opened:
        yield opened


def emulator() -> cuda_emulator.Emulator:
    found = cuda_emulator.start()
    assert found.settings.libraries
    return found


def hazards() -> list[str]:
    return [hazard["text"] for hazard in emulator().report()["hazards"]]


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


# Libraries and handles -------------------------------------------------------------------------------------------


def test_a_library_says_where_it_is_from() -> None:
    dnn, blas = load_library("cudnn"), load_library("cublas")
    assert (dnn.emulated, dnn.version, blas.version) == (True, (9, 0, 0), (13, 0, 0))
    assert dnn.path.endswith("libcudnn.so.9")
    assert "emulated" in repr(dnn)
    with pytest.raises(ArgumentError, match="cublas, cudnn, curand"):
        load_library("cufft")


def test_a_handle_is_the_threads_and_bound_to_the_current_stream(ctx: tz.CUDAContext) -> None:
    stream = ctx.new_stream()
    for ask, told in ((ctx.cudnn_handle, "cudnnGetStream"), (ctx.cublas_handle, "cublasGetStream_v2")):
        first = ask()
        assert told_stream(ctx, told, first) == int(ctx.stream.native)  # type: ignore[call-overload]
        with ctx.on(stream):
            assert ask() == first
            assert told_stream(ctx, told, first) == int(stream.native)  # type: ignore[call-overload]
        with tz.CUDAContext(device="cuda:0") as second:
            assert getattr(second, ask.__name__)() == first, "contexts of a device share the thread's handles"
        with tz.CUDAContext(device="cuda:1") as other:
            assert getattr(other, ask.__name__)() != first
        there: list[int] = []
        in_threads(lambda ask=ask, there=there: there.append(ask()))  # type: ignore[misc]
        assert there[0] != first
        in_threads(lambda ask=ask, there=there: there.append(ask()))  # type: ignore[misc]
        gc.collect()
        assert there[0] == there[1], "a thread that ended leaves its handle to the next one"
    assert not hazards()


def test_scratch_memory_of_cublas_is_the_streams(ctx: tz.CUDAContext) -> None:
    def held() -> int:
        gc.collect()
        ctx.memory.stats()
        found = [one.nbytes for one in ctx.memory.snapshot().holdings if one.label == "workspace of cublas"]
        return sum(found)

    before, stream = held(), ctx.new_stream()
    ctx.cublas_handle(), ctx.cublas_handle()
    with ctx.on(stream):
        ctx.cublas_handle()
    assert held() - before == 2 * CUBLAS_WORKSPACE
    assert ctx.memory.stats().live == 0
    stream.close()
    del stream
    assert held() - before == CUBLAS_WORKSPACE


def test_gemm_in_a_launched_function(ctx: tz.CUDAContext) -> None:
    draws = np.random.default_rng(2)
    a, b = draws.standard_normal((5, 7)).astype("f4"), draws.standard_normal((7, 3)).astype("f4")
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def product(x: tz.Buffer, y: tz.Buffer) -> tz.Buffer:
        here = tz.current()
        assert isinstance(here, tz.CUDAContext)
        z: tz.Buffer = here.empty((5, 3), "float32")
        handle, blas = here.cublas_handle(), load_library("cublas")
        # Column by column it is the product of the transposed matrices.
        given = c_void_p(y.address), 3, c_void_p(x.address), 7, ctypes.byref(zero), c_void_p(z.address), 3
        with here.cuda_current():
            blas.call("cublasSgemm_v2", c_void_p(handle), 0, 0, 3, 5, 7, ctypes.byref(one), *given)
        return z

    task = ctx.launch(product, ctx.asarray(a), ctx.asarray(b))
    np.testing.assert_allclose(ctx.to_numpy(task), a @ b, atol=1e-5)


def uniform(ctx: tz.CUDAContext, count: int = 100) -> Any:
    """Numbers that the thread's generator of the context draws, on the context's stream."""

    def draw(x: tz.Buffer) -> tz.Buffer:
        generator, size = c_void_p(ctx.curand_generator()), ctypes.c_size_t(count)
        with ctx.cuda_current():
            load_library("curand").call("curandGenerateUniform", generator, c_void_p(x.address), size)
        return x

    return ctx.to_numpy(ctx.launch(draw, ctx.empty((count,), "float32")).result(timeout=TIMEOUT))


def test_a_generator_of_curand_is_the_contexts(ctx: tz.CUDAContext) -> None:
    first, second = uniform(ctx), uniform(ctx)
    assert ((first > 0) & (first <= 1)).all()
    assert (first != second).any()
    with tz.CUDAContext(device="cuda:0", seed=5) as same, tz.CUDAContext(device="cuda:0", seed=6) as other:
        assert (uniform(same, 200) == np.concatenate([first, second])).all()
        assert (uniform(other) != first).any()
    assert not [text for text in hazards() if "two threads" not in text]


@pytest.mark.parametrize("call", ["curandCreateGenerator", "curandSetPseudoRandomGeneratorSeed", "curandSetStream"])
def test_a_generator_that_could_not_be_seeded_draws_the_same_numbers_later(ctx: tz.CUDAContext, call: str) -> None:
    expected = uniform(ctx)
    with tz.CUDAContext(device="cuda:0", seed=5) as same:
        handles_of(ctx.own_stream.runtime)._free["curand"].clear()
        with emulator().injecting(f"{call}:1:UNKNOWN"), pytest.raises(BackendError, match=call):
            same.curand_generator()
        assert (uniform(same) == expected).all()


def test_a_state_that_could_not_be_closed_goes_on(ctx: tz.CUDAContext) -> None:
    wrapper = CudnnWrapper(ctx)
    x, w = ctx.asarray(np.ones((1, 1, 4, 4), "f4")), ctx.asarray(np.ones((1, 1, 3, 3), "f4"))

    def computed() -> Any:
        return ctx.to_numpy(ctx.launch(partial(conv2d, wrapper, index=7), x, w, None).result(timeout=TIMEOUT))

    assert (computed() == 9).all()
    with emulator().injecting("cudnnDestroy:1:UNKNOWN"), pytest.raises(BackendError, match="cudnnDestroy"):
        wrapper.close(TIMEOUT)
    assert 7 in [info.number for info in wrapper.states()]
    assert (computed() == 9).all()
    wrapper.close(TIMEOUT)
    assert wrapper.states() == ()


def test_a_closed_context_has_no_handles() -> None:
    ctx = tz.CUDAContext(device="cuda:0")
    ctx.close()
    for ask in (ctx.cublas_handle, ctx.cudnn_handle, ctx.curand_generator):
        with pytest.raises(ClosedError):
            ask()


@pytest.mark.parametrize("call", ["cudnnSetStream", "cublasSetStream", "cublasSetWorkspace"])
def test_a_call_that_fails_is_named_and_works_later(ctx: tz.CUDAContext, call: str) -> None:
    ask = ctx.cudnn_handle if call.startswith("cudnn") else ctx.cublas_handle
    ask()
    with emulator().injecting(f"{call}:1:UNKNOWN"):
        with pytest.raises(BackendError) as caught:
            ask()
        assert caught.value.call.startswith(call)
        assert caught.value.backend == ask.__name__.split("_")[0]
        assert caught.value.symbol.startswith("CU")
        ask()
    assert ctx.health


def test_memory_that_a_library_cannot_have(ctx: tz.CUDAContext) -> None:
    def fail() -> None:
        with emulator().injecting("cudnnCreate:1:OUT_OF_MEMORY"), pytest.raises(OutOfMemoryError):
            ctx.cudnn_handle()
        assert ctx.cudnn_handle()

    handles_of(ctx.own_stream.runtime)._free["cudnn"].clear()
    in_threads(fail)


def test_a_handle_in_two_threads_is_found() -> None:
    """The mistake that leases and per-thread handles keep away, made on purpose: one handle given to two threads."""
    with tz.CUDAContext(device="cuda:1") as ctx:
        handle, dnn = ctx.cudnn_handle(), load_library("cudnn")
        native = c_void_p(int(ctx.stream.native))  # type: ignore[call-overload]
        found = threading.Event()

        def misuse() -> None:
            with ctx.cuda_current():
                for _ in range(20_000):
                    dnn.call("cudnnSetStream", c_void_p(handle), native)
                    if found.is_set():
                        return
                    if any("two threads" in text for text in hazards()):
                        found.set()

        in_threads(misuse, misuse)
        assert found.is_set()
        text = next(text for text in hazards() if "two threads" in text)
        assert "of device 1" in text


# States and plans --------------------------------------------------------------------------------------------------


def test_the_cudnn_classes_are_the_neutral_ones_and_little_more(ctx: tz.CUDAContext) -> None:
    wrapper = CudnnWrapper(ctx)
    assert isinstance(wrapper, DnnWrapper)
    assert isinstance(wrapper.library, CudnnLibrary)
    assert CudnnWrapper(ctx).library is wrapper.library
    assert wrapper.handle == ctx.cudnn_handle()

    def inside(state: CudnnState) -> tuple[bool, ...]:
        handle = state.handle
        return (
            isinstance(state, CudnnState) and isinstance(state, DnnState),
            type(state.workspace) is CudnnWorkspace,
            told_stream(ctx, "cudnnGetStream", handle) == state.native_stream,
            state.native_stream != int(ctx.own_stream.native),  # type: ignore[call-overload]
            handle != wrapper.handle,
            repr(state).startswith("<CudnnState 3 of cudnn on cuda:0"),
        )

    assert wrapper.with_state(3, inside) == (True,) * 6
    assert type(wrapper._states.at(3)) is SyncedCudnnState
    with wrapper.lease() as state:
        assert isinstance(state, CudnnState)
    with pytest.raises(UsageError, match="not held"):
        state.handle  # noqa: B018
    wrapper.close(TIMEOUT)


def test_other_devices_are_refused() -> None:
    with tz.open("cpu") as cpu, pytest.raises(WrongDeviceError, match="use DnnWrapper"):
        CudnnWrapper(cpu)
    with pytest.raises(ArgumentError, match="ctx: got"):
        CudnnWrapper("cuda")  # type: ignore[arg-type]


OPTIONS: list[dict[str, Any]] = [
    {"padding": 1},
    {"padding": 1, "activation": "relu", "bias": True},
    {"stride": (2, 1), "padding": (0, 2), "groups": 2},
    {"dilation": 2, "padding": 2, "bias": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("max_workspace", [None, 0])
def test_convolutions_are_those_of_the_reference(
    ctx: tz.CUDAContext, options: dict[str, Any], max_workspace: int | None
) -> None:
    draws, given = np.random.default_rng(3), dict(options)
    x, w = (
        draws.standard_normal(shape).astype("f4") for shape in ((2, 4, 7, 6), (6, 4 // given.get("groups", 1), 3, 3))
    )
    bias = draws.standard_normal(6).astype("f4") if given.pop("bias", False) else None
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.conv2d(x, w, bias, **given)
        dy = draws.standard_normal(expected.shape).astype("f4")
        result = expected if "activation" in given else None
        gradients = cpu.dnn.conv2d_backward(dy, x, w, y=result, **given)
    wrapper, sent = CudnnWrapper(ctx), [None if one is None else ctx.asarray(one) for one in (x, w, bias)]
    forward = partial(conv2d, wrapper, choice=Choice(max_workspace=max_workspace), **given)
    y = ctx.launch(forward, *sent).result(timeout=TIMEOUT)
    np.testing.assert_allclose(ctx.to_numpy(y), expected, atol=1e-4)
    if max_workspace is None:
        found = ctx.launch(partial(backward, wrapper, **given), ctx.asarray(dy), *sent[:2], y).result(timeout=TIMEOUT)
        for one, other in zip(found, gradients, strict=True):
            np.testing.assert_allclose(ctx.to_numpy(one), other, atol=1e-3)
    assert not [text for text in hazards() if "two threads" not in text]


def test_what_cudnn_cannot_do_here_is_said(ctx: tz.CUDAContext) -> None:
    library = CudnnLibrary.of(ctx.device)
    fine = operation("conv2d", ((1, 2, 5, 5), (2, 2, 3, 3), None), ((1, 2, 3, 3),))
    plan = library.compile(fine, Choice("deterministic"))
    assert plan.workspace_bytes == 4 * 2 * 9 * 9
    with pytest.raises(UnsupportedError, match="softmax"):
        library.compile(operation("softmax", ((1, 2, 5, 5),), ((1, 2, 5, 5),)), Choice())
    with pytest.raises(UnsupportedError, match="'tanh'"):
        library.compile(fine._replace(options=(*fine.options[:4], "tanh")), Choice())
    turned = fine.inputs[1]
    assert turned is not None
    turned = turned._replace(strides=(18, 1, 6, 2))
    with pytest.raises(UnsupportedError, match="OIHW"):
        library.compile(fine._replace(inputs=(fine.inputs[0], turned, None)), Choice())
    shapes = ((1, 2, 3, 3), (1, 2, 5, 5), (2, 2, 3, 3), None), ((1, 2, 5, 5), (2, 2, 3, 3), (2,))
    with pytest.raises(UnsupportedError, match="the smallest needs"):
        library.compile(operation("conv2d.backward", *shapes), Choice("deterministic", 8))


def test_a_plan_refuses_other_arrays_before_anything_is_called(ctx: tz.CUDAContext) -> None:
    wrapper = CudnnWrapper(ctx)
    plan = wrapper.library.compile(
        operation("conv2d", ((1, 2, 5, 5), (2, 2, 3, 3), None), ((1, 2, 3, 3),)), Choice(max_workspace=0)
    )
    x, w, y = (ctx.empty(shape, "float32") for shape in ((1, 2, 5, 5), (2, 2, 3, 3), (1, 2, 3, 3)))

    def misuse(state: CudnnState) -> None:
        for arrays in ((x, w, None), (x, w, None, x), (x, w, w, y), (None, w, None, y), (np.ones(3), w, None, y)):
            with pytest.raises(ArgumentError):
                plan.execute(state, arrays, None)
        plan.execute(state, (x, w, None, y), None)

    wrapper.with_state(0, misuse)
    with wrapper.lease() as state:
        pass
    with pytest.raises(UsageError, match="not held"):
        plan.execute(state, (x, w, None, y), None)


def test_tasks_on_several_streams_share_states_and_no_scratch(ctx: tz.CUDAContext) -> None:
    """A launched function has only enqueued when it returns: the next one must not get its memory too early."""
    draws, wrapper = np.random.default_rng(4), CudnnWrapper(ctx)
    images = [draws.standard_normal((3, 4, 7, 6)).astype("f4") for _ in range(6)]
    w = draws.standard_normal((6, 4, 3, 3)).astype("f4")
    with tz.open("cpu", dnn="reference") as cpu:
        expected = [cpu.dnn.conv2d(x, w, padding=1) for x in images]
    there, sent = ctx.asarray(w), [ctx.asarray(x) for x in images]
    ctx.synchronize(TIMEOUT)
    streams = [ctx.new_stream() for _ in range(3)]
    for turn in range(4):
        tasks = [
            ctx.launch(partial(conv2d, wrapper, index=turn % 2, padding=1), x, there, None, stream=streams[number % 3])
            for number, x in enumerate(sent)
        ]
        for task, result in zip(tasks, expected, strict=True):
            np.testing.assert_allclose(ctx.to_numpy(task.result(timeout=TIMEOUT)), result, atol=1e-4)


def test_a_fault_in_a_plan_loses_the_device_and_its_states() -> None:
    """Last of its device: nothing works on it afterwards."""
    ordinal = emulator().settings.devices - 1
    with tz.CUDAContext(device=f"cuda:{ordinal}") as ctx:
        wrapper = CudnnWrapper(ctx)
        x, w = (ctx.asarray(np.ones(shape, "f4")) for shape in ((1, 2, 5, 5), (2, 2, 3, 3)))
        with emulator().injecting("cuLaunchKernel:1:LAUNCH_OUT_OF_RESOURCES"), pytest.raises(BackendError) as caught:
            ctx.launch(conv2d, wrapper, x, w, None).result(timeout=TIMEOUT)
        assert "OUT_OF_RESOURCES" in str(caught.value)
        assert ctx.health
        with emulator().injecting(f"@kernel:1:ILLEGAL_ADDRESS:device={ordinal}"):
            with pytest.raises(BackendError):
                ctx.launch(conv2d, wrapper, x, w, None).result(timeout=TIMEOUT)
                ctx.synchronize(TIMEOUT)
        for use in (ctx.cudnn_handle, ctx.cublas_handle, ctx.curand_generator, lambda: wrapper.handle, wrapper.lease):
            with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
                use()
        wrapper.close(TIMEOUT)
        del x, w
