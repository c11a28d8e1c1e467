"""Fault injection: a driver whose n-th call of a primitive fails, for tests of what happens then."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, final

from tazza.core import registry
from tazza.core.completion import raise_copy
from tazza.errors import ArgumentError, BackendError
from tazza.spi import Driver
from tazza.testing.simulation import installed

__all__ = ["Fault", "FaultyDriver", "inject", "random_faults"]

_PRIMITIVES = tuple(name for name, member in vars(Driver).items() if callable(member) and not name.startswith("_"))


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` call (from 1) of a primitive of `tazza.spi.Driver` raises a copy of `error` and does nothing else.

    >>> Fault("memory_allocate", 2, MemoryError("full")).call
    'memory_allocate'
    """

    call: str
    nth: int
    error: Exception

    def __post_init__(self) -> None:
        if self.call not in _PRIMITIVES:
            raise ArgumentError.of("call", self.call, f"a primitive of Driver: {', '.join(_PRIMITIVES)}")
        if self.nth < 1:
            raise ArgumentError.of("nth", self.nth, "1 for the first call, or more")


def random_faults(
    seed: int, calls: Iterable[str], *, rate: float, among: int = 1000, error: Exception | None = None
) -> tuple[Fault, ...]:
    """Draw which of the first `among` calls of each primitive fail.

    Args:
        seed: the same seed gives the same faults.
        calls: names of primitives.
        rate: how likely each call is to fail.
        error: what they raise; default is a `BackendError`.

    >>> [(fault.call, fault.nth) for fault in random_faults(1, ["copy"], rate=0.5, among=4)]
    [('copy', 1), ('copy', 4)]
    """
    draws = random.Random(seed)
    return tuple(
        Fault(call, nth, error or BackendError("injected fault", call=call, symbol="FAULT"))
        for call in calls
        for nth in range(1, among + 1)
        if draws.random() < rate
    )


def _forward(name: str) -> Callable[..., Any]:
    def primitive(self: FaultyDriver, *args: Any) -> Any:
        return self.meet(name, *args)

    primitive.__name__ = name
    return primitive


# Made from the list of primitives, so that one added to the waist is forwarded, and can fail, from then on.
_Forwarding: Any = type("_Forwarding", (Driver,), {name: _forward(name) for name in _PRIMITIVES})


@final
class FaultyDriver(_Forwarding):  # type: ignore[misc]  # a class made at run time
    """Any driver, with faults. `rebuild` gives the driver inside without them.

    Args:
        driver: does the work.
        plan: the faults; of several for one call the first counts.

    Attributes:
        fired: the faults that were met, in order.

    >>> from tazza.core import registry
    >>> driver = FaultyDriver(registry.driver("cpu"), [Fault("devices", 2, OSError("unplugged"))])
    >>> len(driver.devices())
    1
    >>> driver.devices()
    Traceback (most recent call last):
        ...
    OSError: unplugged
    """

    def __init__(self, driver: Driver, plan: Iterable[Fault]) -> None:
        self.name = driver.name
        self.fired: list[Fault] = []
        self._driver, self._plan = driver, {(fault.call, fault.nth): fault for fault in reversed(tuple(plan))}
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def meet(self, call: str, *args: Any) -> Any:
        """Do a primitive, or fail where the plan says so."""
        with self._lock:
            self._calls[call] += 1
            fault = self._plan.get((call, self._calls[call]))
            if fault is not None:
                self.fired.append(fault)
        if fault is not None:
            raise_copy(fault.error)  # the plan would keep the frames, and with them what the callers hold
        return getattr(self._driver, call)(*args)

    def __repr__(self) -> str:
        return f"<FaultyDriver of {self.name}: {len(self.fired)} of {len(self._plan)} faults met>"


@contextmanager
def inject(backend: str, plan: Iterable[Fault]) -> Iterator[FaultyDriver]:
    """Put faults into a backend inside ``with``, for contexts made there.

    >>> import tazza as tz
    >>> with inject("cpu", [Fault("memory_allocate", 1, tz.OutOfMemoryError("injected"))]) as driver:
    ...     with tz.open("cpu", pool="direct") as ctx:
    ...         ctx.allocate(64).nbytes, [fault.nth for fault in driver.fired]
    (64, [1])
    """
    with installed(backend, cast(Driver, FaultyDriver(registry.driver(backend), plan))) as driver:
        yield cast(FaultyDriver, driver)
