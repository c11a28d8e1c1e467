"""Run by test_contract.py on emulated devices: every litmus program but those of the inline stream of the CPU.

What the programs do with arrays they do through parts of the harness, which compiled kernels stand in for here.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any, final

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.core import registry
from tazza.errors import DeviceLostError
from tazza.testing import jitter
from tests.cuda import kernels
from tests.litmus.harness import SIM, Litmus, World
from tests.litmus.table import litmus_programs

EMULATOR = cuda_emulator.start()

POOL = ("caching", "driver")[EMULATOR.settings.seed // 6 % 2]
"""Of all contexts of this run: test_contract.py runs the file with the seeds 1, 7, 13 and 19."""

SEEDS = [EMULATOR.settings.seed + 20 * number for number in range(5)]
"""Others in each world of test_contract.py: 20 altogether."""


@final
class Reading:
    """What a function read on the device, in pinned memory until somebody asks for the number when the task is over."""

    def __init__(self, cell: tz.Buffer) -> None:
        here = tz.current()
        self._there: tz.Buffer | None = here.memory.pinned.allocate(8, dtype="int64")
        self._value = 0
        here.copy(self._there, cell)

    def __int__(self) -> int:
        if self._there is not None:
            self._value, self._there = int(np.asarray(self._there)[0]), None
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (int, Reading)) and int(self) == int(other)

    def __hash__(self) -> int:
        return hash(int(self))


def put(x: tz.Buffer, value: Any) -> None:
    """Write."""
    tz.current().fill(x, value)


def get(x: tz.Buffer) -> Reading:
    """Read."""
    return Reading(x)


def shard(w: World) -> tz.Buffer:
    """As in rule 15."""
    ctx = tz.current()
    w.pause()
    return kernels.matmul(ctx.random.random((8, 32), dtype="float32"), ctx.random.random((32, 8), dtype="float32"))


def total(parts: list[tz.Buffer]) -> tz.Buffer:
    """As in rule 15."""
    here = tz.current()
    result: tz.Buffer = here.empty(parts[0].shape, "float32")
    here.copy(result, parts[0])
    for part in parts[1:]:
        kernels.run("accumulate", 64, 64, part, result)
    return result


PARTS = {
    "add": kernels.add,
    "full": kernels.full,
    "get": get,
    "plus": kernels.plus,
    "put": put,
    "shard": shard,
    "total": total,
}

EXCEPT = {
    "a queue that only oneself could drain": "the device drains it while the function stands",
    "a new context in the child": "a forked child cannot use CUDA; test_faults.py has what it is told",
}

SYMBOLS = ("LAUNCH_FAILED", "ECC_UNCORRECTABLE", "DEVICE_UNAVAILABLE")

PROGRAMS = [one for one in litmus_programs() if set(one.worlds) & set(SIM) and one.name not in EXCEPT]


def loser(seed: int) -> Any:
    """A function that breaks a device in one of several ways, and has the driver meet it."""
    symbols = itertools.cycle(SYMBOLS[seed % 3 :] + SYMBOLS[: seed % 3])

    def lose(index: int, reason: str) -> str:
        symbol, device = next(symbols), tz.devices("cuda")[index]
        if symbol == "DEVICE_UNAVAILABLE":
            EMULATOR.lose_device(index)
            faults = []
        else:
            faults = [f"cuMemGetInfo:1:{symbol}:device={index}:sticky"]
        with EMULATOR.injecting(*faults), pytest.raises(DeviceLostError):
            device.driver.memory_info(device.info)
        return symbol

    return lose


@pytest.mark.parametrize("one", PROGRAMS, ids=lambda one: f"rule-{one.rule}-{one.name.replace(' ', '-')}")
def test_only_allowed_outcomes(one: Litmus, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[one.program.__module__]
    for name, function in PARTS.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, function)
    for seed in SEEDS:
        world = World(tz.devices("cuda"), seed, loser(seed), POOL)
        try:
            with jitter(seed):
                outcome = one.program(world)
        except BaseException:
            world.close(abandon=True)
            raise
        finally:
            make_well()
        world.close(abandon=False)
        assert outcome in one.allowed, f"seed {seed}: {outcome!r} is not among the allowed {one.allowed!r}"


def make_well() -> None:
    """Have the next program meet devices that are well."""
    driver = registry.driver("cuda")
    if any(driver.poison(info) is not None for info in driver.devices()):
        registry.install_driver("cuda", driver.rebuild())


def test_there_are_programs() -> None:
    names = {one.name for one in litmus_programs()}
    assert set(EXCEPT) <= names
    assert len(PROGRAMS) == len([one for one in litmus_programs() if set(one.worlds) & set(SIM)]) - len(EXCEPT)
    assert EMULATOR.report()["n_hazards"] == 0
