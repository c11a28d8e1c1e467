"""Supplies: where the bytes of a pool come from, and how a pool must treat them.

Kinds of memory differ in nothing else. Order, relief, limits and accounts are the pool's, once for all of them.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, final

from tazza.core.device import device
from tazza.core.event import Event
from tazza.core.native import NativeRunner
from tazza.core.runtime import runtime_of
from tazza.core.segment import PAGE, Header, Segment, create
from tazza.core.submission import Submission
from tazza.errors import ClosedError, InternalError, OutOfMemoryError, UnsupportedError
from tazza.spi import Handle

__all__ = ["DeviceSupply", "DriverSupply", "PinnedSupply", "SegmentSupply", "Supply", "host_of", "supply_of"]

_ASK_FROM = 1 << 20  # bytes; asking the system how much memory is free takes as long as getting less than this


class Supply(abc.ABC):
    """Memory in large pieces from one place.

    Attributes:
        cached: the pool keeps what comes back for reuse.
        exact: the pool reserves what is asked for and nothing more, as the memory is costly.
        alignment: of every address, in bytes.
        owner: the device runtime in whose memory domain the addresses lie.
        advice: what to do where there is no more of it.
    """

    cached = False
    exact = False
    alignment = PAGE
    owner: Any
    advice = "use smaller batches, drop some of what is held, or another device"

    @abc.abstractmethod
    def reserve(self, nbytes: int, home: Any) -> tuple[int, Event | None]:
        """Return the address of fresh bytes, and what uses on other streams than their home must come after.

        Args:
            nbytes: how many.
            home: the runner of the stream that they are for; None for memory of no stream.

        Raises:
            OutOfMemoryError: there are not so many.
        """

    @abc.abstractmethod
    def release(self, address: int, home: Any) -> None:
        """Give back what `reserve` returned; nothing uses it any more but, where it `orders` that, what `home` has."""

    def orders(self, home: Any) -> bool:
        """Tell whether memory may come back before its home stream's work is over, as that is waited for here."""
        return False

    def has_room(self, nbytes: int) -> bool:
        """Tell whether so many bytes are known to be free; False where only trying tells."""
        return False

    def closed(self, address: int) -> None:  # noqa: B027  most memory has nothing but its bytes
        """Take note that the user has closed what lies at an address that was reserved; arrays may still see it."""


@final
class DeviceSupply(Supply):
    """The device's own memory."""

    def __init__(self, runtime: Any, *, cached: bool) -> None:
        self.owner, self.cached = runtime, cached
        self.alignment = max(64, runtime.capabilities.alignment)

    def reserve(self, nbytes: int, home: Any) -> tuple[int, None]:
        return int(self.owner.driver.memory_allocate(self.owner.info, nbytes)), None

    def release(self, address: int, home: Any) -> None:
        self.owner.driver.memory_free(self.owner.info, address)

    def has_room(self, nbytes: int) -> bool:
        return bool(self.owner.driver.memory_info(self.owner.info).free >= nbytes)


@final
class DriverSupply(Supply):
    """The driver's own pool, which other libraries of the process may use too.

    A stream takes and gives back at once, in its queue's order. What has no queue of its own, as in a task's function
    or a capture, is the device's plain memory, and given back when its users are over, as is what outlives its stream.
    """

    def __init__(self, runtime: Any) -> None:
        if not runtime.capabilities.ordered_memory:
            raise UnsupportedError(f"the driver of {runtime.name} has no pool of its own; use pool='caching'")
        self.owner = runtime
        self.alignment = max(64, runtime.capabilities.alignment)

    def reserve(self, nbytes: int, home: Any) -> tuple[int, Event | None]:
        if isinstance(home, NativeRunner):
            try:
                return home.allocate(nbytes)
            except ClosedError:  # as if it had no stream
                pass
        return int(self.owner.driver.memory_allocate(self.owner.info, nbytes)), None

    def release(self, address: int, home: Any) -> None:
        runtime = self.owner
        if not isinstance(home, NativeRunner):
            runtime.driver.memory_free(runtime.info, address)
            return
        try:
            home.submit(_Free(home, address), bounded=False)
        except ClosedError:  # its queue may be gone; its last event tells when its work is over
            runtime.loans.append(_Outliving(runtime, address, home.mark()))

    def orders(self, home: Any) -> bool:
        return isinstance(home, NativeRunner)

    def has_room(self, nbytes: int) -> bool:
        return bool(self.owner.driver.memory_info(self.owner.info).free >= nbytes)


