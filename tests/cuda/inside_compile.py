"""Run by test_contract.py on emulated devices: compiled kernels beyond what the battery asks of every backend."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.drivers.cuda.driver import CudaDriver
from tazza.errors import ArgumentError, BackendError, ClosedError, CompileError, WrongDeviceError
from tazza.hot.hooks import Operation, listen

TIMEOUT = 20.0

SOURCE = """
extern "C" __global__ void scale(int n, float factor, const float *x, float *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = factor * x[i];
}
extern "C" __global__ void kinds(bool b, char c, short s, int i, long long l, float f, double d, double *out) {
    out[0] = b; out[1] = c; out[2] = s; out[3] = i; out[4] = l; out[5] = f; out[6] = d;
}
struct Pair { float x, y, z; };
extern "C" __global__ void total(Pair pair, float *out) { out[0] = pair.x + pair.y + pair.z; }
extern "C" __global__ void reversed(float *x) {
    extern __shared__ float part[];
    part[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
}
extern "C" __global__ void where(int *out) {
    int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}
extern "C" __global__ void nothing() {}
"""


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0", seed=5) as opened:
        yield opened


def unloads() -> int:
    """How many programs were unloaded so far."""
    return int(cuda_emulator.start().report()["calls"].get("cuLibraryUnload", 0))


def loads() -> int:
    """How many programs were loaded so far."""
    return int(cuda_emulator.start().report()["calls"].get("cuLibraryLoadData", 0))


def test_numbers_become_what_the_parameters_are(ctx: tz.Context) -> None:
    kinds, out = ctx.compile(SOURCE, "kinds"), ctx.empty(7, "float64")
    assert kinds.parameters == (1, 1, 2, 4, 8, 4, 8, 8)
    ctx.launch(kinds[1, 1], True, -3, 400, -5, 2**40, 0.5, 0.1, out).result(timeout=TIMEOUT)
    assert ctx.to_numpy(out).tolist() == [1, -3, 400, -5, 2**40, 0.5, 0.1]
    numpys = (np.bool_(1), np.int8(-3), np.int16(4), np.int32(5), np.int64(6), np.float32(0.5), np.float64(0.1))
    ctx.launch(kinds[1, 1], *numpys, out).result(timeout=TIMEOUT)
    assert ctx.to_numpy(out).tolist() == [1, -3, 4, 5, 6, 0.5, 0.1]


def test_a_structure_is_a_numpy_scalar(ctx: tz.Context) -> None:
    total, out = ctx.compile(SOURCE, "total"), ctx.empty(1, "float32")
    pair = np.array((1, 2, 4), dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])[()]
    ctx.launch(total[1, 1], pair, out).result(timeout=TIMEOUT)
    assert ctx.to_numpy(out).tolist() == [7]
    for wrong in (7, 7.0, pair["x"], out):
        with pytest.raises(ArgumentError, match=r"args\[0\] of total"):
            ctx.launch(total[1, 1], wrong, out).result(timeout=TIMEOUT)


def test_grid_and_block_have_up_to_three_extents_and_shared_memory(ctx: tz.Context) -> None:
    where, out = ctx.compile(SOURCE, "where"), ctx.empty(24 * 30, "int32")
    ctx.launch(where[(2, 3, 4), (5, 3, 2)], out).result(timeout=TIMEOUT)
    assert ctx.to_numpy(out).tolist() == [1000 * block + thread for block in range(24) for thread in range(30)]
    x = ctx.asarray(np.arange(64, dtype="float32"))
    ctx.launch(ctx.compile(SOURCE, "reversed")[1, 64, 64 * 4], x).result(timeout=TIMEOUT)
    assert ctx.to_numpy(x).tolist() == list(range(63, -1, -1))


def test_a_kernel_without_parameters_and_what_repr_says(ctx: tz.Context) -> None:
    nothing = ctx.compile(SOURCE, "nothing")
    task = ctx.launch(nothing[1, 1])
    assert task.result(timeout=TIMEOUT) is None
    assert task.label == "nothing"
    assert "nothing on cuda:0" in repr(nothing)
    assert repr(nothing[2, 3]).endswith("[(2, 1, 1), (3, 1, 1), 0]")
    assert nothing.device is ctx.device


def test_a_function_enqueues_several_on_any_stream_of_its_context(ctx: tz.Context) -> None:
    scale, other = ctx.compile(SOURCE, "scale"), ctx.new_stream()

    def powers(x: tz.Buffer) -> list[tz.Buffer]:
        here, made = tz.current(), list[tz.Buffer]()
        for _ in range(3):
            made.append(here.empty(100, "float32"))
            scale[1, 100](100, 2.0, x, made[-1])
            x = made[-1]
        other.wait(here.stream)
        with here.on(other):
            scale[1, 100](100, 10.0, x, x)
        here.stream.wait(other)
        return made

    made = ctx.launch(powers, ctx.asarray(np.ones(100, "float32"))).result(timeout=TIMEOUT)
    assert [float(ctx.to_numpy(x)[99]) for x in made] == [2, 4, 80]


def test_memory_that_a_kernel_uses_is_not_taken_by_what_comes_later(ctx: tz.Context) -> None:
    scale, results = ctx.compile(SOURCE, "scale"), [ctx.empty(1000, "float32") for _ in range(30)]

    def temporary(out: tz.Buffer, value: float) -> None:
        here = tz.current()
        between = here.empty(1000, "float32")
        here.fill(between, value)
        scale[8, 128](1000, 3.0, between, out)

    streams = [ctx.new_stream() for _ in range(4)]
    for number, result in enumerate(results):
        ctx.launch(temporary, result, float(number), stream=streams[number % 4])
    for number, result in enumerate(results):
        assert (ctx.to_numpy(result) == 3 * number).all()


def test_a_program_is_compiled_and_loaded_once_and_unloaded_after_its_last_kernel(ctx: tz.Context) -> None:
    source = SOURCE + "// of this test alone\n"
    before, gone = loads(), unloads()
    scale, again = ctx.compile(source, "scale"), ctx.compile(source, "scale")
    with tz.open("cuda:0") as second:
        nothing = second.compile(source, "nothing")
    assert loads() == before + 1
    x = ctx.asarray(np.ones(1000, "float32"))
    tasks = [ctx.launch(scale[8, 128], 1000, 2.0, x, x, stream=ctx.new_stream()) for _ in range(8)]
    tz.wait(tasks, timeout=TIMEOUT)
    del scale, again, tasks
    gc.collect()
    ctx.allocate(8)
    assert unloads() == gone
    ctx.launch(nothing[1, 1]).result(timeout=TIMEOUT)
    del nothing
    ctx.synchronize(timeout=TIMEOUT)
    ctx.allocate(8)
    assert unloads() == gone + 1
    assert ctx.compile(source, "scale").name == "scale"
    assert loads() == before + 2


def test_a_program_that_was_unloaded_lends_its_code_to_none(ctx: tz.Context) -> None:
    before, x = unloads(), ctx.asarray(np.zeros(1, "int32"))
    for number in range(4):
        source = f'extern "C" __global__ void k{number % 2}(int *x) {{ x[0] = {number}; }}'
        ctx.launch(ctx.compile(source, f"k{number % 2}")[1, 1], x).result(timeout=TIMEOUT)
        assert ctx.to_numpy(x).tolist() == [number]
        gc.collect()
        ctx.synchronize(timeout=TIMEOUT)
        ctx.allocate(8)
    assert unloads() > before


def test_a_dropped_program_stays_until_the_queue_has_run_its_kernels(ctx: tz.Context) -> None:
    x, gate, stream, gone = ctx.asarray(np.ones(100, "float32")), tz.HostEvent(), ctx.new_stream(), unloads()
    stream.wait(gate)
    scale = ctx.compile(SOURCE + "// held back\n", "scale")
    ctx.launch(scale[1, 128], 100, 2.0, x, x, stream=stream)
    del scale
    ctx.allocate(8)
    assert unloads() == gone
    gate.succeed()
    assert ctx.to_numpy(x).tolist() == [2] * 100
    ctx.synchronize(timeout=TIMEOUT)
    ctx.allocate(8)
    assert unloads() == gone + 1


def test_relief_passes_by_a_program_that_is_still_used(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    program = ctx.compile(SOURCE + "// in the way\n", "nothing")
    ctx.launch(program[1, 1])
    monkeypatch.setattr(CudaDriver, "event_query", lambda self, device, event: False)  # the queue is never so far
    del program
    gc.collect()
    with tz.open("cuda:0", memory_limit="64KiB") as small:
        assert ctx.stream.runtime.loans
        with pytest.raises(tz.OutOfMemoryError):
            small.allocate(1 << 20)
        monkeypatch.undo()
    ctx.synchronize(timeout=TIMEOUT)


def test_many_threads_compile_and_launch_at_once(ctx: tz.Context) -> None:
    failures, x = list[BaseException](), [ctx.asarray(np.ones(100, "float32")) for _ in range(6)]

    def work(number: int) -> None:
        try:
            for round_ in range(5):
                scale = ctx.compile(SOURCE + f"// round {round_}\n", "scale")
                ctx.launch(scale[1, 128], 100, 2.0, x[number], x[number], stream=ctx.new_stream()).result(TIMEOUT)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * TIMEOUT)
        assert not thread.is_alive()
    assert not failures
    assert all(ctx.to_numpy(one).tolist() == [32] * 100 for one in x)


def test_results_of_tasks_are_arguments(ctx: tz.Context) -> None:
    scale, out = ctx.compile(SOURCE, "scale"), ctx.empty(50, "float32")
    with tz.open("cpu") as cpu:
        made = cpu.launch(lambda: np.arange(50, dtype="float32"), stream=cpu.new_stream())
        count = ctx.launch(lambda: 50)
        ctx.launch(scale[1, 64], count, 2.0, made, out).result(timeout=TIMEOUT)
    assert ctx.to_numpy(out).tolist() == list(range(0, 100, 2))


def test_what_cannot_be_an_argument_is_named(ctx: tz.Context) -> None:
    scale, x = ctx.compile(SOURCE, "scale"), ctx.asarray(np.ones(4, "float32"))
    closed = ctx.allocate(16)
    closed.close()
    pinned = ctx.memory.pinned.allocate(16)
    cases: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((1, "x", x, x), ArgumentError, r"args\[1\]"),
        ((1, 1.0, x, [1.0]), ArgumentError, r"args\[3\]"),
        ((x, 1.0, x, x), ArgumentError, "a pointer has 8"),
        ((1, 1.0, x, pinned), WrongDeviceError, "asarray"),
        ((-(2**31) - 1, 1.0, x, x), ArgumentError, r"args\[0\]"),
        ((1, np.datetime64("2020-01-01"), x, x), ArgumentError, r"args\[1\]"),
        ((1, 1j, x, x), ArgumentError, r"args\[1\]"),
    ]
    for given, error, said in cases:
        with pytest.raises(error, match=said):
            ctx.launch(partial(scale[1, 1], *given)).result(timeout=TIMEOUT)
    with pytest.raises(ClosedError):
        ctx.launch(partial(scale[1, 1], 1, 1.0, x, closed)).result(timeout=TIMEOUT)


@pytest.mark.parametrize("name", ["", 7, None])
def test_a_name_is_a_text(ctx: tz.Context, name: Any) -> None:
    with pytest.raises(ArgumentError, match="name"):
        ctx.compile(SOURCE, name)


def test_an_object_code_of_cuda_core_is_taken(ctx: tz.Context, tmp_path: Any) -> None:
    from cuda.core import ObjectCode

    image = cuda_emulator.compile_kernels(SOURCE)
    (tmp_path / "kernels.cubin").write_bytes(image)
    files = (ObjectCode.from_cubin(image), ObjectCode.from_cubin(str(tmp_path / "kernels.cubin")))
    for code in (image, *files):
        ctx.launch(ctx.compile(code, "nothing")[1, 1]).result(timeout=TIMEOUT)
    with pytest.raises(ArgumentError, match="cannot be read"):
        ctx.compile(ObjectCode.from_cubin(str(tmp_path / "no such file")), "nothing")


def test_what_is_made_for_hardware_is_refused_with_what_to_do(ctx: tz.Context) -> None:
    for code in (".version 8.0\n.target sm_90\n", b"// made by hand\n.version 8.0\n.target sm_90\n"):
        with pytest.raises(BackendError, match="from their source alone") as caught:
            ctx.compile(code, "scale")
        assert caught.value.symbol == "CUDA_ERROR_NO_BINARY_FOR_GPU"
    assert ctx.health


def test_the_compilers_log_is_in_the_error(ctx: tz.Context) -> None:
    with pytest.raises(CompileError, match=r"kernels\.cu:2") as caught:
        ctx.compile('\nextern "C" __global__ void broken(int n) { undeclared = n; }', "broken")
    assert "undeclared" in caught.value.log


def test_listeners_hear_of_each_launch(ctx: tz.Context) -> None:
    scale, x, heard = ctx.compile(SOURCE, "scale"), ctx.asarray(np.ones(4, "float32")), list[Operation]()
    stop = listen(lambda operation: heard.append(operation) if operation.kind == "kernel" else None)
    try:
        ctx.launch(scale[1, 4], 4, 2.0, x, x).result(timeout=TIMEOUT)
    finally:
        stop()
    [one] = heard
    assert (one.label, one.stream, one.writes, one.subject) == ("scale", ctx.stream, (x, x), scale)


def test_what_the_driver_refuses_leaves_the_device_well(ctx: tz.Context) -> None:
    emulator = cuda_emulator.start()
    scale, x = ctx.compile(SOURCE, "scale"), ctx.asarray(np.ones(4, "float32"))
    with emulator.injecting("cuLaunchKernel:1:INVALID_VALUE"), pytest.raises(BackendError, match="cuLaunchKernel"):
        ctx.launch(scale[1, 4], 4, 2.0, x, x).result(timeout=TIMEOUT)
    with pytest.raises(BackendError, match="cuLaunchKernel"):
        ctx.launch(scale[(1, 2**20), 4], 4, 2.0, x, x).result(timeout=TIMEOUT)
    assert ctx.health
    with emulator.injecting("cuLibraryLoadData:1:OUT_OF_MEMORY"), pytest.raises(tz.OutOfMemoryError):
        ctx.compile(SOURCE + "// no room", "scale")
    assert ctx.compile(SOURCE + "// no room", "scale").name == "scale"
    assert ctx.to_numpy(x).tolist() == [1] * 4
