"""Run by test_contract.py on emulated devices: generated programs over cpu, sim and cuda mean what the model says."""

from __future__ import annotations

import cuda_emulator
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

import tazza as tz
from tests.stateful import test_program_machine
from tests.stateful.program_world import TIMEOUT
from tests.stateful.test_program_machine import FULL, ProgramMachine, TaskMachine

EMULATOR = cuda_emulator.start()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs get one emulated device at least, and waits without a timeout of their own end too."""
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", str(TIMEOUT))
    monkeypatch.setattr(test_program_machine, "CUDAS", st.integers(1, min(3, len(tz.devices("cuda")))))


def launches() -> int:
    """Kernels launched so far."""
    return int(EMULATOR.report()["calls"].get("cuLaunchKernel", 0))


@pytest.mark.timeout(600 if FULL else 120)
@pytest.mark.parametrize("machine", [ProgramMachine, TaskMachine], ids=["any-order", "tasks-only"])
def test_programs_mean_what_the_sequential_model_says(machine: type[ProgramMachine]) -> None:
    examples, steps = (300, 60) if FULL else (25, 30)
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=[Phase.generate],
        suppress_health_check=slow,
        deadline=None,
        database=None,
    )
    before = launches()
    run_state_machine_as_test(machine, settings=chosen)
    assert launches() > before
    assert EMULATOR.wait_idle()
    assert EMULATOR.report()["n_hazards"] == 0
