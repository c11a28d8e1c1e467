"""Frozen values that cross the border between the core and a backend."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

__all__ = [
    "Address",
    "Box",
    "Capabilities",
    "CopyKind",
    "DeviceInfo",
    "Handle",
    "KernelInfo",
    "Level",
    "MemoryInfo",
    "MemoryUse",
]

Address = int
"""An address in a device's memory domain; only an integer, never dereferenced by the core."""

Handle = object
"""A backend's own queue or event; opaque to the core."""


class CopyKind(enum.Enum):
    """Where the two addresses of a copy lie, seen from the device whose queue carries it."""

    WITHIN = "within"
    FROM_HOST = "from_host"
    TO_HOST = "to_host"
    PEER = "peer"


class Box(NamedTuple):
    """Rows of bytes that one copy moves: `slices` times `rows` rows of `width` bytes.

    Attributes:
        width: bytes of a row.
        rows: rows of a slice.
        slices: how many slices there are.
        dst_pitch: bytes from row to row of the target, at least `width`.
        dst_rows: rows from slice to slice of the target, at least `rows`.
        src_pitch: the same as `dst_pitch`, of the source.
        src_rows: the same as `dst_rows`, of the source.
    """

    width: int
    rows: int
    slices: int
    dst_pitch: int
    dst_rows: int
    src_pitch: int
    src_rows: int


class Level(enum.Enum):
    """The levels of the contract battery, in order; each contains the ones before it."""

    TRANSPORT = "transport"
    KERNELS = "kernels"
    ARRAYS = "arrays"
    DNN = "dnn"


# Without slots: making a second class for them is a hundredth of the package's import.
@dataclass(frozen=True)
class DeviceInfo:
    """Identity and properties of one device.

    Attributes:
        backend: the backend's name.
        ordinal: the device's index in the backend, after any visible-device mask.
        part: empty, or which part of the device this is (``"0-3"`` for CPU cores 0 to 3).
        title: the vendor's name of the device.
        uuid: stable identity across processes and masks.
        memory_domain: devices of equal domain see the same addresses.
        memory_total: bytes, as the device or its cgroup reports them.
        cores: host processors on which the device's threads may run; empty where that means nothing.
        emulated: software that stands in for such a device; ``"auto"`` never chooses it.
        extra: whatever else the backend knows, for people to read.
    """

    backend: str
    ordinal: int
    title: str
    uuid: str
    memory_domain: str
    memory_total: int
    part: str = ""
    cores: tuple[int, ...] = ()
    emulated: bool = False
    extra: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}), compare=False, hash=False)

    @property
    def name(self) -> str:
        """``backend:ordinal``, with the part in brackets: ``cpu:0``, ``cpu:0[2-3]``, ``sim:1``."""
        return f"{self.backend}:{self.ordinal}" + (f"[{self.part}]" if self.part else "")


class Capabilities(NamedTuple):  # a dataclass of so many fields takes a twentieth of the package's import
    """What a device can do; the core and the contract battery read this and never probe.

    Attributes:
        level: the highest level of the contract battery that the device passes.
        queues: it has queues of its own; otherwise the core runs its work in host threads.
        host_addressable: the host may dereference its addresses.
        host_functions: a launched function is a host function that runs when its turn comes; otherwise it runs at
            submission and may only enqueue.
        cross_device_wait: a queue can wait for an event of another device of the same backend.
        peer_copy: memory can be copied to another device of the same backend without the host.
        timing: events can carry times.
        split: the device can be split into sub-devices.
        rebuild: a poisoned device can be used again in the same process.
        pinned: host memory can be page-locked for it.
        ordered_memory: the driver has a pool of its own, which gives and takes memory in the order of the queues.
        boxes: it copies rows with gaps between them (`Driver.copy_boxes`), by which strided memory moves.
        alignment: every allocation is aligned to this many bytes.
        dtypes: names of the dtypes that kernels understand.
        array_libraries: names accepted by ``arrays=``, the default first.
        kernel_language: of the source that `Driver.program_load` takes: ``"CUDA C++"``; empty where it takes none.
        exports: by which array interface other libraries know its memory: ``"cuda"``, or empty where by none.
        capture: what is submitted to a queue can be captured into a graph, and replayed.
        array_allocations: whether memory taken by the array library itself is ``"hooked"`` or ``"outside"``.
    """

    level: Level
    queues: bool
    host_addressable: bool
    host_functions: bool
    cross_device_wait: bool = False
    peer_copy: bool = False
    timing: bool = True
    split: bool = False
    rebuild: bool = True
    pinned: bool = False
    ordered_memory: bool = False
    boxes: bool = False
    alignment: int = 64
    dtypes: frozenset[str] = frozenset()
    array_libraries: tuple[str, ...] = ()
    kernel_language: str = ""
    array_allocations: str = "outside"
    exports: str = ""
    capture: bool = False


class KernelInfo(NamedTuple):
    """A kernel of a loaded program.

    Attributes:
        handle: opaque to the core; lives as long as the program.
        parameters: bytes of each parameter, in order.
        most_threads: in one block.
    """

    handle: Handle
    parameters: tuple[int, ...]
    most_threads: int


class MemoryUse(NamedTuple):
    """Who uses a device's memory, as far as its system tells.

    Attributes:
        total, used: bytes, of the device or of what binds this process more tightly; the parts below are of these.
        process: bytes of `used` that this process holds, or None where that is not known.
        parts: bytes under further headings, which do not overlap: ``file cache``, ``other processes``.
    """

    total: int
    used: int
    process: int | None = None
    parts: Mapping[str, int] = MappingProxyType({})


class MemoryInfo(NamedTuple):
    """Bytes of a device as its driver reports them now."""

    free: int
    total: int
