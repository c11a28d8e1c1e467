"""Supplies: where the bytes of a pool come from, and how a pool must treat them.

Three kinds of memory differ in nothing else. Order, relief, limits and accounts are the pool's, once for all of them.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

from tazza.core.device import device
from tazza.core.runtime import runtime_of
from tazza.core.segment import PAGE, Header, Segment, create
from tazza.errors import InternalError, OutOfMemoryError, UnsupportedError

__all__ = ["DeviceSupply", "PinnedSupply", "SegmentSupply", "Supply", "host_of", "supply_of"]

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
    def reserve(self, nbytes: int) -> int:
        """Return the address of fresh bytes, or raise OutOfMemoryError."""

    @abc.abstractmethod
    def release(self, address: int) -> None:
        """Give back what `reserve` returned; nothing uses it any more."""

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

    def reserve(self, nbytes: int) -> int:
        return int(self.owner.driver.memory_allocate(self.owner.info, nbytes))

    def release(self, address: int) -> None:
        self.owner.driver.memory_free(self.owner.info, address)

    def has_room(self, nbytes: int) -> bool:
        return bool(self.owner.driver.memory_info(self.owner.info).free >= nbytes)


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

    def reserve(self, nbytes: int) -> int:
        return int(self._device.driver.pinned_allocate(self._device.info, nbytes))

    def release(self, address: int) -> None:
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

    def reserve(self, nbytes: int) -> int:
        if not self._wanted.makers:
            raise InternalError("shared memory was reserved outside of `providing`")
        segment = self._wanted.makers[-1]()
        self.segments[segment.address] = segment
        return segment.address

    def create(self, header: Header) -> Segment:
        """Make a segment, unless the machine has not as much memory: it would rather end processes than refuse it."""
        if header.nbytes >= _ASK_FROM:
            free = self.owner.driver.memory_info(self.owner.info).free
            if header.nbytes > free:
                raise OutOfMemoryError(f"{header.nbytes} bytes asked for, {free} free", requested=header.nbytes)
        return create(header)

    def release(self, address: int) -> None:
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
    """The supply of a kind of pool: ``caching``, ``direct``, ``pinned`` or ``shared``."""
    if kind == "pinned":
        return PinnedSupply(runtime)
    return SegmentSupply(runtime) if kind == "shared" else DeviceSupply(runtime, cached=kind == "caching")