@final
class _Free(Submission):
    """Gives memory back in its home stream's order."""

    can_be_abandoned = False
    is_silent = True

    __slots__ = ("_address",)

    def __init__(self, home: Any, address: int) -> None:
        super().__init__(home, "free")
        self._address = address

    def run(self) -> None:
        raise InternalError("ordered memory belongs to devices with queues")

    def hand_over(self, queue: Handle) -> None:
        runtime = self.stream.runtime
        runtime.driver.memory_free_ordered(runtime.info, queue, self._address)


@final
class _Outliving:
    """Memory whose stream was closed before it came back: it goes when that stream's work is over."""

    def __init__(self, runtime: Any, address: int, last: Event) -> None:
        self._runtime, self._address, self._last = runtime, address, last

    @property
    def pending(self) -> tuple[Event, ...]:
        """The end of the stream."""
        return (self._last,)

    def end(self) -> bool:
        """Free it if the stream is over; tell whether that is so. Never waits."""
        if not self._last.is_done:
            return False
        self._runtime.driver.memory_free(self._runtime.info, self._address)
        return True


@final
class PinnedSupply(Supply):
    """Memory of the host that the device's queues read and write directly, as it stays where it is."""

    cached = exact = True
    advice = (
        "the system bounds page-locked memory: raise the limit (ulimit -l, LimitMEMLOCK= of a service, "
        "--ulimit memlock of a container), or pin less"
    )

    def __init__(self, runtime: Any) -> None:
        if not runtime.capabilities.pinned:
            raise UnsupportedError(f"{runtime.name} has no page-locked host memory; use ctx.allocate on tz.open('cpu')")
        self._device, self.owner = runtime, host_of(runtime)

    def reserve(self, nbytes: int, home: Any) -> tuple[int, None]:
        return int(self._device.driver.pinned_allocate(self._device.info, nbytes)), None

    def release(self, address: int, home: Any) -> None:
        self._device.driver.pinned_free(self._device.info, address)


@final
class SegmentSupply(Supply):
    """Memory of the host that other processes map by name; each block is a segment of its own.

    Attributes:
        segments: what is mapped, by the address of the mapping.
    """

    exact = True
    advice = "close some of it, or give the machine (a container: --shm-size) more room in /dev/shm"

    def __init__(self, runtime: Any) -> None:
        self.owner = host_of(runtime)
        self.segments: dict[int, Segment] = {}
        self._wanted = _Wanted()

    @contextmanager
    def providing(self, make: Callable[[], Segment]) -> Iterator[None]:
        """Have a `reserve` that happens inside get what `make` makes: a pool asks for bytes, not for a name.

        Nested, the innermost counts: relief of memory runs code of users, who may share memory in it.
        """
        self._wanted.makers.append(make)
        try:
            yield
        finally:
            self._wanted.makers.pop()

    def reserve(self, nbytes: int, home: Any) -> tuple[int, None]:
        if not self._wanted.makers:
            raise InternalError("shared memory was reserved outside of `providing`")
        segment = self._wanted.makers[-1]()
        self.segments[segment.address] = segment
        return segment.address, None

    def create(self, header: Header) -> Segment:
        """Make a segment, unless the machine has not as much memory: it would rather end processes than refuse it."""
        if header.nbytes >= _ASK_FROM:
            free = self.owner.driver.memory_info(self.owner.info).free
            if header.nbytes > free:
                raise OutOfMemoryError(f"{header.nbytes} bytes asked for, {free} free", requested=header.nbytes)
        return create(header)

    def release(self, address: int, home: Any) -> None:
        self.segments.pop(address).close()

    def closed(self, address: int) -> None:
        segment = self.segments.get(address)
        if segment is not None:  # else released by now
            segment.forsake()


class _Wanted(threading.local):
    def __init__(self) -> None:
        self.makers: list[Callable[[], Segment]] = []


def host_of(runtime: Any) -> Any:
    """The runtime in whose domain the host's memory lies: the device's own where the host addresses that."""
    return runtime if runtime.host_addressable else runtime_of(device("cpu"))


def supply_of(runtime: Any, kind: str) -> Supply:
    """The supply of a kind of pool: ``caching``, ``direct``, ``driver``, ``pinned`` or ``shared``."""
    makers = {"driver": DriverSupply, "pinned": PinnedSupply, "shared": SegmentSupply}
    make: Callable[[Any], Supply] = makers.get(kind, partial(DeviceSupply, cached=kind == "caching"))
    return make(runtime)
