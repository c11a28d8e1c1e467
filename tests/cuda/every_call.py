"""Run by test_every_call.py on emulated devices: one program, once for each call of the driver that is made to fail.

The program goes through everything that the backend does. A first run counts the calls that it makes of the driver, so
that a call which the backend learns to make is covered by itself. Each case is a forked child of a process that has
imported everything and not initialised CUDA: counting begins at `cuInit`, and no case knows of another.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import cuda_emulator
import numpy as np
from cuda.bindings import driver as api

import tazza as tz
from tazza.core import dlpack
from tazza.core.runtime import live_runtimes
from tazza.errors import ArgumentError, BackendError, DeviceLostError, TazzaError, UsageError

SOURCE = """
extern "C" __global__ void scale(int count, float by, float *x) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) x[i] *= by;
}
"""

T = 10.0
"""Seconds after which a wait of the program gives up."""

HUNG = 40.0
"""Seconds after which a case counts as hung."""

KINDS = {"plain": ("INVALID_VALUE", ("1", "2", "last", "*")), "sticky": ("LAUNCH_FAILED:sticky", ("1", "2", "last"))}

ANSWERS = {"cuKernelGetParamInfo": "INVALID_HANDLE"}
"""Another error for a call of which INVALID_VALUE is an answer: there are no more parameters."""

AS = {"cuGetProcAddress": "is not found"}
"""What a failure of a call is known by, where it is the bindings that make it."""

SILENT = {
    "cuCtxPopCurrent": "tried once more, which is all that a caller wants",
    "cuGetErrorString": "the text of another error, which has its code and symbol without it",
    "cuGetProcAddress": "the bindings try another way, or do without a function that nobody calls",
}
"""Calls whose failure nobody need hear of, and why."""

WITHOUT = {"cuGetProcAddress:*": "the bindings keep for good that there is no driver, and say so"}
"""Cases that are left out, and why."""

LATE = 8 << 20
"""Elements whose fill takes an emulated device tens of milliseconds."""

emulator = cuda_emulator.start()
image = cuda_emulator.compile_kernels(SOURCE)  # once: the host's compiler takes longer than all else in a case

# The program ---------------------------------------------------------------------------------------------------------


def put(x: tz.Buffer, value: float) -> tz.Buffer:
    """Enqueue a fill."""
    tz.current().fill(x, value)
    return x


def expect(actual: Any, expected: Any) -> None:
    """Compare; what is wrong is a fault that nobody was told of."""
    assert np.array_equal(np.asarray(actual), np.asarray(expected)), f"wrong data: {actual} for {expected}"


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


class Suite(NamedTuple):
    """A program, and whose calls fail in it.

    Attributes:
        program: is given the list that it puts its contexts into.
        made: how often each call was made.
        check_left: fails where something is left once all is closed and dropped.
        silent: calls whose failure nobody need hear of, and why.
        unbroken: in the names of calls that touch no device, and so never break one.
    """

    program: Callable[[list[tz.Context]], None]
    made: Callable[[], dict[str, int]]
    check_left: Callable[[], None]
    silent: dict[str, str]
    unbroken: tuple[str, ...]


# A case --------------------------------------------------------------------------------------------------------------


def told(error: BaseException | None) -> Iterator[str]:
    """All that an error says, with what it came from."""
    while error is not None:
        yield f"{error!r} {getattr(error, 'call', '')} {getattr(error, '__notes__', '')}"
        error = error.__cause__ or error.__context__


def run_case(suite: Suite, name: str, fault: str) -> dict[str, Any]:
    """Run the program under a fault, then what must be true afterwards."""
    stray: list[str] = []
    sys.unraisablehook = lambda what: stray.append(f"unraisable: {what.exc_value!r} in {what.object!r}")
    threading.excepthook = lambda what: stray.append(f"in {what.thread}: {what.exc_value!r}")
    emulator.faults = fault
    opened: list[tz.Context] = []
    outcome = "passed"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            suite.program(opened)
        except TazzaError as error:
            outcome, text = type(error).__name__, " | ".join(told(error))
            traceback.clear_frames(error.__traceback__)
            assert AS.get(name, name) in text, f"{name} is not named: {text}"
        met = reached(suite, name, fault.split(":")[1])
        emulator.faults = ()
        if fault.startswith("cuCtxPopCurrent:*"):
            assert outcome != "passed", "nobody was told that the caller's context cannot be put back"
            while int(api.cuCtxPopCurrent()[0]) == 0:
                continue
        after(suite, opened, name)
    assert not stray, stray
    heard = any(AS.get(name, name) in str(one.message) for one in warned)
    lost = any(device.driver.poison(device.info) for device in tz.devices("cuda"))
    assert outcome != "passed" or heard or lost or name in suite.silent or not met, "nobody was told"
    return {"outcome": outcome, "warnings": sorted({type(one.message).__name__ for one in warned})}


def after(suite: Suite, opened: list[tz.Context], name: str) -> None:
    """Contexts work on or say that they are lost, and nothing is left in the driver."""
    if initialised():
        assert int(api.cuCtxGetCurrent()[1]) == 0, "the caller's context was not put back"
    for number in range(len(opened)):
        works_or_says_why(opened[number], name)
    finish(opened)
    lost = [device for device in tz.devices("cuda") if device.driver.poison(device.info)]
    for device in tz.devices("cuda"):
        if device in lost:
            is_refused(device.name, name)
        elif lost:
            with tz.open(device.name) as well:
                works_or_says_why(well, name)
    if not lost:
        suite.program(opened)
        finish(opened)
        suite.check_left()


def initialised() -> bool:
    """Whether CUDA was initialised: where that was made to fail there is no current context."""
    try:
        return not api.cuCtxGetCurrent()[0]
    except RuntimeError:  # the bindings were kept from finding their functions
        return False


def is_refused(device: str, name: str) -> None:
    """A lost device says so to whoever wants a context on it."""
    said = ""
    try:
        tz.context(device)
    except DeviceLostError as error:
        said = str(error)
    assert name in said, said or f"{device} is lost and gives a context"


def works_or_says_why(ctx: tz.Context, name: str) -> None:
    """Use a context."""
    if ctx.health:
        if not ctx.is_closed:
            expect(ctx.to_numpy(ctx.asarray(np.arange(10))), np.arange(10))
        return
    assert name in str(ctx.health.cause), ctx.health.cause
    for use in (lambda: ctx.allocate(64), lambda: ctx.synchronize(T)):
        try:
            use()
        except DeviceLostError:
            continue
        raise AssertionError(f"{ctx!r} is lost and works")


def finish(opened: list[tz.Context]) -> None:
    """Close and drop all; failures that nobody has seen are raised by closing, once."""
    while opened:
        try:
            opened[-1].close(timeout=T)
        except TazzaError:
            opened[-1].close(timeout=T)
        assert opened.pop().is_closed
    gc.collect()


def nothing_is_left(images: int = 0) -> None:
    """Give back what is kept for reuse, and ask the emulator what there is: no more than so many images of kernels."""
    assert emulator.wait_idle()
    for _ in range(3):  # streams that are over are forgotten, then what they held is, then that is given back
        gc.collect()
        for runtime in live_runtimes():
            runtime.reclaim()
            runtime.trim()
            assert runtime.account.live == 0, f"{runtime} has {runtime.account!r}"
    assert emulator.live_bytes() == 0, emulator.report()["allocations"]
    objects = emulator.report()["objects"]
    assert objects.pop("module") <= images, emulator.report()["objects"]
    if images:
        del objects["kernel"]  # they go with their images
    assert not any(objects.values()), objects
    assert emulator.report()["n_hazards"] == 0, emulator.report()["hazards"]


DRIVER = Suite(program, lambda: dict(emulator.report()["calls"]), nothing_is_left, SILENT, ())


# Children ------------------------------------------------------------------------------------------------------------


def forked(function: Callable[[], Any]) -> tuple[Any, str]:
    """What a function returned in a forked child, or how that ended."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            answer: Any = {"value": function()}
        except BaseException:  # the child must not go on as its parent
            answer = {"failure": traceback.format_exc()}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writing, data) :]
        os._exit(0)
    os.close(writing)
    data = b""
    while True:
        ready, _, _ = select.select([reading], [], [], HUNG)
        if not ready:
            os.kill(pid, signal.SIGKILL)
            break
        part = os.read(reading, 1 << 16)
        if not part:
            break
        data += part
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not ready:
        return None, f"hung for {HUNG:g} s"
    if status or not data:
        return None, f"ended with {status}"
    answer = json.loads(data)
    return answer.get("value"), answer.get("failure", "")


