"""The contract of a backend: raw, stateless primitives.

Argument checks, caching, statistics, ownership, ordering and error context are written once above this line. A
primitive either succeeds or raises a :class:`tazza.errors.BackendError` and changes nothing. Every method may be called
from any thread. ``device`` is always a :class:`DeviceInfo` that the same driver described.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import numpy as np

from tazza.errors import UnsupportedError
from tazza.spi.values import Address, Box, Capabilities, CopyKind, DeviceInfo, Handle, KernelInfo, MemoryInfo, MemoryUse

__all__ = ["Driver"]


class Driver(abc.ABC):
    """One backend in one process.

    Queue and event primitives are called only where ``Capabilities.queues`` is true; ``queue`` is None in `copy` and
    `fill` where it is false, and they are then complete when they return.
    """

    name: str

    # Identity ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def devices(self) -> tuple[DeviceInfo, ...]:
        """Describe every visible device, in order; may initialise the driver, never a device context."""

    @abc.abstractmethod
    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """Say what the device can do."""

    def part(self, device: DeviceInfo, part: str) -> DeviceInfo:
        """Describe the named part of a device, as in ``cpu:0[2-3]``."""
        raise UnsupportedError(f"{device.name} has no parts; use the whole device")

    def split(self, device: DeviceInfo, count: int) -> tuple[DeviceInfo, ...]:
        """Describe `count` disjoint sub-devices that share the device's memory domain."""
        raise UnsupportedError(f"{device.name} cannot be split; use the whole device")

    def thread_attach(self, device: DeviceInfo) -> None:  # noqa: B027  most need nothing
        """Prepare the calling thread, which tazza owns, for work of the device. The default does nothing."""

    def trim(self, device: DeviceInfo) -> None:  # noqa: B027  most keep nothing
        """Give back what the backend keeps for reuse beside memory, such as events. The default keeps nothing."""

    def poison(self, device: DeviceInfo) -> str | None:
        """Return why the device is lost for this process, or None while it is well."""
        return None

    def rebuild(self) -> Driver:
        """Return a driver on which every device is well again (``rebuild`` only); contexts of this one stay lost."""
        raise UnsupportedError(f"backend {self.name} cannot be used again in this process; start a new one")

    def native(self, device: DeviceInfo) -> object:
        """Return what the backend offers beyond tazza's nouns, as ``ctx.native``."""
        raise UnsupportedError(f"backend {self.name} has nothing of its own beside the context's methods")

    # Memory --------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def memory_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        """Return the address of `nbytes` (> 0) fresh bytes; raise OutOfMemoryError where there is no room."""

    @abc.abstractmethod
    def memory_free(self, device: DeviceInfo, address: Address) -> None:
        """Give back the address of an allocation that no queue uses any more."""

    def memory_allocate_ordered(self, device: DeviceInfo, queue: Handle, nbytes: int) -> Address:
        """Return the address of `nbytes` (> 0) bytes from the driver's own pool, for what comes later in the queue.

        OutOfMemoryError where there is no room (``ordered_memory`` only).
        """
        raise UnsupportedError(f"{device.name} has no pool of the driver's own")

    def memory_free_ordered(self, device: DeviceInfo, queue: Handle, address: Address) -> None:
        """Give such memory back after the work that the queue has; `memory_free` where no queue uses it any more."""
        raise UnsupportedError(f"{device.name} has no pool of the driver's own")

    @abc.abstractmethod
    def memory_info(self, device: DeviceInfo) -> MemoryInfo:
        """Report free and total bytes."""

    def memory_use(self, device: DeviceInfo) -> MemoryUse:
        """Say who uses the memory; the default knows only how much is used."""
        info = self.memory_info(device)
        return MemoryUse(info.total, info.total - info.free)

    def memory_resident(self, device: DeviceInfo, address: Address, nbytes: int) -> int:
        """Count the bytes of a range that the device's memory really holds: on a host, pages that were touched."""
        return nbytes

    def memory_owner(self, device: DeviceInfo, address: Address) -> DeviceInfo:
        """Say whose memory an address is, which another library has allocated; BackendError where nobody's."""
        raise UnsupportedError(f"{device.name} cannot tell whose memory an address is")

    def pinned_allocate(self, device: DeviceInfo, nbytes: int) -> Address:
        """Return the host address of `nbytes` (> 0) bytes that stay where they are (``pinned`` only).

        It is aligned to a page. OutOfMemoryError where the system locks no more; a size that cannot be had is refused
        before anything is locked. Queues copy from and to it like any host memory, at their turn and without staging.
        """
        raise UnsupportedError(f"{device.name} has no page-locked host memory")

    def pinned_free(self, device: DeviceInfo, address: Address) -> None:
        """Give back an address that `pinned_allocate` returned and that no queue uses any more."""
        raise UnsupportedError(f"{device.name} has no page-locked host memory")

    @abc.abstractmethod
    def copy(
        self, device: DeviceInfo, queue: Handle | None, dst: Address, src: Address, nbytes: int, kind: CopyKind
    ) -> None:
        """Copy bytes; overlapping ranges of one domain copy as if through a temporary.

        Host addresses stay valid until the copy is done: the caller holds their owner.
        """

    def copy_boxes(
        self,
        device: DeviceInfo,
        queue: Handle | None,
        box: Box,
        starts: Sequence[tuple[Address, Address]],
        kind: CopyKind,
    ) -> None:
        """Copy equal boxes of rows (``boxes`` only), each to and from a pair of addresses, in any order.

        No row that is written shares a byte with another or with one that is read. Host addresses stay valid until the
        copies are done: the caller holds their owner. Where it fails, some of the boxes may have been copied.
        """
        raise UnsupportedError(f"{device.name} copies contiguous memory only")

    @abc.abstractmethod
    def fill(self, device: DeviceInfo, queue: Handle | None, dst: Address, pattern: bytes, nbytes: int) -> None:
        """Repeat `pattern` over `nbytes`, a multiple of its length."""

    # Functions -----------------------------------------------------------------------------------------------------

    def enqueue(self, device: DeviceInfo, queue: Handle, function: Callable[[], None]) -> None:
        """Run a host function when its turn in the queue comes (``host_functions`` only). It never raises."""
        raise UnsupportedError(f"{device.name} does not run host functions in its queues")

    def view(
        self,
        device: DeviceInfo,
        address: Address,
        dtype: np.dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        readonly: bool,
    ) -> np.ndarray:
        """See device memory as a NumPy array (``host_functions`` only).

        Where the memory is not host-addressable this is allowed only inside a function that `enqueue` is running, and
        the array dies with it: `escaped` tells whether it did.
        """
        raise UnsupportedError(f"{device.name} gives the host no views of its memory; use ctx.to_numpy")

    def escaped(self, device: DeviceInfo) -> int:
        """Count the views made by the enqueued function that is ending in this thread and are still alive."""
        return 0

    # Compiled kernels (where `Capabilities.kernel_language` is not empty) ------------------------------------------

    def program_code(self, device: DeviceInfo, given: object) -> str | bytes:
        """The source or image in what a tool of the backend made; text and bytes are both themselves.

        Raises:
            ArgumentError: it is nothing of the kind.
        """
        raise UnsupportedError(f"{device.name} compiles no kernels; launch a Python function")

    def program_load(self, device: DeviceInfo, code: str | bytes) -> Handle:
        """Compile source, or take an image as it is, and load the program.

        Raises:
            CompileError: the compiler refuses the source.
        """
        raise UnsupportedError(f"{device.name} compiles no kernels; launch a Python function")

    def program_unload(self, device: DeviceInfo, program: Handle) -> None:
        """Give a program back whose kernels no queue runs any more."""
        raise UnsupportedError(f"{device.name} compiles no kernels")

    def kernel_find(self, device: DeviceInfo, program: Handle, name: str) -> KernelInfo:
        """Look a kernel up; ArgumentError with the names that there are where it has none of that name."""
        raise UnsupportedError(f"{device.name} compiles no kernels")

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
        """Put one launch into the queue; each argument has the bytes of its parameter, and is copied at once."""
        raise UnsupportedError(f"{device.name} compiles no kernels")

    # Queues and events ---------------------------------------------------------------------------------------------

    def queue_create(self, device: DeviceInfo, priority: int) -> Handle:
        """Make an in-order queue; larger `priority` is more urgent, clamped to what the device has."""
        raise UnsupportedError(f"{device.name} has no queues")

    def queue_destroy(self, device: DeviceInfo, queue: Handle) -> None:
        """Give the queue back once its work is done; does not wait."""
        raise UnsupportedError(f"{device.name} has no queues")

    def queue_adopt(self, device: DeviceInfo, native: object) -> Handle:
        """Turn a foreign queue into a handle; the foreign owner keeps it alive."""
        raise UnsupportedError(f"{device.name} does not adopt foreign queues; use ctx.new_stream()")

    def queue_native(self, device: DeviceInfo, queue: Handle) -> object:
        """Return the object or integer under which other libraries know the queue."""
        raise UnsupportedError(f"{device.name} has no native queue to show")

    def queue_wait(self, device: DeviceInfo, queue: Handle, event: Handle) -> None:
        """Make later work of the queue wait for the event, without the host."""
        raise UnsupportedError(f"{device.name} has no queues")

    def event_record(self, device: DeviceInfo, queue: Handle, timing: bool) -> Handle:
        """Make an event that is done when everything queued so far is."""
        raise UnsupportedError(f"{device.name} has no queues")

    def event_query(self, device: DeviceInfo, event: Handle) -> bool:
        """Tell whether the event is done; raise BackendError where the device failed before it."""
        raise UnsupportedError(f"{device.name} has no queues")

    def event_synchronize(self, device: DeviceInfo, event: Handle, timeout: float) -> bool:
        """Wait in the host for at most `timeout` seconds; return whether the event is done."""
        raise UnsupportedError(f"{device.name} has no queues")

    def event_elapsed_ns(self, device: DeviceInfo, start: Handle, end: Handle) -> int:
        """Nanoseconds between two done events that were recorded with timing."""
        raise UnsupportedError(f"{device.name} has no queues")

    def event_destroy(self, device: DeviceInfo, event: Handle) -> None:
        """Give the event back; it may still be waited for by queues."""
        raise UnsupportedError(f"{device.name} has no queues")

    # Graphs (where `Capabilities.capture` is true) -----------------------------------------------------------------

    def capture_begin(self, device: DeviceInfo, queue: Handle) -> None:
        """Have an idle queue of the core's own take note of what is put into it, instead of doing it.

        Until the end other queues go on as ever, memory can be allocated, and events recorded in the queue serve
        `queue_wait` of queues that take part, nothing else. Host memory that a copy names is read by each launch.
        """
        raise UnsupportedError(f"{device.name} captures nothing")

    def capture_join(self, device: DeviceInfo, queue: Handle, captured: Handle, event: Handle) -> None:
        """Have another idle queue take part in the capture of the queue `captured`, after an event recorded in it."""
        raise UnsupportedError(f"{device.name} captures nothing")

    def capture_end(self, device: DeviceInfo, queue: Handle) -> Handle:
        """End a capture and return its graph, ready to launch; on an error nothing of it is left.

        Raises:
            UsageError: a queue that took part is not waited for by the first one.
        """
        raise UnsupportedError(f"{device.name} captures nothing")

    def capture_abort(self, device: DeviceInfo, queue: Handle) -> None:
        """End a capture, whatever state it is in, and keep nothing of it."""
        raise UnsupportedError(f"{device.name} captures nothing")

    def graph_launch(self, device: DeviceInfo, queue: Handle, graph: Handle) -> None:
        """Put all of a graph into a queue as one piece of work, after earlier launches of the same graph."""
        raise UnsupportedError(f"{device.name} has no graphs")

    def graph_destroy(self, device: DeviceInfo, graph: Handle) -> None:
        """Give a graph back that no queue runs any more."""
        raise UnsupportedError(f"{device.name} has no graphs")
