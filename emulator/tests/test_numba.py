"""Numba's own tests of its driver side, without those that load code for a GPU (numba_left_out.py names them)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cuda_emulator import Settings, environment, library

from .numba_left_out import LEFT_OUT

HERE = Path(__file__).parent
TIMEOUT_S = 300

# What Numba's tests import beside Numba itself.
NEEDED = ("numba_cuda", "filecheck", "cffi", "psutil")


@pytest.fixture(scope="module")
def ran() -> dict[str, Any]:
    """What the runner printed."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    done = subprocess.run(
        [sys.executable, str(HERE / "numba_runner.py")],
        input="\n".join(name for names in LEFT_OUT.values() for name in names),
        env=environment(Settings.of(memory="2GiB", timeout_s=20), library()),
        cwd=os.environ.get("TMPDIR", "/tmp"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.timeout(TIMEOUT_S + 20)
def test_every_test_that_needs_no_gpu_code_passes(ran: dict[str, Any]) -> None:
    outcomes = ran["outcomes"]
    assert {name: text for name, (outcome, text) in outcomes.items() if outcome == "failed"} == {}
    assert sum(outcome == "passed" for outcome, _ in outcomes.values()) >= 185


def test_what_is_left_out_exists(ran: dict[str, Any]) -> None:
    assert {name for names in LEFT_OUT.values() for name in names} <= set(ran["all"])
