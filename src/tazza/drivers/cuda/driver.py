"""The CUDA driver as a backend."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

from tazza.drivers.cuda.graphs import CapturedGraph, Captures
from tazza.drivers.cuda.loading import is_emulated, load, restore
from tazza.drivers.cuda.moving import copy_boxes, copy_within, fill
from tazza.drivers.cuda.primary import Primary
from tazza.drivers.cuda.programs import code_of, find_kernel, launch, load_program
from tazza.drivers.cuda.queues import NativeEvent, NativeQueue, integer_of
from tazza.drivers.cuda.status import failure, invoke
from tazza.errors import ArgumentError, BackendError, UnsupportedError
from tazza.spi import Address, Box, Capabilities, CopyKind, DeviceInfo, Driver, Handle, KernelInfo, Level, MemoryInfo

__all__ = ["CudaDriver", "CudaNative", "create_driver"]

_NON_BLOCKING, _PORTABLE = 0x1, 0x1  # of streams, and of page-locked memory
_POINTER_KIND, _POINTER_DEVICE = 2, 9  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE and _DEVICE_ORDINAL
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE
_COMPUTE = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MEMORY_POOLS = 115  # CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
_SPIN, _SHORTEST, _LONGEST = 20, 20e-6, 1e-3  # looks without a pause, then pauses in seconds


def create_driver() -> CudaDriver:
    """Initialise the driver; makes no context.

    Raises:
        BackendUnavailableError: bindings or driver are missing, or this process cannot use them.
    """
    return CudaDriver(load(), emulated=is_emulated())


class CudaNative(NamedTuple):
    """What other CUDA libraries know a device by.

    Attributes:
        context: the primary context, a CUcontext as an integer; every library of the process shares it.
        ordinal: the driver's number of the device, after ``CUDA_VISIBLE_DEVICES``.
        uuid: the device, in any process.
    """

    context: int
    ordinal: int
    uuid: str


class CudaDriver(Driver):
    """The devices that the driver shows this process.

    Args:
        api: the module `cuda.bindings.driver`, initialised.
        emulated: no hardware is behind it.
    """

    name = "cuda"

    def __init__(self, api: Any, *, emulated: bool) -> None:
        self._api, self._emulated = api, emulated
        count = self._ask("cuDeviceGetCount")
        primaries = [Primary(api, *self._describe(ordinal)) for ordinal in range(count)]
        self._primaries = {primary.info.uuid: primary for primary in primaries}
        self._captures = Captures()

    def _ask(self, call: str, *args: Any) -> Any:
        """Call the driver about a device, which needs no context."""
        status, answer = invoke(self._api, call, *args)
        if status:
            raise failure(self._api, call, status, 0)
        return answer

    def _describe(self, ordinal: int) -> tuple[Any, DeviceInfo]:
        native = self._ask("cuDeviceGet", ordinal)
        number = f"GPU-{uuid.UUID(bytes=bytes(self._ask('cuDeviceGetUuid', native).bytes))}"
        attributes = map(self._api.CUdevice_attribute, (*_COMPUTE, _MEMORY_POOLS))
        major, minor, pools = (self._ask("cuDeviceGetAttribute", attribute, native) for attribute in attributes)
        info = DeviceInfo(
            backend=self.name,
            ordinal=ordinal,
            title=self._ask("cuDeviceGetName", 128, native).split(b"\0")[0].decode().strip(),
            uuid=number,
            memory_domain=f"cuda:{number}",
            memory_total=self._ask("cuDeviceTotalMem", native),
            emulated=self._emulated,
            extra=MappingProxyType({"compute": f"{major}.{minor}", "memory_pools": bool(pools)}),
        )
        return native, info

    def _of(self, device: DeviceInfo) -> Primary:
        return self._primaries[device.uuid]

    # Identity ------------------------------------------------------------------------------------------------------

    def devices(self) -> tuple[DeviceInfo, ...]:
        return tuple(primary.info for primary in self._primaries.values())

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return Capabilities(
            level=Level.KERNELS,
            queues=True,
            host_addressable=False,
            host_functions=False,
            cross_device_wait=True,
            peer_copy=True,  # the driver stages by itself where two devices do not reach each other
            timing=True,
            rebuild=self._emulated,
            pinned=True,
            ordered_memory=bool(device.extra["memory_pools"]),
            boxes=True,
            alignment=256,
            dtypes=frozenset(_DTYPES),
            array_libraries=("buffers",),
            kernel_language="CUDA C++",
            exports="cuda",
            capture=True,
        )

    def poison(self, device: DeviceInfo) -> str | None:
        return self._primaries[device.uuid].lost

    def trim(self, device: DeviceInfo) -> None:
        primary = self._of(device)
        primary.trim()
        if primary.is_retained and device.extra["memory_pools"]:
            primary.call("cuMemPoolTrimTo", self._ask("cuDeviceGetDefaultMemPool", primary.native), 0)

    def rebuild(self) -> Driver:
        if not self._emulated:
            raise UnsupportedError(
                "a CUDA context cannot be used again after such a fault; start a new process from ctx.spec and the "
                "last saved state"
            )
        for primary in self._primaries.values():
            if primary.lost is not None:
                restore(primary.info.ordinal)
        return CudaDriver(self._api, emulated=True)

    def current(self, device: DeviceInfo) -> Primary:
        """``with driver.current(device):`` makes the primary context the thread's, for calls of other libraries."""
        return self._of(device)

    def native(self, device: DeviceInfo) -> CudaNative:
        return CudaNative(int(self._of(device).context), device.ordinal, device.uuid)

    def attributes(self, device: DeviceInfo, *names: str) -> list[int]:
        """What the driver says of a device, by the ends of names of CUdevice_attribute; makes no context."""
        native, known = self._of(device).native, self._api.CUdevice_attribute
        attributes = [getattr(known, f"CU_DEVICE_ATTRIBUTE_{name}") for name in names]
        return [int(self._ask("cuDeviceGetAttribute", attribute, native)) for attribute in attributes]

    def version(self) -> int:
        """Of the CUDA that the driver serves: 13000 is 13.0."""
        return int(self._ask("cuDriverGetVersion"))

    # Memory --------------------------------------------------------------------------------------------------------

    def memory_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        return int(self._of(device).call("cuMemAlloc", nbytes, requested=nbytes))

    def memory_free(self, device: DeviceInfo, address: Address) -> None:
        self._of(device).give_back("cuMemFree", address)

    def memory_allocate_ordered(self, device: DeviceInfo, queue: Handle, nbytes: int) -> Address:
        """Take memory from the device's default pool, which other libraries use too, with whatever they set for it.

        https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MALLOC__ASYNC.html
        """
        return int(self._of(device).call("cuMemAllocAsync", nbytes, queue, requested=nbytes))

    def memory_free_ordered(self, device: DeviceInfo, queue: Handle, address: Address) -> None:
        self._of(device).free_in_order(address, queue)

    def memory_info(self, device: DeviceInfo) -> MemoryInfo:
        return MemoryInfo(*self._of(device).call("cuMemGetInfo"))

    def memory_owner(self, device: DeviceInfo, address: Address) -> DeviceInfo:
        return self._owner(self._of(device), address).info

    def pinned_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        return int(self._of(device).call("cuMemHostAlloc", nbytes, _PORTABLE, requested=nbytes))

    def pinned_free(self, device: DeviceInfo, address: Address) -> None:
        self._of(device).give_back("cuMemFreeHost", address)

    def copy(
        self, device: DeviceInfo, queue: Handle | None, dst: Address, src: Address, nbytes: int, kind: CopyKind
    ) -> None:
        primary = self._of(device)
        if kind is CopyKind.WITHIN:
            if not (self._captures and self._captures.copy_within(primary, queue, dst, src, nbytes)):
                copy_within(primary, queue, dst, src, nbytes)
        elif kind is CopyKind.PEER:
            self._copy_to_peer(primary, queue, dst, src, nbytes)
        else:
            call = "cuMemcpyHtoDAsync" if kind is CopyKind.FROM_HOST else "cuMemcpyDtoHAsync"
            primary.call(call, dst, src, nbytes, queue)

    def _copy_to_peer(self, primary: Primary, queue: Any, dst: Address, src: Address, nbytes: int) -> None:
        """Copy directly where the devices reach each other; the same call stages through the host where not.

        https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html (cuMemcpyPeerAsync)
        """
        there, here = self._contexts(primary, dst, src)
        primary.call("cuMemcpyPeerAsync", dst, there, src, here, nbytes, queue)

    def _contexts(self, primary: Primary, *addresses: Address) -> tuple[Any, ...]:
        """Whose memory addresses are, which the device then reaches directly where it can."""
        owners = [self._owner(primary, address) for address in addresses]
        for other in owners:
            primary.reach(other)
        return tuple(owner.context for owner in owners)

    def copy_boxes(
        self,
        device: DeviceInfo,
        queue: Handle | None,
        box: Box,
        starts: Sequence[tuple[Address, Address]],
        kind: CopyKind,
    ) -> None:
        primary = self._of(device)
        contexts = self._contexts(primary, *starts[0]) if kind is CopyKind.PEER else None
        copy_boxes(primary, queue, box, starts, kind, contexts)

    def _owner(self, primary: Primary, address: Address) -> Primary:
        # Not by the context: memory of the driver's own pools belongs to none.
        kind, ordinal = (
            int(primary.call("cuPointerGetAttribute", self._api.CUpointer_attribute(attribute), address))
            for attribute in (_POINTER_KIND, _POINTER_DEVICE)
        )
        found = [one for one in self._primaries.values() if one.info.ordinal == ordinal]
        if kind != _DEVICE_MEMORY or not found:
            raise BackendError(f"{address:#x} is no device's memory", backend=self.name, call="cuPointerGetAttribute")
        return found[0]

    def fill(self, device: DeviceInfo, queue: Handle | None, dst: Address, pattern: bytes, nbytes: int) -> None:
        primary = self._of(device)
        if not (self._captures and self._captures.fill(primary, queue, dst, pattern, nbytes)):
            fill(primary, queue, dst, pattern, nbytes)

    # Compiled kernels ----------------------------------------------------------------------------------------------

    def program_code(self, device: DeviceInfo, given: object) -> str | bytes:
        return code_of(given)

    def program_load(self, device: DeviceInfo, code: str | bytes) -> Handle:
        return cast(Handle, load_program(self._of(device), code))

    def program_unload(self, device: DeviceInfo, program: Handle) -> None:
        self._of(device).give_back("cuLibraryUnload", program)

    def kernel_find(self, device: DeviceInfo, program: Handle, name: str) -> KernelInfo:
        return find_kernel(self._of(device), program, name)

    def kernel_launch(
        self,
        device: DeviceInfo,
        queue: Handle,
        kernel: Handle,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        arguments: tuple[bytes, ...],
    ) -> None:
        launch(self._of(device), queue, kernel, (*grid, *block, shared_bytes), arguments)

    # Queues and events ---------------------------------------------------------------------------------------------

    def queue_create(self, device: DeviceInfo, priority: int) -> Handle:
        primary = self._of(device)
        least, greatest = primary.call("cuCtxGetStreamPriorityRange")  # greatest is the smaller number
        urgency = max(greatest, min(least, -priority))
        return cast(Handle, primary.call("cuStreamCreateWithPriority", _NON_BLOCKING, urgency))

    def queue_destroy(self, device: DeviceInfo, queue: Handle) -> None:
        self._of(device).give_back("cuStreamDestroy", queue)  # returns at once; the driver frees it after its work

    def queue_adopt(self, device: DeviceInfo, native: object) -> Handle:
        primary, address = self._of(device), integer_of(native)
        stream = self._api.CUstream(address)
        owner = primary.call("cuStreamGetCtx", stream)
        owner = owner[0] if isinstance(owner, tuple) else owner  # a second one is of a green context
        if int(owner) != int(primary.context):
            raise ArgumentError.of("native", native, f"a stream of {device.name}'s primary context")
        return cast(Handle, stream)

    def queue_native(self, device: DeviceInfo, queue: Handle) -> object:
        return NativeQueue(int(cast(Any, queue)))

    def queue_wait(self, device: DeviceInfo, queue: Handle, event: Handle) -> None:
        self._primaries[device.uuid].wait(queue, event)

    def event_record(self, device: DeviceInfo, queue: Handle, timing: bool) -> Handle:
        return self._primaries[device.uuid].record(queue, timing)

    def event_query(self, device: DeviceInfo, event: Handle) -> bool:
        return self._primaries[device.uuid].is_over(event)

    def event_synchronize(self, device: DeviceInfo, event: Handle, timeout: float) -> bool:
        # cuEventSynchronize has no timeout: looking with growing pauses is the wait that always ends.
        deadline, pause, looks = time.monotonic() + timeout, _SHORTEST, 0
        while not self.event_query(device, event):
            looks += 1
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if looks > _SPIN:
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST)
        return True

    def event_elapsed_ns(self, device: DeviceInfo, start: Handle, end: Handle) -> int:
        milliseconds = float(self._of(device).call("cuEventElapsedTime", start, end))
        return max(0, round(milliseconds * 1e6))

    def event_destroy(self, device: DeviceInfo, event: Handle) -> None:
        recorded = cast(NativeEvent, event)
        self._primaries[device.uuid].events[recorded.timing].append(recorded)  # as `Primary.give_event` does

    # Graphs --------------------------------------------------------------------------------------------------------

    def capture_begin(self, device: DeviceInfo, queue: Handle) -> None:
        self._captures.begin(self._of(device), queue)

    def capture_join(self, device: DeviceInfo, queue: Handle, captured: Handle, event: Handle) -> None:
        self.queue_wait(device, queue, event)
        self._captures.join(queue, captured)

    def capture_end(self, device: DeviceInfo, queue: Handle) -> Handle:
        return self._captures.end(self._of(device), queue)

    def capture_abort(self, device: DeviceInfo, queue: Handle) -> None:
        self._captures.abort(self._of(device), queue)

    def graph_launch(self, device: DeviceInfo, queue: Handle, graph: Handle) -> None:
        cast(CapturedGraph, graph).launch(self._of(device), queue)

    def graph_destroy(self, device: DeviceInfo, graph: Handle) -> None:
        cast(CapturedGraph, graph).destroy(self._of(device))


_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
