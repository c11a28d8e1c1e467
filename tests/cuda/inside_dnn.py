"""Run by test_libraries.py on emulated devices with the emulated libraries: ``ctx.dnn`` on a CUDA context's Buffers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.core.runtime import live_runtimes
from tazza.dnn import BufferDnn, CudnnLibrary, CudnnWrapper, DnnWrapper
from tazza.dnn.interface import Activation
from tazza.errors import (
    ArgumentError,
    BackendError,
    BackendUnavailableError,
    ClosedError,
    DeviceLostError,
    UnsupportedError,
    WrongDeviceError,
)

TIMEOUT = 20.0
draws = np.random.default_rng(12)


@pytest.fixture
def ctx() -> Iterator[tz.CUDAContext]:
    with tz.CUDAContext(device="cuda:0", seed=5) as opened:
        yield opened


def emulator() -> cuda_emulator.Emulator:
    return cuda_emulator.start()


def integers(*shape: int) -> Any:
    """Whole numbers of float32: sums of products are exact in any order."""
    return draws.integers(-3, 4, shape).astype("f4")


def both(ctx: tz.CUDAContext, function: Callable[..., Any], *arrays: Any) -> tuple[list[Any], list[Any]]:
    """What a function of a `Dnn` gives on the device and by the reference, as lists of NumPy arrays."""
    with tz.open("cpu", dnn="reference") as cpu:
        expected = function(cpu.dnn, *arrays)
    found = function(ctx.dnn, *[None if one is None else ctx.asarray(one) for one in arrays])
    pairs = found if isinstance(found, tuple) else (found,)
    others = expected if isinstance(expected, tuple) else (expected,)
    return [None if one is None else ctx.to_numpy(one) for one in pairs], list(others)


def agree(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"padding": 1, "activation": "relu"},
    {"stride": (2, 1), "padding": (0, 2), "groups": 2},
    {"dilation": 2, "padding": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_convolutions_are_those_of_the_reference(ctx: tz.CUDAContext, options: dict[str, Any], has_bias: bool) -> None:
    x, w = integers(2, 4, 7, 6), integers(6, 4 // options.get("groups", 1), 3, 3)
    bias = integers(6) if has_bias else None
    found, expected = both(ctx, lambda dnn, *arrays: dnn.conv2d(*arrays, **options), x, w, bias)
    agree(found, expected)
    dy, y = integers(*expected[0].shape), expected[0] if "activation" in options else None
    for need_dx in (True, False):
        agree(
            *both(
                ctx,
                lambda dnn, dy, x, w, y, need=need_dx: dnn.conv2d_backward(dy, x, w, y=y, need_dx=need, **options),
                *(dy, x, w, y),
            )
        )


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(5, 7, 3), (1, 1, 1), (4, 1, 6), (70, 3, 65)])
def test_linear_layers_are_those_of_the_reference(
    ctx: tz.CUDAContext, rows: int, inner: int, columns: int, activation: Activation
) -> None:
    x, w, bias = integers(rows, inner), integers(columns, inner), integers(columns)
    for one in (None, bias):
        found, expected = both(ctx, lambda dnn, *arrays: dnn.linear(*arrays, activation=activation), x, w, one)
        agree(found, expected)
    dy, y = integers(rows, columns), expected[0] if activation else None
    for need_dx in (True, False):
        agree(
            *both(
                ctx,
                lambda dnn, dy, x, w, y, need=need_dx: dnn.linear_backward(
                    dy, x, w, y=y, activation=activation, need_dx=need
                ),
                *(dy, x, w, y),
            )
        )


def part_of(whole: tz.Buffer, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Another library's view of elements of an array."""
    told = whole.__cuda_array_interface__
    data = told["data"][0] + 4 * first, False
    told |= {"data": data, "shape": shape, "strides": strides, "stream": 1}
    return SimpleNamespace(__cuda_array_interface__=told, owner=whole)


def test_rows_may_be_part_of_longer_rows(ctx: tz.CUDAContext) -> None:
    whole, w = integers(5, 9), integers(3, 4)
    part = part_of(ctx.asarray(whole), 2, (5, 4), (36, 4))
    np.testing.assert_array_equal(ctx.to_numpy(ctx.dnn.linear(part, ctx.asarray(w))), whole[:, 2:6] @ w.T)
    dy = integers(5, 3)
    found = ctx.dnn.linear_backward(ctx.asarray(dy), part, ctx.asarray(w))
    agree([ctx.to_numpy(one) for one in found], [dy @ w, dy.T @ whole[:, 2:6], dy.sum(0)])