def counted(suite: Suite) -> dict[str, int]:
    """The calls that the program makes."""
    suite.program([])
    return counts(suite)


def reached(suite: Suite, name: str, when: str) -> bool:
    """Whether a fault has been due; how often events are looked at differs from run to run."""
    return counts(suite).get(name, 0) >= (int(when) if when.isdigit() else 1)


def counts(suite: Suite) -> dict[str, int]:
    """How often each call was made, by the name under which it can be made to fail."""
    calls: dict[str, int] = {}
    for call, count in suite.made().items():
        name = call.split("_v")[0].removesuffix("_ptsz").removesuffix("_ptds")
        calls[name] = calls.get(name, 0) + count
    return calls


def main(suite: Suite, kind: str, part: str = "1/1", *only: str) -> int:
    """Run a part of the cases of a kind, print a line for each, and end with the number of those that failed."""
    os.environ["TAZZA_WAIT_TIMEOUT"] = str(T)
    calls, failure = forked(partial(counted, suite))
    assert not failure, failure
    error, occurrences = KINDS[kind]
    failed, (number, parts) = 0, map(int, part.split("/"))
    unbroken = suite.unbroken if kind == "sticky" else ()
    names = [name for name in only or calls if not any(part in name for part in unbroken)]
    for name in sorted(names)[number - 1 :: parts]:
        for when in dict.fromkeys(str(calls[name]) if one == "last" else one for one in occurrences):
            if (when.isdigit() and int(when) > calls[name]) or f"{name}:{when}" in WITHOUT:
                continue
            fault = f"{name}:{when}:{ANSWERS.get(name, error) if kind == 'plain' else error}"
            value, failure = forked(partial(run_case, suite, name, fault))
            failed += bool(failure)
            print(fault, failure or value, flush=True)
    print(f"{len(calls)} calls, {failed} cases failed: {' '.join(calls)}")
    return min(failed, 100)


if __name__ == "__main__":
    assert issubclass(DeviceLostError, BackendError)
    sys.exit(main(DRIVER, *sys.argv[1:]))
