"""Pinned and shared host memory against the system's own calls, and copies from pinned against ordinary memory."""

from __future__ import annotations

import ctypes
import mmap
import os
from multiprocessing import resource_tracker, shared_memory

import numpy as np

import tazza as tz
from benchmarks.harness import Area, Budget, Case, Missing

NBYTES = 256 << 10
LARGE = 4 << 20


def pinned() -> list[Case | Missing]:
    """Allocate and free: from the cache, from the system each time, and by the calls that this takes."""
    context = tz.context("cpu")
    if not context.device.capabilities.pinned or os.name != "posix":
        return [Missing("host_memory.pin.tazza", "this system locks no pages")]
    library = ctypes.CDLL(None)
    library.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def raw() -> None:
        memory = mmap.mmap(-1, NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        first = ctypes.c_char.from_buffer(memory)
        library.mlock(ctypes.addressof(first), NBYTES)
        del first
        memory.close()

    memory = context.memory.pinned
    names = {"allocate": memory.allocate, "trim": memory.trim, "n": NBYTES, "context": context}
    return [
        Case("host_memory.pin.mlock", "raw()", {"raw": raw}),
        Case("host_memory.pin.tazza", "allocate(n)", names),
        Case("host_memory.pin_anew.tazza", "allocate(n).close(); trim()", names),
    ]


def shared() -> list[Case | Missing]:
    """Create and remove, attach and let go, beside `multiprocessing.shared_memory`."""
    context = tz.context("cpu")
    memory = context.memory.shared
    kept = memory.allocate(NBYTES)
    theirs = shared_memory.SharedMemory(create=True, size=NBYTES)

    def create() -> None:
        made = shared_memory.SharedMemory(create=True, size=NBYTES)
        made.close()
        made.unlink()

    def attach() -> None:
        there = shared_memory.SharedMemory(theirs.name)
        there.close()

    class Unlink:
        def __del__(self) -> None:
            theirs.close()
            theirs.unlink()

    names = {"allocate": memory.allocate, "attach": memory.attach, "n": NBYTES, "context": context, "kept": kept}
    names["spec"] = tz.SharedSpec.of(kept)
    resource_tracker.ensure_running()  # its start is not what is compared
    return [
        Case("host_memory.share.multiprocessing", "create()", {"create": create, "end": Unlink()}),
        Case("host_memory.share.tazza", "allocate(n).close()", names),
        Case("host_memory.attach.multiprocessing", "attach()", {"attach": attach}),
        Case("host_memory.attach.tazza", "attach(spec).close()", names),
    ]


def copies() -> list[Case | Missing]:
    """How long a call of copy takes its caller, and until the simulated device has the bytes."""
    context = tz.context("sim:0")
    device = context.allocate(LARGE)
    staging = context.memory.pinned.allocate(LARGE)
    names = {"copy": context.copy, "wait": context.synchronize, "device": device}
    cases: list[Case | Missing] = []
    for who, source in (("ordinary", np.ones(LARGE, np.uint8)), ("pinned", staging)):
        cases.append(Case(f"host_memory.to_sim.{who}", "copy(device, x); wait()", names | {"x": source}))
        cases.append(Case(f"host_memory.call.{who}", "copy(device, x)", names | {"x": source}, setup="wait()"))
    return cases


def area() -> Area:
    """Cases of pinned memory, shared memory and copies."""
    return Area(
        cases=[*pinned(), *shared(), *copies()],
        budgets=[
            Budget("host_memory.pin.tazza", "host_memory.pin.mlock", at_most=0.5),
            Budget("host_memory.pin_anew.tazza", "host_memory.pin.mlock", at_most=1.5, gated=False),
            Budget("host_memory.share.tazza", "host_memory.share.multiprocessing", at_most=1.5, gated=False),
            Budget("host_memory.attach.tazza", "host_memory.attach.multiprocessing", at_most=1.5, gated=False),
            Budget("host_memory.to_sim.pinned", "host_memory.to_sim.ordinary", at_most=1.0, gated=False),
            Budget("host_memory.call.pinned", "host_memory.call.ordinary", at_most=1.0, gated=False),
        ],
    )