def test_gradients_of_images_with_gaps(ctx: tz.CUDAContext) -> None:
    """They lie without gaps, whatever the images do; so do gradients before relu, whatever the result does."""
    whole, w, results = integers(2, 3, 5, 8), integers(4, 3, 3, 3), integers(2, 9, 5, 5)
    x, y, dy = whole[..., 1:6], results[:, 2:6], integers(2, 4, 5, 5)
    there = part_of(ctx.asarray(whole), 1, (2, 3, 5, 5), (480, 160, 32, 4))
    after = part_of(ctx.asarray(results), 50, (2, 4, 5, 5), (900, 100, 20, 4))
    sent = ctx.asarray(dy), there, ctx.asarray(w)
    for more, its in (({}, {}), ({"activation": "relu", "y": after}, {"activation": "relu", "y": y})):
        with tz.open("cpu", dnn="reference") as cpu:
            expected = cpu.dnn.conv2d_backward(dy, x, w, padding=1, **its)
        found = ctx.dnn.conv2d_backward(*sent, padding=1, **more)
        agree([ctx.to_numpy(one) for one in found], list(expected))
    assert not emulator().report()["n_hazards"], emulator().report()["hazards"]


def test_empty_batches_pass(ctx: tz.CUDAContext) -> None:
    none, w, filters = integers(0, 4), integers(3, 4), integers(3, 2, 3, 3)
    agree(*both(ctx, lambda dnn, x, w: dnn.linear(x, w), none, w))
    agree(*both(ctx, lambda dnn, dy, x, w: dnn.linear_backward(dy, x, w), integers(0, 3), none, w))
    images = integers(0, 2, 5, 5)
    agree(*both(ctx, lambda dnn, x, w: dnn.conv2d(x, w), images, filters))
    agree(*both(ctx, lambda dnn, dy, x, w: dnn.conv2d_backward(dy, x, w), integers(0, 3, 3, 3), images, filters))
    agree(*both(ctx, lambda dnn, x, w: dnn.linear(x, w), integers(2, 4), integers(0, 4)))
    agree(*both(ctx, lambda dnn, x, w, b: dnn.linear(x, w, b), integers(2, 0), integers(3, 0), integers(3)))


def test_calls_keep_the_order_of_their_streams(ctx: tz.CUDAContext) -> None:
    """What a stream did before comes before, what it does later comes after; another one waits for it."""
    x, w = integers(4, 6), integers(6, 6)
    there, weights = ctx.empty((4, 6), "float32"), ctx.asarray(w)
    sent, stream, other = ctx.asarray(x), ctx.new_stream(), ctx.new_stream()
    ctx.synchronize(TIMEOUT)

    def layers() -> Any:
        first = ctx.dnn.linear(there, weights)
        return ctx.dnn.linear(first, weights)

    with ctx.on(stream):
        ctx.fill(there, 1)
        ones = layers()
        ctx.copy(there, sent)
        stream.wait(ctx.own_stream)
    with ctx.on(other):
        other.wait(stream)
        twice = layers()
        ctx.fill(there, 0)
    ctx.synchronize(TIMEOUT)
    np.testing.assert_array_equal(ctx.to_numpy(ones), np.ones((4, 6), "f4") @ w.T @ w.T)
    np.testing.assert_array_equal(ctx.to_numpy(twice), x @ w.T @ w.T)
    assert not (ctx.to_numpy(there)).any()


def test_launched_functions_use_it_on_many_streams(ctx: tz.CUDAContext) -> None:
    images, w, rows = [integers(3, 4, 7, 6) for _ in range(6)], integers(2, 4, 3, 3), integers(5, 2 * 7 * 6)
    sent, there, last = [ctx.asarray(x) for x in images], ctx.asarray(w), ctx.asarray(rows)
    ctx.synchronize(TIMEOUT)

    def network(x: tz.Buffer, w: tz.Buffer, last: tz.Buffer) -> Any:
        dnn = tz.current().dnn
        y = dnn.conv2d(x, w, padding=1, activation="relu")
        return dnn.linear(y.view("float32", (3, 84)), last)

    with tz.open("cpu", dnn="reference") as cpu:
        expected = [
            cpu.dnn.linear(cpu.dnn.conv2d(x, w, padding=1, activation="relu").reshape(3, 84), rows) for x in images
        ]
    streams = [ctx.new_stream() for _ in range(3)]
    for _ in range(3):
        tasks = [ctx.launch(network, x, there, last, stream=streams[i % 3]) for i, x in enumerate(sent)]
        for task, result in zip(tasks, expected, strict=True):
            np.testing.assert_array_equal(ctx.to_numpy(task.result(timeout=TIMEOUT)), result)
    assert not emulator().report()["n_hazards"], emulator().report()["hazards"]


