"""Run by test_every_call.py on emulated devices: one program, once for each call of the driver that is made to fail.

The program goes through everything that the backend does.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cuda_emulator
import numpy as np

import tazza as tz
from tazza.core import dlpack
from tazza.errors import ArgumentError, UsageError
from tests.cuda.failing import Suite, T, emulator, expect, main, nothing_is_left

SOURCE = """
extern "C" __global__ void scale(int count, float by, float *x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] *= by;
}
"""

SILENT = {
    "cuCtxPopCurrent": "tried once more, which is all that a caller wants",
    "cuGetErrorString": "the text of another error, which has its code and symbol without it",
    "cuGetProcAddress": "the bindings try another way, or do without a function that nobody calls",
}
"""Calls whose failure nobody need hear of, and why."""

LATE = 8 << 20
"""Elements whose fill takes an emulated device tens of milliseconds."""

image = cuda_emulator.compile_kernels(SOURCE)  # once: the host's compiler takes longer than all else in a case


def put(x: tz.Buffer, value: float) -> tz.Buffer:
    """Enqueue a fill."""
    tz.current().fill(x, value)
    return x


def program(opened: list[tz.Context]) -> None:
    """Make contexts, which are put into `opened`, use all that the backend can do, and look at every result."""
    devices = tz.devices("cuda")
    one, two = (tz.context(device.name, seed=3) for device in devices[:2])
    opened += [one, two]
    use_memory(one)
    use_the_drivers_pool(devices[0], opened)
    use_fills(one)
    use_strided(one, two)
    use_streams(one)
    use_two_devices(one, two)
    use_tasks(one, two)
    use_other_libraries(one)
    use_kernels(one)
    use_graphs(one)
    for ctx in opened:
        ctx.close(timeout=T)


def use_memory(ctx: tz.Context) -> None:
    """Allocate, copy, pin, ask how much there is, and be refused."""
    values = np.arange(1000, dtype="float64")
    x = ctx.asarray(values)
    y = ctx.empty((1000,), "float64")
    ctx.copy(y, x)
    expect(ctx.to_numpy(y), values)
    ctx.copy(x[100:], y[:900])
    ctx.copy(x[1:901], x[:900])  # they overlap
    expect(ctx.to_numpy(x)[1:901], np.concatenate([values[:100], values[:800]]))
    pinned = ctx.memory.pinned.allocate(8000, dtype="float64")
    ctx.copy(pinned, y)
    ctx.synchronize(T)
    expect(np.asarray(pinned), values)
    ctx.copy(x, pinned)
    expect(ctx.to_numpy(x), values)
    assert ctx.memory.snapshot().total
    try:
        ctx.allocate(1 << 40)
    except tz.OutOfMemoryError:
        pass  # that is what was asked for
    else:
        raise AssertionError("a terabyte on an emulated device")
    del x, y, pinned
    ctx.memory.trim()


def use_the_drivers_pool(device: tz.Device, opened: list[tz.Context]) -> None:
    """Memory that one stream takes and another uses, and that comes back in order, after its stream, and trimmed."""
    ctx = tz.context(device, pool="driver", seed=3)
    opened.append(ctx)
    stream = ctx.new_stream()
    with ctx.on(stream):
        x, y = (ctx.empty((1000,), "int32") for _ in range(2))
    ctx.fill(x, 5)
    stream.wait(ctx.stream.record())
    ctx.copy(y, x, stream=stream)
    ctx.stream.wait(stream.record())
    expect(ctx.to_numpy(y), np.full(1000, 5))
    del x
    ctx.memory.stats()
    stream.close()
    del y, stream
    ctx.synchronize(T)
    ctx.memory.trim()
    assert ctx.memory.stats().live == 0


def use_fills(ctx: tz.Context) -> None:
    """Patterns of every width."""
    for dtype, value in (("uint8", 7), ("uint16", 513), ("float32", 1.5), ("float64", 1.5), ("complex128", 1 + 2j)):
        x = ctx.empty((300,), dtype)
        ctx.fill(x, value)
        expect(ctx.to_numpy(x), np.full(300, value, dtype))
    odd = ctx.allocate(303)
    ctx.fill(odd, b"abc")
    expect(ctx.to_numpy(odd), np.frombuffer(b"abc" * 101, "uint8"))


def use_strided(one: tz.Context, two: tz.Context) -> None:
    """Memory with gaps: within a device, to and from the host, to another device, filled, and onto itself."""
    values = np.arange(120, dtype="float64").reshape(10, 12)
    x, y = one.asarray(values), one.asarray(np.zeros((10, 6)))
    columns = x.view("float64", (10, 6), (96, 16))
    one.copy(y, columns)
    expect(one.to_numpy(y), values[:, ::2])
    one.copy(columns, -values[:, ::2])
    expect(one.to_numpy(columns), -values[:, ::2])
    expect(two.to_numpy(two.asarray(columns)), -values[:, ::2])
    one.fill(columns, 1.5)
    one.copy(x[::-1], x)
    expected = values[::-1].copy()
    expected[:, ::2] = 1.5
    expect(one.to_numpy(x), expected)


def use_streams(ctx: tz.Context) -> None:
    """Streams of one device, events with times, and a queue of somebody else."""
    first, second = ctx.new_stream(priority=1), ctx.new_stream()
    x = ctx.empty((50,), "float32")
    begin = first.record(timing=True)
    late = ctx.empty((LATE,), "float32")
    ctx.fill(late, 1.5)
    first.wait(ctx.stream)  # a wait for what is over by then would not reach the driver
    ctx.fill(x, 2.0, stream=first)
    end = first.record(timing=True)
    second.wait(end)
    ctx.copy(x[:25], x[25:], stream=second)
    end.synchronize(T)
    assert end.seconds_since(begin) >= 0.0
    ctx.stream.wait(second)
    expect(ctx.to_numpy(x), np.full(50, 2.0))
    adopted = ctx.adopt_stream(first.native)
    ctx.fill(x, 3.0, stream=adopted)
    adopted.synchronize(T)
    expect(ctx.to_numpy(x), np.full(50, 3.0))


def use_two_devices(one: tz.Context, two: tz.Context) -> None:
    """Copies between devices, and waits for one another."""
    x = one.asarray(np.arange(500))
    y = two.asarray(x)
    expect(two.to_numpy(y), np.arange(500))
    two.fill(y, 4)
    one.stream.wait(two.stream)
    one.copy(x, y)
    expect(one.to_numpy(x), np.full(500, 4))


def use_tasks(one: tz.Context, two: tz.Context) -> None:
    """Launched functions and the moves of their results, random numbers, and a stream that is dropped."""
    stream = one.new_stream()
    task = one.launch(put, one.empty((64,), "float32"), 5.0, stream=stream)
    moved = two.launch(put, task, 6.0)
    expect(two.to_numpy(moved.result(timeout=T)), np.full(64, 6.0))
    expect(one.to_numpy(task.result(timeout=T)), np.full(64, 5.0))
    expect(two.to_numpy(two.random.random(100)), np.random.Generator(np.random.Philox(3)).random(100))
    del task, moved, stream


def use_other_libraries(ctx: tz.Context) -> None:
    """Show memory to another library by DLPack, and borrow by the array interface, on the legacy default stream."""
    x = ctx.asarray(np.arange(100, dtype="int32"))
    taken = dlpack.take(x.__dlpack__(stream=1, max_version=(1, 0)), (2, ctx.native.ordinal))
    taken.managed.release()
    foreign = SimpleNamespace(__cuda_array_interface__=x.__cuda_array_interface__ | {"stream": 1})
    with tz.borrow(foreign, stream=ctx.stream) as lent:
        ctx.fill(lent[:50], 7)
    expect(ctx.to_numpy(x), np.concatenate([np.full(50, 7), np.arange(50, 100)]))


def use_kernels(ctx: tz.Context) -> None:
    """Compile, launch, ask for a kernel that is not there, and drop the program."""
    scale = ctx.compile(image, "scale")
    x = ctx.asarray(np.arange(100, dtype="float32"))
    ctx.launch(scale[4, 32], 100, 3.0, x).result(timeout=T)
    expect(ctx.to_numpy(x), 3.0 * np.arange(100))
    said = ""
    try:
        ctx.compile(image, "nobody")
    except ArgumentError as error:
        said = str(error)
    assert "scale" in said, f"the kernels that there are should be named: {said!r}"
    del scale
    ctx.memory.trim()


def use_graphs(ctx: tz.Context) -> None:
    """Capture copies, fills, kernels and a second stream; replay; drop one graph and close another; fail in between."""
    scale, other = ctx.compile(image, "scale"), ctx.new_stream()
    x, y = (ctx.asarray(np.full(100, 1.0, "float32")) for _ in range(2))
    ctx.synchronize(T)
    with ctx.stream.capture() as graph:
        between = ctx.asarray(np.arange(100, dtype="float32"))
        ctx.launch(scale[4, 32], 100, 3.0, between)
        ctx.copy(x, between)
        other.wait(ctx.stream.record())
        ctx.fill(y, b"8 bytes ", stream=other)
        ctx.copy(between[1:], between[:-1])
        ctx.stream.wait(other)
        del between
    for stream in (ctx.stream, other):
        graph.replay(stream)
        expect(ctx.to_numpy(x), 3.0 * np.arange(100))
    assert ctx.to_numpy(y).tobytes() == b"8 bytes " * 50
    graph.close()
    with other.capture() as second:
        ctx.fill(x, 2.0)
    second.replay()
    expect(ctx.to_numpy(x), np.full(100, 2.0))
    del graph, second
    try:
        with ctx.stream.capture():
            ctx.fill(x, 5.0)
            raise UsageError("on purpose")
    except UsageError as error:
        if getattr(error, "__notes__", ()):  # of what went wrong beside it
            raise
        expect(ctx.to_numpy(x), np.full(100, 2.0))


DRIVER = Suite(program, lambda: dict(emulator.report()["calls"]), nothing_is_left, SILENT, ())

if __name__ == "__main__":
    sys.exit(main(DRIVER, *sys.argv[1:]))
