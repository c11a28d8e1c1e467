"""What tazza adds to CUDA: the same work through tazza, through `cuda.core`, and through `cuda.bindings` itself.

Without a GPU it runs on the emulator, whose queues are threads of this machine: what is compared is what a call costs
its caller, not what a device does with it::

    python -m cuda_emulator -- python -m benchmarks cuda

The three do not do the same for that. tazza counts, limits, orders memory by use and notices failures; `cuda.core`
checks arguments and owns what it makes; the bindings do nothing but call.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tazza as tz
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.errors import BackendUnavailableError

BATCH = 50
NBYTES = 1 << 16
TIMEOUT = 60.0
SOURCE = 'extern "C" __global__ void touch(char *x) { *x = 1; }'
KINDS = (
    *("context", "allocate", "copy", "fill", "record", "wait", "record_and_wait"),
    *("launch", "twenty_launches", "replay_of_twenty"),
)
"""`wait` is for an event that is over, which tazza sees without a call; `record_and_wait` for one of just now."""

TWENTY = 20
PEERS = ("core", "bindings")


class Way(NamedTuple):
    """One of the three.

    Attributes:
        works: what is timed, by kind.
        wait: for what they have queued.
        streams: their queues, as integers.
    """

    works: Mapping[str, Callable[[], object]]
    wait: Callable[[], object]
    streams: tuple[int, int]


def repeated(work: Callable[[], object], wait: Callable[[], object]) -> Callable[[], None]:
    """A batch of the same, then a wait for the queue, which stays short."""

    def run() -> None:
        for _ in range(BATCH):
            work()
        wait()

    return run


def twenty(launch: Callable[[], object]) -> Callable[[], None]:
    """A step of many small launches, which a graph makes one of."""

    def run() -> None:
        for _ in range(TWENTY):
            launch()

    return run


def compiled(emulated: bool) -> Any:
    """What is launched, a kernel of one thread, as the `ObjectCode` that all three take."""
    core: Any = importlib.import_module("cuda.core")
    if emulated:
        return core.ObjectCode.from_cubin(importlib.import_module("cuda_emulator").compile_kernels(SOURCE))
    return core.Program(SOURCE, "c++", core.ProgramOptions(arch=f"sm_{core.Device(0).arch}")).compile("cubin")


def through_tazza(code: Any) -> Way:
    """On a context of its own and two of its streams."""
    ctx = tz.context("cuda:0")
    stream, other, kernel = ctx.stream, ctx.new_stream(), ctx.compile(code, "touch")[1, 1]
    x, y, event = ctx.allocate(NBYTES), ctx.allocate(NBYTES), stream.record()

    def enter() -> None:
        with ctx:
            pass

    step = twenty(lambda: ctx.launch(kernel, x))
    with stream.capture() as graph:
        step()

    works: tuple[Callable[[], object], ...] = (
        *(enter, lambda: ctx.allocate(NBYTES), lambda: ctx.copy(x, y), lambda: ctx.fill(x, 1)),
        *(stream.record, lambda: other.wait(event), lambda: other.wait(stream.record())),
        *(lambda: ctx.launch(kernel, x), step, graph.replay),
    )
    queues: Any = stream.native, other.native
    return Way(dict(zip(KINDS, works, strict=True)), lambda: ctx.synchronize(TIMEOUT), queues)


def through_core(code: Any) -> Way:
    """On cuda.core's objects, which act on the thread's current device."""
    core: Any = importlib.import_module("cuda.core")
    card = core.Device(0)
    card.set_current()
    stream, other = card.create_stream(), card.create_stream()
    x, y = (card.allocate(NBYTES, stream=stream) for _ in range(2))
    event, kernel, once = stream.record(), code.get_kernel("touch"), core.LaunchConfig(grid=1, block=1)

    step = twenty(lambda: core.launch(stream, once, kernel, x))
    builder = stream.create_graph_builder().begin_building()
    twenty(lambda: core.launch(builder, once, kernel, x))()
    graph = builder.end_building().complete()

    def wait() -> None:
        stream.sync()
        other.sync()

    works = (
        *(card.set_current, lambda: card.allocate(NBYTES, stream=stream).close(stream)),
        *(lambda: y.copy_to(x, stream=stream), lambda: x.fill(1, stream=stream)),
        *(stream.record, lambda: other.wait(event), lambda: other.wait(stream.record())),
        *(lambda: core.launch(stream, once, kernel, x), step, lambda: graph.launch(stream)),
    )
    return Way(dict(zip(KINDS, works, strict=True)), wait, (int(stream.handle), int(other.handle)))


def through_bindings(code: Any) -> Way:
    """On the driver's own functions, with the primary context current as they need it."""
    driver: Any = importlib.import_module("cuda.bindings.driver")

    def call(name: str, *args: Any) -> Any:
        status, *answer = getattr(driver, name)(*args)
        if status:
            raise RuntimeError(f"{name}: {status}")
        return answer[0] if answer else None

    context = call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", 0))
    call("cuCtxSetCurrent", context)
    stream, other = call("cuStreamCreate", 1), call("cuStreamCreate", 1)
    x, y, kept = call("cuMemAlloc", NBYTES), call("cuMemAlloc", NBYTES), call("cuEventCreate", 2)
    call("cuEventRecord", kept, stream)
    program = call("cuLibraryLoadData", code.code, [], [], 0, [], [], 0)
    kernel = driver.CUfunction(int(call("cuLibraryGetKernel", program, b"touch")))
    shape = 1, 1, 1, 1, 1, 1, 0

    def switch() -> None:
        call("cuCtxPushCurrent", context)
        call("cuCtxPopCurrent")

    def allocate() -> None:
        call("cuMemFreeAsync", call("cuMemAllocAsync", NBYTES, stream), stream)

    def record(*, also_wait: bool = False) -> None:
        event = call("cuEventCreate", 2)
        call("cuEventRecord", event, stream)
        if also_wait:
            call("cuStreamWaitEvent", other, event, 0)
        call("cuEventDestroy", event)

    def wait() -> None:
        call("cuStreamSynchronize", stream)
        call("cuStreamSynchronize", other)

    def launch() -> None:
        call("cuLaunchKernel", kernel, *shape, stream, ((int(x),), (ctypes.c_void_p,)), 0)

    call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode(2))
    twenty(launch)()
    graph = call("cuGraphInstantiate", call("cuStreamEndCapture", stream), 0)

    works = (
        *(switch, allocate, lambda: call("cuMemcpyDtoDAsync", x, y, NBYTES, stream)),
        lambda: call("cuMemsetD8Async", x, 1, NBYTES, stream),
        *(record, lambda: call("cuStreamWaitEvent", other, kept, 0), lambda: record(also_wait=True)),
        *(launch, twenty(launch), lambda: call("cuGraphLaunch", graph, stream)),
    )
    return Way(dict(zip(KINDS, works, strict=True)), wait, (int(stream), int(other)))


def area() -> Area:
    """The same ids for all three."""
    try:
        emulated = tz.device("cuda:0").info.emulated
        where, code = "emulator" if emulated else "device", compiled(emulated)
        makers = {"tazza": through_tazza, "core": through_core, "bindings": through_bindings}
        ways = {who: make(code) for who, make in makers.items()}
    except (BackendUnavailableError, ImportError) as error:
        reason = f"{error}; on the emulator: python -m cuda_emulator -- python -m benchmarks cuda"
        return Area([Missing(f"cuda.{kind}.{who}", reason) for kind in KINDS for who in ("tazza", *PEERS)])
    cases = [
        Case(f"cuda.{kind}_{where}.{who}", "run()", {"run": repeated(work, way.wait)}, operations=BATCH)
        for who, way in ways.items()
        for kind, work in way.works.items()
    ]
    pairs = [(f"cuda.{kind}_{where}.tazza", f"cuda.{kind}_{where}.{peer}") for kind in KINDS for peer in PEERS]
    pairs += [(f"cuda.replay_of_twenty_{where}.{who}", f"cuda.twenty_launches_{where}.{who}") for who in ways]
    return Area(cases, [Budget(*pair, at_most=50.0, gated=False) for pair in pairs])
