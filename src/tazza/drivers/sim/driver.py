"""The simulated driver."""

from __future__ import annotations

import ctypes
import gc
import itertools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from tazza import config
from tazza.drivers.sim.memory import AddressSpace, PinnedHost
from tazza.drivers.sim.queue import SimEvent, SimQueue
from tazza.errors import ArgumentError, BackendError, DeviceLostError, UsageError
from tazza.spi import Address, Capabilities, CopyKind, DeviceInfo, Driver, Handle, Level, MemoryInfo
from tazza.util.hostmemory import HostMemory

__all__ = ["SimConfig", "SimDriver", "create_driver"]

_drivers = itertools.count()
_SWITCHES = frozenset({"cross_device_wait", "peer_copy", "timing", "float64", "pinned", "ordered_memory"})


@dataclass(frozen=True, slots=True)
class SimConfig:
    """How many devices, and what they are like.

    Attributes:
        devices: number of devices.
        memory: bytes of each; as much of the host's memory may be pinned for all together.
        seed: seed of the lateness of the queues.
        lateness: longest delay of one operation in seconds; 0 runs everything as soon as possible.
        without: abilities that the devices do not have: cross_device_wait, peer_copy, timing, float64, pinned,
            ordered_memory.
    """

    devices: int = 2
    memory: int = 2**30
    seed: int = 0
    lateness: float = 100e-6
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.without - _SWITCHES
        if unknown:
            raise ArgumentError.of("without", sorted(unknown), f"abilities among {sorted(_SWITCHES)}")
        if self.devices < 1:
            raise ArgumentError.of("devices", self.devices, "at least 1")


def create_driver() -> SimDriver:
    """Make the driver as the environment says."""
    return SimDriver(
        SimConfig(
            devices=config.sim_devices(),
            memory=config.sim_memory(),
            seed=config.sim_seed(),
            lateness=config.sim_lateness(),
            without=config.sim_without(),
        )
    )


class _Running(threading.local):
    """The views made by the function that runs in this queue thread; `device` is None in every other thread."""

    device: DeviceInfo | None = None
    views: list[weakref.ref[HostMemory]] | None = None


