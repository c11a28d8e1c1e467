"""What the tests of the battery stand on: the device under test, what a test needs, and the raw driver with a queue."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, final, get_type_hints

import numpy as np
import pytest

import tazza as tz
from tazza.spi import Address, Capabilities, CopyKind, DeviceInfo, Driver, Handle, Level
from tazza.util.hostmemory import address_of

__all__ = ["TIMEOUT", "Array", "Raw", "Target", "installed_arrays", "needs", "note_outcome", "skip_undeclared"]

Array = np.ndarray[Any, np.dtype[Any]]

TIMEOUT = 20.0
"""Seconds that any wait of the battery may take; much more than a working backend needs."""

_LEVELS = tuple(Level)
_ABILITIES = frozenset(name for name, kind in get_type_hints(Capabilities).items() if kind is bool)


def needs(*declared: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Say what a test needs declared.

    Args:
        *declared: names of abilities in `Capabilities`, of dtypes, ``"second device"``, ``"kernel language"`` or
            ``"strided memory"``; ``"no timing"`` is the opposite of ``"timing"``.
    """

    def mark(test: Callable[..., None]) -> Callable[..., None]:
        test.__tazza_needs__ = declared  # type: ignore[attr-defined]
        return test

    return mark


@final
@dataclass(frozen=True)
class Target:
    """The device under test.

    Attributes:
        device: what the tests run on.
        seed: seed of contexts and inputs.
        arrays: the array library of contexts, or an empty string for the device's default.
        outcomes: the tests that ran so far, by name, each with the reason for which it was skipped, or None.
    """

    device: tz.Device
    seed: int = 0
    arrays: str = ""
    outcomes: dict[str, tuple[Callable[..., object], str | None]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.device.name} with {self.arrays}" if self.arrays else self.device.name

    def open(self, **options: Any) -> AbstractContextManager[tz.Context]:
        """Open a context on the device."""
        return cast(
            AbstractContextManager[tz.Context],
            tz.open(self.device, **{"seed": self.seed, "arrays": self.arrays or None} | options),
        )

    def numbers(self, count: int, dtype: str = "float32") -> Array:
        """Numbers to work on: small integers, exact in every dtype, different for each seed."""
        return np.random.default_rng(self.seed).integers(0, 100, count).astype(dtype)

    def missing(self, test: Callable[..., object]) -> str | None:
        """What a test needs that the device does not declare, or None."""
        level = sys.modules[test.__module__].LEVEL
        if _LEVELS.index(level) > _LEVELS.index(self.capabilities.level):
            return f"{self} declares the level {self.capabilities.level.value}, this is {level.value}"
        for need in getattr(test, "__tazza_needs__", ()):
            name = need.removeprefix("no ")
            if self._declares(name) == (name != need):
                return f"{self} declares {'no ' if name == need else ''}{name}"
        return None

    def _declares(self, name: str) -> bool:
        if name == "second device":
            return len(self.driver.devices()) > 1
        if name == "kernel language":
            return bool(self.capabilities.kernel_language)
        if name == "strided memory":  # moved by the device, or by functions in its queues
            return self.capabilities.boxes or self.capabilities.host_functions
        if name in _ABILITIES:
            return bool(getattr(self.capabilities, name))
        return np.dtype(name).name in self.capabilities.dtypes

    @property
    def driver(self) -> Driver:
        """The driver, where tests go below the waist."""
        return self.device.driver

    @property
    def info(self) -> DeviceInfo:
        """The device as the driver describes it."""
        return self.device.info

    @property
    def capabilities(self) -> Capabilities:
        """What the device declares."""
        return self.device.capabilities

    @property
    def second(self) -> DeviceInfo:
        """Another device of the backend."""
        return next(info for info in self.driver.devices() if info.ordinal != self.info.ordinal)


@final
class Raw:
    """The primitives of a driver on one device, with a queue where there are queues; gives back what it took.

    Args:
        driver: under test.
        info: the device.
    """

    def __init__(self, driver: Driver, info: DeviceInfo, closing: ExitStack) -> None:
        self.driver, self.info, self._closing = driver, info, closing
        self.queue = self.new_queue() if driver.capabilities(info).queues else None

    @classmethod
    @contextmanager
    def on(cls, driver: Driver, info: DeviceInfo) -> Iterator[Raw]:
        """Open the device inside ``with``."""
        with ExitStack() as closing:
            raw = cls(driver, info, closing)
            closing.callback(raw.finish)
            yield raw

    def new_queue(self) -> Handle:
        """Make another queue."""
        queue = self.driver.queue_create(self.info, 0)
        self._closing.callback(self.driver.queue_destroy, self.info, queue)
        return queue

    def allocate(self, nbytes: int) -> Address:
        """Take memory."""
        address = self.driver.memory_allocate(self.info, nbytes)
        self._closing.callback(self.driver.memory_free, self.info, address)
        return address

    def copy(self, dst: Address, src: Address, nbytes: int, kind: CopyKind = CopyKind.WITHIN) -> None:
        """Copy in the queue's order; a device in the host's domain has no other kind than WITHIN."""
        own = self.info.memory_domain != "host"
        self.driver.copy(self.info, self.queue, dst, src, nbytes, kind if own else CopyKind.WITHIN)

    def fill(self, dst: Address, pattern: bytes, nbytes: int) -> None:
        """Fill in the queue's order."""
        self.driver.fill(self.info, self.queue, dst, pattern, nbytes)

    def store(self, data: bytes) -> Address:
        """Take memory that holds `data`."""
        host = np.frombuffer(data, np.uint8)
        address = self.allocate(host.nbytes)
        self.copy(address, address_of(host), host.nbytes, CopyKind.FROM_HOST)
        self.finish()
        return address

    def load(self, address: Address, nbytes: int) -> bytes:
        """Read memory after everything queued."""
        host = np.zeros(nbytes, np.uint8)
        self.copy(address_of(host), address, nbytes, CopyKind.TO_HOST)
        self.finish()
        return host.tobytes()

    def finish(self) -> None:
        """Wait for everything queued."""
        if self.queue is not None:
            event = self.driver.event_record(self.info, self.queue, False)
            assert self.driver.event_synchronize(self.info, event, TIMEOUT)
            self.driver.event_destroy(self.info, event)


def installed_arrays(device: tz.Device) -> list[str]:
    """The device's array libraries that are installed here, its default first."""
    return [name for name in device.capabilities.array_libraries if importlib.util.find_spec(name) is not None]


def skip_undeclared(request: pytest.FixtureRequest, target: Target) -> None:
    """Skip the running test where the device does not declare what it needs."""
    reason = target.missing(request.function)
    if reason is not None:
        pytest.skip(reason)


def note_outcome(item: pytest.Item, report: pytest.TestReport) -> pytest.TestReport:
    """Keep in the target whether a test of the battery was skipped, and why; returns the report.

    A skip for any other reason than what the test needs and the device does not declare becomes a failure.
    """
    target = getattr(item, "funcargs", {}).get("whole_target")
    if isinstance(item, pytest.Function) and isinstance(target, Target):
        reason = None
        if isinstance(report.longrepr, tuple):  # file, line and reason of a skip
            reason = report.longrepr[2].removeprefix("Skipped: ")
            if reason != target.missing(item.function):
                report.outcome = "failed"
                report.longrepr = f"skipped although nothing that it needs is undeclared: {reason}"
        known = target.outcomes.get(item.originalname, (item.function, None))[1]
        target.outcomes[item.originalname] = item.function, reason or known
    return report
