"""The CPU driver: memory from the system, copies and fills in the calling thread, no queues of its own."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np

from tazza.drivers.cpu import host, pages, usage
from tazza.errors import ArgumentError, OutOfMemoryError
from tazza.spi import Address, Capabilities, CopyKind, DeviceInfo, Driver, Handle, Level, MemoryInfo, MemoryUse
from tazza.util.hostmemory import HostMemory

__all__ = ["CpuDriver", "create_driver"]


def create_driver() -> CpuDriver:
    """Make the driver; the CPU is always there."""
    return CpuDriver()


class CpuDriver(Driver):
    """All processors that this process may use, as one device with one memory domain."""

    name = "cpu"

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}
        self._locked: dict[int, int] = {}  # the page-locked ones' bytes, by their address
        self._lock = threading.Lock()

    # Identity ------------------------------------------------------------------------------------------------------

    def devices(self) -> tuple[DeviceInfo, ...]:
        quota = host.cpu_quota()
        return (
            DeviceInfo(
                backend=self.name,
                ordinal=0,
                title=host.title(),
                uuid=host.machine_uuid(),
                memory_domain="host",
                memory_total=host.available_memory()[1],
                cores=host.usable_cores(),
                extra={} if quota is None else {"cpu_quota": quota},
            ),
        )

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return Capabilities(
            level=Level.DNN,
            queues=False,
            host_addressable=True,
            host_functions=True,
            cross_device_wait=True,
            peer_copy=True,
            split=len(device.cores) > 1,
            pinned=pages.AVAILABLE,
            dtypes=frozenset(_DTYPES),
            array_libraries=("numpy", "torch"),
            array_allocations="hooked",
        )

    def part(self, device: DeviceInfo, part: str) -> DeviceInfo:
        cores = host.parse_cores(part)
        foreign = sorted(set(cores) - set(device.cores))
        if foreign:
            raise ArgumentError.of(
                "device", f"{device.name}[{part}]", f"processors of this process: {host.format_cores(device.cores)}"
            )
        return replace(
            device, part=host.format_cores(cores), cores=cores, uuid=f"{device.uuid}[{host.format_cores(cores)}]"
        )

    def split(self, device: DeviceInfo, count: int) -> tuple[DeviceInfo, ...]:
        cores = device.cores
        whole = replace(device, part="", uuid=device.uuid.partition("[")[0])
        bounds = [len(cores) * index // count for index in range(count + 1)]
        return tuple(
            self.part(whole, host.format_cores(cores[first:last])) for first, last in itertools.pairwise(bounds)
        )

    def thread_attach(self, device: DeviceInfo) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, device.cores)

    def rebuild(self) -> Driver:
        return CpuDriver()

    # Memory --------------------------------------------------------------------------------------------------------

    def memory_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        # Anonymous maps rather than malloc: aligned to pages, zero until touched, and given back to the system at once.
        try:
            memory = pages.map_private(nbytes)
        except (OSError, OverflowError) as error:
            raise OutOfMemoryError(
                f"the system has no {nbytes} bytes of memory: {error}", requested=nbytes, backend=self.name, call="mmap"
            ) from None
        pinned = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(pinned)
        del pinned  # an export would keep the map from being closed
        with self._lock:
            self._maps[address] = memory
        return address

    def memory_free(self, device: DeviceInfo, address: Address) -> None:
        with self._lock:
            memory = self._maps.pop(address)
        memory.close()

    def pinned_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        # Locking touches every page: what is not there would not be refused but taken from others, by killing them.
        if nbytes >= _ASK_FROM:
            free = host.available_memory()[0]
            if nbytes > free:
                raise OutOfMemoryError(
                    f"{nbytes} bytes asked for, {free} free", requested=nbytes, backend=self.name, call="mlock"
                )
        address = self.memory_allocate(device, nbytes)
        try:
            pages.lock(address, nbytes, sum(self._locked.values()))
        except BaseException:
            self.memory_free(device, address)
            raise
        with self._lock:
            self._locked[address] = nbytes
        return address

    def pinned_free(self, device: DeviceInfo, address: Address) -> None:
        with self._lock:
            del self._locked[address]
        self.memory_free(device, address)  # unmapped pages are unlocked

    def memory_info(self, device: DeviceInfo) -> MemoryInfo:
        return MemoryInfo(*host.available_memory())

    def memory_use(self, device: DeviceInfo) -> MemoryUse:
        return usage.memory_use()

    def memory_resident(self, device: DeviceInfo, address: Address, nbytes: int) -> int:
        return usage.resident(address, nbytes)

    def copy(
        self, device: DeviceInfo, queue: Handle | None, dst: Address, src: Address, nbytes: int, kind: CopyKind
    ) -> None:
        ctypes.memmove(dst, src, nbytes)

    def fill(self, device: DeviceInfo, queue: Handle | None, dst: Address, pattern: bytes, nbytes: int) -> None:
        if len(pattern) == 1:
            ctypes.memset(dst, pattern[0], nbytes)
            return
        cell = np.dtype((np.void, len(pattern)))
        HostMemory(dst, cell, (nbytes // len(pattern),), None).array()[:] = np.frombuffer(pattern, cell)

    # Functions -----------------------------------------------------------------------------------------------------

    def view(
        self,
        device: DeviceInfo,
        address: Address,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        readonly: bool,
    ) -> np.ndarray[Any, Any]:
        return HostMemory(address, dtype, shape, strides, readonly=readonly).array()


_ASK_FROM = 1 << 20  # bytes; asking the system how much is free takes as long as locking less than this

_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
