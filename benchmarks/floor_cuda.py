"""``python -m cuda_emulator -- python -m benchmarks.floor_cuda``: what calls cost whose queues are held meanwhile.

`bench_cuda` times the same; there queues go on by themselves, and on the emulator a call that wakes one pays more for
that than for all else. Here a host function holds both queues while a batch is timed, as with a caller that is ahead of
its device. Beside the three ways there are floors for record and wait, each of which does a little more than the one
before; what tazza is above the last is ours.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any, final

import tazza as tz
from benchmarks.bench_cuda import BATCH, Way, compiled, through_bindings, through_core, through_tazza
from benchmarks.report import BUILD
from tazza.drivers.cuda._calls import stream_calls

KINDS = ("record", "record_and_wait", "copy", "fill", "launch")
FLOORS = {
    "calls": "bindings, an event that is there, its context current",
    "switched": "the same, the context switched around each call",
    "by address": "the same, as tazza calls",
    "objects": "the same, an object for the event and a lock around each call, in Python",
}


@final
class Holder:
    """Holds queues: a host function of theirs waits for a semaphore of the C library."""

    def __init__(self, api: Any) -> None:
        self._api, self._library, self._semaphore = api, ctypes.CDLL(None), ctypes.create_string_buffer(64)
        self._library.sem_init(self._semaphore, 0, 0)
        self._function = api.CUhostFn(ctypes.cast(self._library.sem_wait, ctypes.c_void_p).value)

    def time(self, way: Way, kind: str) -> float:
        """Seconds of one call, of a batch while both queues stand still."""
        work = way.works[kind]
        for stream in way.streams:
            [status] = self._api.cuLaunchHostFunc(stream, self._function, ctypes.addressof(self._semaphore))
            if status:
                raise RuntimeError(f"cuLaunchHostFunc: {status}")
        try:
            begin = time.perf_counter()
            for _ in range(BATCH):
                work()
            return (time.perf_counter() - begin) / BATCH
        finally:
            for _ in way.streams:
                self._library.sem_post(self._semaphore)
            way.wait()


@final
class _Thing:
    """As little as an event of Python can be."""

    __slots__ = ("native", "number", "stream")

    def __init__(self, native: object, stream: object, number: int) -> None:
        self.native, self.stream, self.number = native, stream, number


def floors(api: Any) -> dict[str, Way]:
    """Record and wait with less and less left out; the context is current in this thread."""
    context = api.cuDevicePrimaryCtxRetain(api.cuDeviceGet(0)[1])[1]
    stream, other, event = api.cuStreamCreate(1)[1], api.cuStreamCreate(1)[1], api.cuEventCreate(2)[1]
    record, wait, push, pop = api.cuEventRecord, api.cuStreamWaitEvent, api.cuCtxPushCurrent, api.cuCtxPopCurrent
    direct, lock = stream_calls(api, context), threading.Lock()

    def calls() -> None:
        record(event, stream)
        wait(other, event, 0)

    def switched() -> None:
        push(context)
        record(event, stream)
        pop()
        push(context)
        wait(other, event, 0)
        pop()

    def by_address() -> None:
        direct.record(event, stream)
        direct.wait(other, event)

    def objects() -> None:
        with lock:
            thing = _Thing(event, stream, 1)
            direct.record(thing.native, stream)
        with lock:
            direct.wait(other, thing.native)

    def settle() -> None:
        api.cuStreamSynchronize(stream)
        api.cuStreamSynchronize(other)

    works: tuple[Callable[[], object], ...] = (calls, switched, by_address, objects)
    streams = int(stream), int(other)
    return {name: Way({"record_and_wait": work}, settle, streams) for name, work in zip(FLOORS, works, strict=True)}


def main(arguments: list[str] | None = None) -> int:
    """Print medians in microseconds, and how much tazza's are of each, by the median within a round."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor_cuda")
    parser.add_argument("--rounds", type=int, default=40, help="batches of each (default: 40)")
    rounds = parser.parse_args(arguments).rounds
    code = compiled(tz.device("cuda:0").info.emulated)
    ways = {"tazza": through_tazza(code), "core": through_core(code), "bindings": through_bindings(code)}
    api: Any = importlib.import_module("cuda.bindings.driver")
    ways |= floors(api)
    holder = Holder(api)
    print(f"us for a call while the queues are held ({BUILD})")
    for kind in KINDS:
        who = [name for name, way in ways.items() if kind in way.works]
        seen = {name: list[float]() for name in who}
        for _ in range(rounds):
            for name in who:
                seen[name].append(holder.time(ways[name], kind))
        for name in who:
            ratio = median(ours / its for ours, its in zip(seen["tazza"], seen[name], strict=True))
            text = f"  ({FLOORS[name]})" if name in FLOORS else ""
            print(f"{kind:16} {name:10} {median(seen[name]) * 1e6:8.2f}  tazza is {ratio:6.2f} x{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
