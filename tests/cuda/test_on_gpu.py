"""What needs NVIDIA's own libraries, and so a real device: skipped everywhere else, with the reason."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_void_p

import numpy as np
import pytest

import tazza as tz
from tazza.drivers.cuda.libraries import load_library
from tazza.errors import BackendUnavailableError

pytestmark = pytest.mark.gpu


@pytest.fixture
def ctx() -> Iterator[tz.CUDAContext]:
    """A context on a real device."""
    try:
        found = [device for device in tz.devices("cuda") if not device.info.emulated]
    except BackendUnavailableError as error:
        pytest.skip(f"needs a CUDA device: {error.reason}")
    if not found:
        pytest.skip("needs a CUDA device that is not emulated: the libraries there are not NVIDIA's")
    with tz.CUDAContext(device=found[0].name, seed=7) as opened:
        yield opened


def drawn(ctx: tz.CUDAContext, count: int = 4096) -> np.ndarray:
    """Uniform numbers of cuRAND's."""
    made = ctx.empty((count,), "float32")

    def draw(x: tz.Buffer) -> tz.Buffer:
        generator = c_void_p(ctx.curand_generator())
        with ctx.cuda_current():
            load_library("curand").call("curandGenerateUniform", generator, c_void_p(x.address), ctypes.c_size_t(count))
        return x

    return np.asarray(ctx.to_numpy(ctx.launch(draw, made)))


def test_curands_generator_is_seeded_by_the_context(ctx: tz.CUDAContext) -> None:
    first, second = drawn(ctx), drawn(ctx)
    assert ((first > 0) & (first <= 1)).all()
    assert abs(float(first.mean()) - 0.5) < 0.05
    assert (first != second).any()
    with tz.CUDAContext(device=ctx.device.name, seed=7) as again:
        assert (drawn(again) == first).all()
    with tz.CUDAContext(device=ctx.device.name, seed=8) as other:
        assert (drawn(other) != first).any()


def test_nvidias_libraries_are_found_and_fit(ctx: tz.CUDAContext) -> None:
    for name in ("cublas", "cudnn", "curand"):
        library = load_library(name)
        assert not library.emulated
        assert library.version[0] >= 9
    assert ctx.cublas_handle()
    assert ctx.cudnn_handle()


def test_a_captured_step_is_replayed(ctx: tz.CUDAContext) -> None:
    source = 'extern "C" __global__ void add(double *x, double by) { x[threadIdx.x] += by; }'
    add, x, pinned = ctx.compile(source, "add"), ctx.empty(256), ctx.memory.pinned.allocate(2048, dtype="float64")
    np.asarray(pinned)[:] = 3
    host = np.full(256, 4.0)
    other = ctx.new_stream()
    with ctx.stream.capture() as graph:
        ctx.copy(x, pinned)
        between = ctx.asarray(host)  # ordinary memory: a snapshot that each replay reads
        ctx.launch(add[1, 256], x, 1.0)
        other.wait(ctx.stream)
        ctx.launch(add[1, 256], between, 1.0, stream=other)
        ctx.stream.wait(other)
        ctx.copy(x[128:], between[128:])
        ctx.fill(between, 0.25)  # a pattern that the driver has no fill for
        ctx.copy(x[:8], between[:8])
    host[:] = 0
    for number in range(3):
        np.asarray(pinned)[:] = number
        graph.replay(ctx.stream if number % 2 else other)
        expected = [0.25] * 8 + [number + 1.0] * 120 + [5.0] * 128
        assert ctx.to_numpy(x).tolist() == expected
        assert (ctx.to_numpy(between) == 0.25).all()
    graph.close()


@pytest.mark.parametrize("columns", [1, 3, 1001])
def test_boxes_of_any_pitch_are_copied(ctx: tz.CUDAContext, columns: int) -> None:
    """The emulator takes what the documentation allows; whether devices do is to be seen there alone."""
    values = np.arange(300 * 2003, dtype="float32").reshape(300, 2003)
    x = ctx.asarray(values)
    for itemstep in (1, 2):
        shape, strides = (300, columns), (4 * 2003, 4 * itemstep)
        view, wanted = x.view("float32", shape, strides), values[:, : columns * itemstep : itemstep]
        assert np.array_equal(ctx.to_numpy(view), wanted)
        dense = ctx.asarray(view, copy=True)
        assert np.array_equal(ctx.to_numpy(dense), wanted)
        ctx.fill(view, 5)
        assert (ctx.to_numpy(view) == 5).all()
        ctx.copy(view, wanted)
        ctx.copy(view, dense)
        assert np.array_equal(ctx.to_numpy(x), values)


def test_what_is_measured_is_no_slower_than_what_the_library_guesses(ctx: tz.CUDAContext) -> None:
    """The emulator's times are declared; whether a search pays is to be seen here alone. With ``-s`` it says what."""
    draws = np.random.default_rng(4)
    x, w = (ctx.asarray(draws.standard_normal(shape).astype("f4")) for shape in ((32, 64, 56, 56), (64, 64, 3, 3)))
    guessed, measured = ctx.dnn, ctx.dnn.configured(algorithm="measure", seconds=1)
    first, second = (ctx.to_numpy(dnn.conv2d(x, w, padding=1)) for dnn in (guessed, measured))
    np.testing.assert_allclose(first, second, atol=1e-2)
    times: dict[str, list[float]] = {"guessed": [], "measured": []}
    for _ in range(20):
        for name, dnn in (("guessed", guessed), ("measured", measured)):
            begin = ctx.stream.record(timing=True)
            dnn.conv2d(x, w, padding=1)
            end = ctx.stream.record(timing=True)
            end.synchronize(timeout=60)
            times[name].append(end.seconds_since(begin))
    medians = {name: float(np.median(seen)) for name, seen in times.items()}
    print(f"conv2d of 32 images: {medians}")
    assert medians["measured"] <= 1.1 * medians["guessed"]


def test_layers_are_those_of_the_reference(ctx: tz.CUDAContext) -> None:
    draws = np.random.default_rng(2)
    x, w, rows = (draws.standard_normal(shape).astype("f4") for shape in ((4, 3, 9, 8), (5, 3, 3, 3), (6, 5 * 9 * 8)))
    bias = draws.standard_normal(5).astype("f4")
    with tz.open("cpu", dnn="reference") as cpu:
        expected = cpu.dnn.conv2d(x, w, bias, padding=1, activation="relu")
        product = cpu.dnn.linear(expected.reshape(4, -1), rows, activation="relu")
        gradients = cpu.dnn.conv2d_backward(expected, x, w, y=expected, padding=1, activation="relu")
    there = [ctx.asarray(one) for one in (x, w, bias)]
    y = ctx.dnn.conv2d(*there, padding=1, activation="relu")
    np.testing.assert_allclose(ctx.to_numpy(y), expected, atol=1e-4)
    layer = ctx.dnn.linear(y.view("float32", (4, 5 * 9 * 8)), ctx.asarray(rows), activation="relu")
    np.testing.assert_allclose(ctx.to_numpy(layer), product, atol=1e-2)
    found = ctx.dnn.conv2d_backward(y, *there[:2], y=y, padding=1, activation="relu")
    for one, other in zip(found, gradients, strict=True):
        np.testing.assert_allclose(ctx.to_numpy(one), other, atol=1e-2)