def test_plans_are_made_once_for_all_contexts_of_a_device(ctx: tz.CUDAContext) -> None:
    x, w = ctx.asarray(integers(3, 11)), ctx.asarray(integers(4, 11))
    ctx.dnn.linear(x, w)
    before = ctx.dnn.plans()
    with tz.CUDAContext(device="cuda:0") as second:
        second.dnn.linear(second.asarray(x), second.asarray(w))
        assert second.dnn.library is ctx.dnn.library
        assert second.dnn.plans().misses == before.misses
    ctx.dnn.linear(x, w, activation="relu")
    assert ctx.dnn.plans().misses == before.misses + 1
    with tz.CUDAContext(device="cuda:1") as other:
        assert other.dnn.library is not ctx.dnn.library


def test_workspaces_are_leased_from_the_states_and_come_back(ctx: tz.CUDAContext) -> None:
    dnn = ctx.dnn.configured(state=5)
    dnn.linear(ctx.asarray(integers(3, 4)), ctx.asarray(integers(5, 4)))
    wrapper = CudnnWrapper(ctx)
    [info] = [one for one in wrapper.states() if one.number == 5]
    assert info.workspace_bytes >= 4 << 20
    assert info.leased_bytes == 0
    small = dnn.configured(max_workspace=0)
    x, w = integers(2, 3, 5, 5), integers(2, 3, 3, 3)
    agree(*both(ctx, lambda given, x, w: (given if given is not ctx.dnn else small).conv2d(x, w), x, w))
    assert DnnWrapper(ctx).library is wrapper.library
    wrapper.close(TIMEOUT)
    found, expected = both(ctx, lambda given, x, w: (given if given is not ctx.dnn else small).conv2d(x, w), x, w)
    agree(found, expected)


def test_the_deterministic_choice_of_a_spec_is_kept() -> None:
    with tz.CUDAContext(device="cuda:0", deterministic=True) as ctx:
        x, w = integers(2, 3, 5, 5), integers(2, 3, 3, 3)
        agree(*both(ctx, lambda dnn, x, w: dnn.conv2d(x, w), x, w))
        assert ctx.dnn._choice.algorithm == "deterministic"
        for wrong in ({"algorithm": "best"}, {"max_workspace": -1}, {"seconds": -1}, {"state": -1}):
            with pytest.raises(ArgumentError):
                ctx.dnn.configured(**wrong)


def test_what_the_library_lacks_is_said(ctx: tz.CUDAContext) -> None:
    x, w = ctx.asarray(integers(2, 3)), ctx.asarray(integers(4, 3))
    assert [one for one in ("conv2d", "linear", "softmax") if ctx.dnn.library.supports(one)] == ["conv2d", "linear"]
    with pytest.raises(UnsupportedError, match=r"cudnn 9.0.0 has no softmax of float32 here, but conv2d.*ctx.compile"):
        ctx.dnn.softmax(x)
    with pytest.raises(UnsupportedError, match="no dropout"):
        ctx.dnn.dropout(x, 0.5, ctx.random)
    wide = ctx.asarray(np.ones((2, 3)))
    with pytest.raises(UnsupportedError, match="no linear of float64 here; do it"):
        ctx.dnn.linear(wide, wide)
    with pytest.raises(UnsupportedError, match="'tanh' is not fused"):
        ctx.dnn.linear(x, w, activation="tanh")
    with pytest.raises(UnsupportedError, match="rows of x"):
        ctx.dnn.linear(part_of(ctx.asarray(integers(2, 6)), 0, (2, 3), (24, 8)), w)
    with pytest.raises(UnsupportedError, match="smallest needs 256"):
        ctx.dnn.configured(max_workspace=8).linear_backward(
            ctx.asarray(integers(2, 4)), x, w, y=ctx.asarray(integers(2, 4)), activation="relu"
        )


def test_arguments_are_refused_by_name(ctx: tz.CUDAContext) -> None:
    x, w = ctx.asarray(integers(2, 3)), ctx.asarray(integers(4, 3))
    for wrong in (integers(4, 3), [[1.0]], "w", ctx.allocate(48)):
        with pytest.raises(ArgumentError, match="^w: "):
            ctx.dnn.linear(x, wrong)
    with pytest.raises(ArgumentError, match="^w: "):
        ctx.dnn.linear(x, ctx.asarray(integers(4, 4)))
    images, filters = ctx.asarray(integers(1, 1, 3, 3)), ctx.asarray(integers(1, 1, 3, 3))
    ctx.dnn.conv2d(images, filters, groups=1)
    with pytest.raises(ArgumentError, match="groups"):
        ctx.dnn.conv2d(images, filters, groups=True)
    with pytest.raises(ArgumentError, match="stride"):
        ctx.dnn.conv2d(images, filters, stride=[1, 1])
    with tz.CUDAContext(device="cuda:1") as other, pytest.raises(WrongDeviceError, match="x: memory of cuda:1"):
        ctx.dnn.linear(other.asarray(integers(2, 3)), w)
    with tz.open("cpu") as cpu, pytest.raises(WrongDeviceError, match="x: "):
        ctx.dnn.linear(cpu.allocate(24, dtype="float32"), w)


