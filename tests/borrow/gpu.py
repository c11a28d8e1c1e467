"""A simulated device that goes by the name of a real one, whose queues have the handles that a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import tazza as tz
from tazza.core import registry
from tazza.drivers.sim.driver import SimConfig, SimDriver
from tazza.spi import DeviceInfo, Handle
from tazza.testing.simulation import installed

__all__ = ["pretend"]


class _Pretender(SimDriver):
    def __init__(self, kind: str, native: object) -> None:
        super().__init__(SimConfig(devices=1))
        self.name, self._native = kind, native

    def queue_native(self, device: DeviceInfo, queue: Handle) -> object:
        return self._native


@contextmanager
def pretend(kind: str, native: object) -> Iterator[tz.Context]:
    """Give a context on ``kind:0``, a device that no other test gets to see."""
    driver = _Pretender(kind, native)
    records = registry._table.records
    known = records.pop(kind, None)
    tz.register_backend(kind, lambda: driver)
    try:
        with installed(kind, driver), tz.open(f"{kind}:0") as ctx:
            yield ctx
    finally:
        registry.install_driver(kind, None)
        del records[kind]
        if known is not None:
            records[kind] = known
