"""Devices: frozen values that create nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import final

from tazza import config
from tazza.core import registry
from tazza.errors import ArgumentError, BackendUnavailableError
from tazza.hot import HOOKED
from tazza.spi import Capabilities, DeviceInfo, Driver

__all__ = ["Device", "device", "devices"]

_NAME = re.compile(r"([A-Za-z_]\w*)(?::(\d+))?(?:\[([^\]]*)\])?")


@final
class Device:
    """One device, or a part of one: identity and abilities, no state.

    Equal devices have equal names. A device travels between processes by its name.

    >>> import tazza as tz
    >>> cpu = tz.device("cpu")
    >>> cpu.name, cpu.kind, cpu.capabilities.host_addressable
    ('cpu:0', 'cpu', True)
    """

    __slots__ = ("_capabilities", "_driver", "_info")

    def __init__(self, driver: Driver, info: DeviceInfo) -> None:
        self._driver, self._info = driver, info
        able = driver.capabilities(info)
        if not HOOKED:  # an uncompiled build cannot see what NumPy allocates
            able = able._replace(array_allocations="outside")
        self._capabilities = able

    def split(self, count: int) -> tuple[Device, ...]:
        """Divide the device into `count` disjoint sub-devices in the same memory domain.

        Worker streams of a CPU sub-device run on its processors only.

        Raises:
            ArgumentError: `count` is not between 1 and the number of processors.
            UnsupportedError: this kind of device cannot be divided.
        """
        cores = len(self._info.cores)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1 or (cores and count > cores):
            raise ArgumentError.of("count", count, f"an integer from 1 to {cores}" if cores else "a positive integer")
        return tuple(Device(self._driver, info) for info in self._driver.split(self._info, count))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self._info.name == other._info.name

    def __hash__(self) -> int:
        return hash(self._info.name)

    def __repr__(self) -> str:
        return f"tazza.device({self.name!r})"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], Device], tuple[str]]:
        return device, (self.name,)

    @property
    def name(self) -> str:
        """Backend, ordinal and part, as `device` reads them."""
        return self._info.name

    @property
    def kind(self) -> str:
        """The backend's name."""
        return self._info.backend

    @property
    def ordinal(self) -> int:
        """Index among the backend's visible devices."""
        return self._info.ordinal

    @property
    def title(self) -> str:
        """The vendor's name of the device."""
        return self._info.title

    @property
    def uuid(self) -> str:
        """Identity that is stable across processes."""
        return self._info.uuid

    @property
    def memory_domain(self) -> str:
        """Devices of one domain see the same addresses."""
        return self._info.memory_domain

    @property
    def memory_total(self) -> int:
        """Bytes of memory, as the device or its control group reports them."""
        return self._info.memory_total

    @property
    def cores(self) -> tuple[int, ...]:
        """Host processors on which the device's threads run; empty for devices that are not processors."""
        return self._info.cores

    @property
    def capabilities(self) -> Capabilities:
        """What the device can do."""
        return self._capabilities

    @property
    def info(self) -> DeviceInfo:
        """The backend's own description."""
        return self._info

    @property
    def driver(self) -> Driver:
        """The backend's driver in this process."""
        return self._driver


def device(name: str | Device) -> Device:
    """Find a device by name: ``"cpu"``, ``"sim:1"``, ``"cpu:0[0-3]"``, or ``"auto"``.

    ``"auto"`` is ``TAZZA_DEVICE``, else the best usable backend's first device; never a simulated or an emulated one.

    Raises:
        ArgumentError: no such backend or no such index; says which there are.
        BackendUnavailableError: the backend cannot be used here; says why and what to install.
    """
    if isinstance(name, Device):
        return name
    if not isinstance(name, str):
        raise ArgumentError.of("device", name, "a name like 'cpu:0' or a Device")
    if name == "auto":
        chosen = config.device()
        return _automatic() if chosen in (None, "auto") else device(str(chosen))
    match = _NAME.fullmatch(name)
    if match is None:
        raise ArgumentError.of("device", name, "a name like 'cpu', 'sim:1' or 'cpu:0[0-3]'")
    driver = registry.driver(match[1])
    found = driver.devices()
    ordinal = int(match[2] or 0)
    if ordinal >= len(found):
        raise ArgumentError.of("device", name, f"an index below {len(found)}: {', '.join(i.name for i in found)}")
    info = found[ordinal]
    return Device(driver, driver.part(info, match[3]) if match[3] is not None else info)


def devices(kind: str | None = None) -> tuple[Device, ...]:
    """List the devices of one backend, or of every usable backend.

    Raises:
        ArgumentError, BackendUnavailableError: `kind` was given and is unknown or not usable.
    """
    if kind is not None:
        driver = registry.driver(kind)
        return tuple(Device(driver, info) for info in driver.devices())
    found: list[Device] = []
    for status in registry.backends():
        if status.usable:
            try:
                found.extend(devices(status.name))
            except BackendUnavailableError:  # kept by the registry: `backends()` shows the reason
                continue
    return tuple(found)


def _automatic() -> Device:
    for name in registry.names_by_priority():
        try:
            found = [one for one in devices(name) if not one.info.emulated]
        except BackendUnavailableError:  # kept by the registry; the next candidate is tried
            continue
        if found:
            return found[0]
    raise BackendUnavailableError("auto", "no backend has a device", "see `tazza devices`")
