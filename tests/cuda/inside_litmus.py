"""Run by test_contract.py on emulated devices: the litmus programs whose functions need no arithmetic on the device."""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any, final

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.testing import jitter
from tests.litmus.harness import SIM, Litmus, World
from tests.litmus.table import litmus_programs

SEEDS = range(3)


@final
class Reading:
    """What a function read on the device, in pinned memory; an integer for whoever asks when the task is over."""

    def __init__(self, cell: tz.Buffer) -> None:
        here = tz.current()
        self._there = here.memory.pinned.allocate(8, dtype="int64")
        here.copy(self._there, cell)

    def __int__(self) -> int:
        return int(np.asarray(self._there)[0])

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


# Names of what a Buffer cannot do, or of what only simulated devices offer.
BEYOND = {"add", "sim", "xp"}

EXCEPT = {
    "a queue that only oneself could drain": "the device drains it while the function stands",
    "reallocation waits for the reader": "reading takes pinned memory, beyond the program's limit",
    "reuse on the home stream": "reading takes pinned memory, beyond the program's limit",
    "a task lets go of its arguments": "reading takes pinned memory, which the program counts",
    "a new context in the child": "a forked child cannot use CUDA; test_faults.py has what it is told",
    "equal results twice": "computes on the device",
    "equal results on any number of streams": "computes on the device",
    "another seed": "computes on the device",
    "draws do not depend on who comes first": "computes on the device",
}


def used(code: CodeType) -> set[str]:
    """The names in a function and in those inside it."""
    inner = [used(one) for one in code.co_consts if isinstance(one, CodeType)]
    return set(code.co_names).union(*inner)


def applicable(one: Litmus) -> bool:
    """Whether a program runs on devices with memory of their own and computes nothing there."""
    return bool(set(one.worlds) & set(SIM)) and one.name not in EXCEPT and not used(one.program.__code__) & BEYOND


PROGRAMS = [one for one in litmus_programs() if applicable(one)]


@pytest.mark.parametrize("one", PROGRAMS, ids=lambda one: f"rule-{one.rule}-{one.name.replace(' ', '-')}")
def test_only_allowed_outcomes(one: Litmus, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules[one.program.__module__]
    for name, function in (("put", put), ("get", get)):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, function)
    for seed in SEEDS:
        world = World(tz.devices("cuda"), seed, None)
        try:
            with jitter(seed):
                outcome = one.program(world)
        except BaseException:
            world.close(abandon=True)
            raise
        world.close(abandon=False)
        assert outcome in one.allowed, f"seed {seed}: {outcome!r} is not among the allowed {one.allowed!r}"


def test_there_are_programs() -> None:
    assert len(PROGRAMS) > 60
    assert set(EXCEPT) <= {one.name for one in litmus_programs()}
    assert cuda_emulator.start().report()["n_hazards"] == 0
