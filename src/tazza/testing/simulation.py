"""Simulated devices for one block of code, whatever the environment says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

from tazza.core import registry
from tazza.core.device import Device, devices
from tazza.core.runtime import forget_runtimes
from tazza.errors import ArgumentError
from tazza.spi import Driver
from tazza.util.text import parse_nbytes

__all__ = ["Simulation", "installed", "simulate"]


@final
class Simulation:
    """The simulated devices of one `simulate` block.

    Attributes:
        devices: the devices, ``sim:0`` first.
        driver: the driver behind them.

    >>> with simulate(devices=3) as sim:
    ...     [device.name for device in sim.devices]
    ['sim:0', 'sim:1', 'sim:2']
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.devices: tuple[Device, ...] = devices("sim")

    def lose(self, ordinal: int, reason: str) -> None:
        """Break a device for good, as a sticky fault does on hardware; the first reason stays.

        Raises:
            ArgumentError: there is no such device.
        """
        if not 0 <= ordinal < len(self.devices):
            raise ArgumentError.of("ordinal", ordinal, f"an index below {len(self.devices)}")
        self.driver.lose(ordinal, reason)

    def __repr__(self) -> str:
        return f"<Simulation of {len(self.devices)} device(s), seed {self.driver.settings.seed}>"


@contextmanager
def simulate(
    devices: int = 2,
    memory: int | str = "256MiB",
    seed: int = 0,
    lateness: float = 100e-6,
    without: Iterable[str] = (),
) -> Iterator[Simulation]:
    """Replace the simulated devices by fresh ones, inside ``with`` or a decorated function.

    Contexts made before keep the devices they have; close those made inside before the end of the block.

    Args:
        devices: how many there are.
        memory: bytes of each, or a text such as ``"64MiB"``.
        seed: seed of the lateness of their queues.
        lateness: longest delay of one operation in seconds; 0 runs everything as soon as possible.
        without: abilities that they do not have, of cross_device_wait, peer_copy, timing, float64 and pinned.

    Raises:
        ArgumentError: no devices, or an ability that cannot be switched off.

    >>> import tazza as tz
    >>> with simulate(devices=1, memory="1MiB", without={"float64"}), tz.open("sim:0") as ctx:
    ...     ctx.device.memory_total, "float64" in ctx.device.capabilities.dtypes
    (1048576, False)
    """
    settings = registry.load("sim.settings")(
        devices=devices,
        memory=parse_nbytes(memory, argument="memory"),
        seed=seed,
        lateness=lateness,
        without=frozenset(without),
    )
    with installed("sim", registry.load("sim.driver")(settings)) as driver:
        yield Simulation(driver)


@contextmanager
def installed(backend: str, driver: Driver) -> Iterator[Driver]:
    """Make `driver` the one of a backend inside ``with``, and restore the one that was there."""
    before = registry.driver(backend)
    registry.install_driver(backend, driver)
    try:
        yield driver
    finally:
        registry.install_driver(backend, before)
        forget_runtimes(backend, driver)
