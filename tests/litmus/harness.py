"""What litmus programs run in: worlds, seeds, jitter, and the check of the outcome.

A litmus program is a few lines with a list of outcomes that the execution model allows. Any other outcome, under any
seed, in any world, is a bug of the model or of a driver. `litmus` makes a test of a program for every world; the table
in ``docs/litmus.md`` is made of the programs too (``python -m tests.litmus.table``).
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import pytest

import tazza as tz
from tazza.testing import Simulation, jitter, simulate

__all__ = [
    "CPU",
    "EVERYWHERE",
    "SEVERAL",
    "SIM",
    "TIMEOUT",
    "Program",
    "World",
    "add",
    "attempt",
    "fail",
    "full",
    "get",
    "litmus",
    "plus",
    "programs",
    "put",
    "until",
]

TIMEOUT = 20.0
"""Seconds that any wait may take; a program that needs them has lost a wake-up."""

_LATENESS = 30e-6
_FULL = os.environ.get("TAZZA_FULL") == "1"


@final
@dataclass(frozen=True)
class Setting:
    """A world that programs run in: devices by name, simulated or not, under how many seeds, with which pools."""

    name: str
    devices: int
    seeds: int
    pool: str = "caching"

    def __str__(self) -> str:
        return self.name

    @property
    def simulated(self) -> bool:
        """Whether the devices are simulated."""
        return self.name.startswith("sim")


_CPU, _PARTS = Setting("cpu", 1, 20), Setting("cpu-parts", 2, 20)
_SIMS = (
    *(Setting("sim-1", 1, 20), Setting("sim-2", 2, 20), Setting("sim-8", 8, 20)),
    Setting("sim-2-pool-of-the-driver", 2, 20, "driver"),
)

CPU = (_CPU, _PARTS)
SIM = _SIMS
SEVERAL = _SIMS[1:]
EVERYWHERE = (*CPU, *SIM)


@final
class World:
    """The devices of one run of a program, with contexts that the harness closes.

    Attributes:
        seed: of this run.

    Args:
        pool: of the contexts that say nothing else.
        lose: breaks the device of an index for good, as a sticky fault does; returns words that its cause then has.
    """

    def __init__(
        self, devices: tuple[tz.Device, ...], seed: int, lose: Callable[[int, str], str] | None, pool: str = "caching"
    ) -> None:
        self.devices, self.seed, self._lose, self._pool = devices, seed, lose, pool
        self._draws = random.Random(seed)
        self._own: dict[int, tz.Context] = {}
        self._opened: list[tz.Context] = []

    def lose(self, index: int, reason: str = "injected") -> str:
        """Break a device for good; returns words that its cause has, if this is what broke it."""
        assert self._lose is not None
        return self._lose(index, reason)

    @property
    def here(self) -> tz.Context:
        """A context on the first device."""
        return self.context(0)

    @property
    def there(self) -> tz.Context:
        """Another context, on another device where there is one."""
        return self.context(1)

    @property
    def all(self) -> list[tz.Context]:
        """A context on each device, and never less than two."""
        return [self.context(index) for index in range(max(2, len(self.devices)))]

    def context(self, index: int) -> tz.Context:
        """The world's context of that number, made when first asked for."""
        if index not in self._own:
            self._own[index] = self.open(index)
        return self._own[index]

    def open(self, index: int = 0, **options: Any) -> tz.Context:
        """Make a context of the program's own."""
        options.setdefault("seed", self.seed)
        options.setdefault("pool", self._pool)
        ctx = tz.context(self.devices[index % len(self.devices)], **options)
        self._opened.append(ctx)
        return ctx

    def streams(self, count: int, ctx: tz.Context | None = None) -> list[tz.Stream]:
        """New streams of a context (default `here`)."""
        return [(ctx or self.here).new_stream() for _ in range(count)]

    def cell(self, value: int = 0, ctx: tz.Context | None = None) -> tz.Buffer:
        """A buffer of one int64 that holds `value` for every stream from now on."""
        owner = ctx or self.here
        buffer = owner.allocate(8, dtype="int64")
        owner.fill(buffer, value)
        owner.stream.synchronize(timeout=TIMEOUT)
        return buffer

    def room(self, cells: int) -> int:
        """Bytes that so many cells take on a device."""
        return cells * max(64, self.devices[0].capabilities.alignment)

    def read(self, cell: tz.Buffer) -> int:
        """What a cell holds, after the streams known to have used it."""
        owner = next(ctx for ctx in self._opened if ctx.device.memory_domain == cell.device.memory_domain)
        return int(owner.to_numpy(cell)[0])

    def pause(self) -> None:
        """Stumble now and then."""
        if self._draws.random() < 0.5:
            time.sleep(_LATENESS * self._draws.random())

    def late(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Make a function late now and then, so that a missing wait for it shows."""

        def run(*args: Any) -> Any:
            self.pause()
            return function(*args)

        return run

    def threads(self, *functions: Callable[[], object]) -> None:
        """Run functions at the same time, to their ends; the first failure is raised."""
        start, failures = threading.Barrier(len(functions)), list[BaseException]()

        def run(function: Callable[[], object]) -> None:
            try:
                start.wait(TIMEOUT)
                function()
            except BaseException as error:
                failures.append(error)

        running = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "a thread of the program hangs"
        if failures:
            raise failures[0]

    def close(self, *, abandon: bool) -> None:
        """Close what was opened, the latest first."""
        for ctx in reversed(self._opened):
            ctx.close(timeout=TIMEOUT, abandon=abandon)


Program = Callable[[World], Any]


@final
@dataclass(frozen=True)
class Litmus:
    """A program with what it shows.

    Attributes:
        rule: of the execution model.
        only: the allowed outcomes in words.
        allowed: the allowed outcomes.
        worlds: where the program can run.
    """

    rule: int
    program: Program
    only: str
    allowed: Collection[Any] = ()
    worlds: tuple[Setting, ...] = ()

    @property
    def name(self) -> str:
        """The program's name in words."""
        return self.program.__name__.removeprefix("test_").replace("_", " ")


programs: list[Litmus] = []
"""Every program whose file was imported, in order."""


def litmus(
    rule: int,
    *,
    only: str,
    allowed: Collection[Any],
    worlds: tuple[Setting, ...] = EVERYWHERE,
    seeds: int | None = None,
) -> Callable[[Program], Callable[..., None]]:
    """Make a program a test in each of the worlds.

    Args:
        rule: the rule of the execution model that it is about.
        only: the allowed outcomes in words, for the table.
        allowed: the allowed outcomes.
        worlds: where the program can run.
        seeds: of each world, where its own number would take too long.
    """

    def decorate(program: Program) -> Callable[..., None]:
        programs.append(Litmus(rule, program, only, allowed, worlds))

        @pytest.mark.parametrize("setting", worlds, ids=str)
        def test(setting: Setting) -> None:
            for seed in range((seeds or setting.seeds) * (10 if _FULL else 1)):
                with _naming_the_seed(seed), jitter(seed), opened(setting, seed) as world:
                    outcome = program(world)
                assert outcome in allowed, f"seed {seed}: {outcome!r} is not among the allowed {allowed!r}"

        test.__doc__, test.__name__ = program.__doc__, program.__name__
        return test

    return decorate


@contextlib.contextmanager
def opened(setting: Setting, seed: int) -> Iterator[World]:
    """Make a world, and close its contexts after the program."""
    with contextlib.ExitStack() as stack:
        sim = None
        if setting.simulated:
            sim = stack.enter_context(simulate(setting.devices, memory="16MiB", seed=seed, lateness=_LATENESS))
        devices = _cpus(setting) if sim is None else sim.devices
        world = World(devices, seed, None if sim is None else partial(_lose_simulated, sim), setting.pool)
        try:
            yield world
        except BaseException:
            world.close(abandon=True)
            raise
        world.close(abandon=False)


def _lose_simulated(sim: Simulation, index: int, reason: str) -> str:
    sim.lose(index, reason)
    return reason


def _cpus(setting: Setting) -> tuple[tz.Device, ...]:
    cpu = tz.device("cpu")
    if setting.devices > len(cpu.cores):
        pytest.skip("this machine has one processor, which cannot be split")
    return cpu.split(setting.devices) if setting.devices > 1 else (cpu,)


@contextlib.contextmanager
def _naming_the_seed(seed: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"litmus program failed with seed {seed}")
        raise


# Parts of programs -------------------------------------------------------------------------------------------------


def put(x: Any, value: Any) -> None:
    """Write."""
    x[...] = value


def get(x: Any) -> int:
    """Read."""
    return int(x[0])


def add(x: Any, value: Any) -> None:
    """Read, add and write."""
    x += value


def plus(x: Any, value: Any) -> Any:
    """Return the sum."""
    return x + value


def full(count: int, value: int) -> Any:
    """Make an array of int64 in a task."""
    return tz.current().xp.full(count, value, dtype="int64")


def fail(message: str = "first") -> None:
    """Raise."""
    raise KeyError(message)


def attempt(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what the function returns, or the type of what it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error)


def until(condition: Callable[[], object]) -> bool:
    """Look at a condition until it holds; tell whether it did in time."""
    pause, deadline = threading.Event(), time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.0005)
    return True