def test_memory_of_other_libraries_is_borrowed_for_the_call(ctx: tz.CUDAContext) -> None:
    x, w = integers(2, 3), integers(4, 3)
    mine, weights = ctx.asarray(x), ctx.asarray(w)
    ctx.synchronize(TIMEOUT)
    by_interface = SimpleNamespace(__cuda_array_interface__=mine.__cuda_array_interface__ | {"stream": 1})
    np.testing.assert_array_equal(ctx.to_numpy(ctx.dnn.linear(by_interface, weights)), x @ w.T)
    by_dlpack = SimpleNamespace(__dlpack__=mine.__dlpack__, __dlpack_device__=mine.__dlpack_device__)
    np.testing.assert_array_equal(ctx.to_numpy(ctx.dnn.linear(by_dlpack, weights)), x @ w.T)


def test_a_library_for_other_devices_is_refused() -> None:
    for name in ("onednn", "reference"):
        with tz.CUDAContext(device="cuda:0", dnn=name) as ctx:
            with pytest.raises(BackendUnavailableError, match="for cpu and sim, not for cuda"):
                ctx.dnn  # noqa: B018
    with tz.open("cpu", dnn="cudnn") as cpu, pytest.raises(BackendUnavailableError, match="for cuda, not for cpu"):
        cpu.dnn  # noqa: B018
    with tz.CUDAContext(device="cuda:0", dnn="cudnn") as ctx:
        assert isinstance(ctx.dnn, BufferDnn)
        assert isinstance(ctx.dnn.library, CudnnLibrary)
        kept = ctx.dnn
    del ctx
    gc.collect()
    with pytest.raises((ClosedError, ArgumentError)):
        kept.softmax(None)


@pytest.mark.parametrize("call", ["cublasCreate", "cublasSetWorkspace", "cublasSgemm", "cudnnAddTensor"])
def test_a_call_that_fails_is_named_and_the_next_one_works(ctx: tz.CUDAContext, call: str) -> None:
    CudnnWrapper(ctx).close(TIMEOUT)
    x, w, bias = integers(2, 3), integers(4, 3), integers(4)
    sent = [ctx.asarray(one) for one in (x, w, bias)]
    with emulator().injecting(f"{call}:1:UNKNOWN"), pytest.raises(BackendError, match=call):
        ctx.dnn.linear(*sent)
    np.testing.assert_array_equal(ctx.to_numpy(ctx.dnn.linear(*sent)), x @ w.T + bias)
    assert ctx.health


def test_a_state_that_cannot_destroy_its_cublas_handle_goes_on(ctx: tz.CUDAContext) -> None:
    wrapper = CudnnWrapper(ctx)
    wrapper.close(TIMEOUT)
    x, w = integers(2, 3), integers(4, 3)
    computed = partial(both, ctx, lambda dnn, x, w: dnn.linear(x, w), x, w)
    agree(*computed())
    with emulator().injecting("cublasDestroy:1:UNKNOWN"), pytest.raises(BackendError, match="cublasDestroy"):
        wrapper.close(TIMEOUT)
    agree(*computed())
    before = emulator().report()["libraries"]["objects"]["cublasHandle"]
    wrapper.close(TIMEOUT)
    assert emulator().report()["libraries"]["objects"]["cublasHandle"] == before - 1


def test_a_lost_device_is_said() -> None:
    """Last of its device: nothing works on it afterwards."""
    ordinal = emulator().settings.devices - 1
    with tz.CUDAContext(device=f"cuda:{ordinal}") as ctx:
        x, w = ctx.asarray(integers(2, 3)), ctx.asarray(integers(4, 3))
        ctx.dnn.linear(x, w)
        with emulator().injecting(f"@kernel:1:ILLEGAL_ADDRESS:device={ordinal}"), pytest.raises(BackendError):
            ctx.dnn.linear(x, w)
            ctx.synchronize(TIMEOUT)
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            ctx.dnn.linear(x, w)
        with pytest.raises(DeviceLostError, match="ILLEGAL_ADDRESS"):
            tz.CUDAContext(device=f"cuda:{ordinal}")
        del x, w
    assert live_runtimes()