class SimDriver(Driver):
    """Devices with their own address spaces and late queues, all in host memory."""

    name = "sim"

    def __init__(self, settings: SimConfig) -> None:
        self.settings = settings
        self._spaces = [AddressSpace(f"sim:{i}", i, settings.memory) for i in range(settings.devices)]
        self._lost: dict[int, str] = {}
        self._pinned = PinnedHost(settings.memory)
        self._running = _Running()
        self._queue_numbers = itertools.count()
        # Another driver's memory is another address space: equal names would let buffers of one be read in the other.
        number = next(_drivers)
        self._suffix = f"#{number}" if number else ""

    # Identity ------------------------------------------------------------------------------------------------------

    def devices(self) -> tuple[DeviceInfo, ...]:
        return tuple(
            DeviceInfo(
                backend=self.name,
                ordinal=ordinal,
                title="simulated device",
                uuid=f"sim-{ordinal}",
                memory_domain=f"sim:{ordinal}{self._suffix}",
                memory_total=self.settings.memory,
            )
            for ordinal in range(self.settings.devices)
        )

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        without = self.settings.without
        dtypes = {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16"}
        dtypes |= {"float32", "complex64"} | (set() if "float64" in without else {"float64", "complex128"})
        return Capabilities(
            level=Level.DNN,
            queues=True,
            host_addressable=False,
            host_functions=True,
            cross_device_wait="cross_device_wait" not in without,
            peer_copy="peer_copy" not in without,
            timing="timing" not in without,
            pinned="pinned" not in without,
            ordered_memory="ordered_memory" not in without,
            dtypes=frozenset(dtypes),
            array_libraries=("numpy",),
        )

    def poison(self, device: DeviceInfo) -> str | None:
        return self._lost.get(device.ordinal)

    def lose(self, ordinal: int, reason: str) -> None:
        """Break a device for good, as a sticky fault does on hardware; the first reason stays."""
        self._lost.setdefault(ordinal, reason)

    def rebuild(self) -> Driver:
        return SimDriver(self.settings)

    def _check(self, device: DeviceInfo, call: str) -> None:
        reason = self._lost.get(device.ordinal)
        if reason is not None:
            raise DeviceLostError(reason, backend=self.name, call=call)

    # Memory --------------------------------------------------------------------------------------------------------

    def memory_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        self._check(device, "memory_allocate")
        return self._spaces[device.ordinal].allocate(nbytes)

    def memory_free(self, device: DeviceInfo, address: Address) -> None:
        self._spaces[device.ordinal].free(address)

    def memory_allocate_ordered(self, device: DeviceInfo, queue: Handle, nbytes: int) -> Address:
        address, space = self.memory_allocate(device, nbytes), self._spaces[device.ordinal]
        space.withhold(address)
        self._submit(device, queue, "memory_allocate_ordered", partial(space.hand_out, address))
        return address

    def memory_free_ordered(self, device: DeviceInfo, queue: Handle, address: Address) -> None:
        self._submit(device, queue, "memory_free_ordered", partial(self.memory_free, device, address))

    def memory_info(self, device: DeviceInfo) -> MemoryInfo:
        space = self._spaces[device.ordinal]
        return MemoryInfo(space.limit - space.used, space.limit)

    def pinned_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        if "pinned" in self.settings.without:
            return super().pinned_allocate(device, nbytes)
        self._check(device, "pinned_allocate")
        return self._pinned.allocate(nbytes)

    def pinned_free(self, device: DeviceInfo, address: Address) -> None:
        self._pinned.free(address)

    def copy(
        self, device: DeviceInfo, queue: Handle | None, dst: Address, src: Address, nbytes: int, kind: CopyKind
    ) -> None:
        at_host = {CopyKind.TO_HOST: dst, CopyKind.FROM_HOST: src}.get(kind)
        pinned = None if at_host is None else self._pinned.find(at_host)

        def run() -> None:
            if pinned is not None:
                self._pinned.require(pinned)
            locate = self._locate_anywhere if kind is CopyKind.PEER else partial(self._locate, device)
            target = (dst, None) if kind is CopyKind.TO_HOST else locate(dst, nbytes)
            source = (src, None) if kind is CopyKind.FROM_HOST else locate(src, nbytes)
            ctypes.memmove(target[0], source[0], nbytes)

        self._submit(device, queue, "copy", run)

    def fill(self, device: DeviceInfo, queue: Handle | None, dst: Address, pattern: bytes, nbytes: int) -> None:
        def run() -> None:
            target, owner = self._locate(device, dst, nbytes)
            cell = np.dtype((np.void, len(pattern)))
            view = HostMemory(target, cell, (nbytes // len(pattern),), None, owner=owner).array()
            view[:] = np.frombuffer(pattern, cell)

        self._submit(device, queue, "fill", run)

    def _submit(self, device: DeviceInfo, queue: Handle | None, call: str, run: Callable[[], None]) -> None:
        self._check(device, call)

        def operation() -> None:
            if device.ordinal in self._lost:
                return
            try:
                run()
            except Exception as error:  # nobody is there to catch it: as on hardware, the device is lost
                self.lose(device.ordinal, str(error))

        cast(SimQueue, queue).put(operation)

    def _locate(self, device: DeviceInfo, address: Address, nbytes: int) -> tuple[int, object]:
        return self._spaces[device.ordinal].locate(address, nbytes)

    def _locate_anywhere(self, address: Address, nbytes: int) -> tuple[int, object]:
        for space in self._spaces:
            try:
                return space.locate(address, nbytes)
            except BackendError:  # not this device's: the last one decides below
                continue
        return self._spaces[0].locate(address, nbytes)

    # Functions -----------------------------------------------------------------------------------------------------

    def enqueue(self, device: DeviceInfo, queue: Handle, function: Callable[[], None]) -> None:
        def operation() -> None:
            self._running.device, self._running.views = device, []
            try:
                function()
            except Exception as error:  # against the contract of `enqueue`; the thread must go on all the same
                self.lose(device.ordinal, f"a queued function raised {type(error).__name__}: {error}")
            finally:
                self._running.device, self._running.views = None, None

        cast(SimQueue, queue).put(operation)

    def view(
        self,
        device: DeviceInfo,
        address: Address,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        readonly: bool,
    ) -> np.ndarray[Any, Any]:
        views = self._running.views
        if views is None or self._running.device != device:
            raise UsageError(
                f"memory of {device.name} can be seen only inside a function launched on {device.name}; "
                "use ctx.to_numpy for a copy in the host"
            )
        self._check(device, "view")
        first, last = address, address + dtype.itemsize
        for extent, stride in zip(shape, strides or (), strict=False):
            first += min(0, (extent - 1) * stride)
            last += max(0, (extent - 1) * stride)
        if strides is None:
            last = address + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        start, owner = self._locate(device, first, max(last - first, 0)) if 0 not in shape else (0, None)
        memory = HostMemory(start + address - first, dtype, shape, strides, readonly=readonly, owner=owner)
        views.append(weakref.ref(memory))
        return memory.array()

    def escaped(self, device: DeviceInfo) -> int:
        views = self._running.views or []
        if any(view() is not None for view in views):
            gc.collect()  # a cycle is not an escape
        return sum(view() is not None for view in views)

    # Queues and events ---------------------------------------------------------------------------------------------

    def queue_create(self, device: DeviceInfo, priority: int) -> Handle:
        self._check(device, "queue_create")
        number = next(self._queue_numbers)
        seed = f"{self.settings.seed}/{device.ordinal}/{number}"
        return SimQueue(f"tazza-{device.name}-queue-{number}", seed, self.settings.lateness)

    def queue_destroy(self, device: DeviceInfo, queue: Handle) -> None:
        cast(SimQueue, queue).close()

    def queue_adopt(self, device: DeviceInfo, native: object) -> Handle:
        if not isinstance(native, SimQueue):
            raise ArgumentError.of("native", native, "a SimQueue, as stream.native returns")
        return native

    def queue_native(self, device: DeviceInfo, queue: Handle) -> object:
        return queue

    def queue_wait(self, device: DeviceInfo, queue: Handle, event: Handle) -> None:
        self._check(device, "queue_wait")
        cast(SimQueue, queue).wait(cast(SimEvent, event))

    def event_record(self, device: DeviceInfo, queue: Handle, timing: bool) -> Handle:
        self._check(device, "event_record")
        event = SimEvent()
        cast(SimQueue, queue).put(event.reach)
        return event

    def event_query(self, device: DeviceInfo, event: Handle) -> bool:
        self._check(device, "event_query")
        return cast(SimEvent, event).done.is_set()

    def event_synchronize(self, device: DeviceInfo, event: Handle, timeout: float) -> bool:
        self._check(device, "event_synchronize")
        done = cast(SimEvent, event).done.wait(timeout)
        self._check(device, "event_synchronize")
        return done

    def event_elapsed_ns(self, device: DeviceInfo, start: Handle, end: Handle) -> int:
        return cast(SimEvent, end).time_ns - cast(SimEvent, start).time_ns

    def event_destroy(self, device: DeviceInfo, event: Handle) -> None:
        """Nothing to give back: an event is an ordinary object."""
