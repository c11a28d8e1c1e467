"""What the tests of the backend `cuda` run on: child processes that take the emulator for their driver."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 90.0
"""Seconds after which a child counts as hung."""

ROOT = Path(__file__).parents[2]

Child = Callable[..., str]


def missing() -> str:
    """What is not installed of what the tests need, as the reason of a skip."""
    for module, where in (
        ("cuda_emulator", "./emulator"),
        ("cuda", "tazza[cuda13]"),
        ("cuda.bindings", "tazza[cuda13]"),
    ):
        if importlib.util.find_spec(module) is None:
            return f"needs {module}: pip install '{where}'"
    return ""


@pytest.fixture
def emulated() -> Child:
    """Runs a script, or a command of this interpreter, on emulated devices; returns what it printed."""
    if reason := missing():
        pytest.skip(reason)
    return run_emulated


def run_emulated(script: str = "", *command: str, devices: int = 2, patience: float = TIMEOUT, **settings: Any) -> str:
    """Run `script`, or ``python *command``, in a child on the emulator; fails where the child does or hangs."""
    import cuda_emulator

    chosen = cuda_emulator.Settings.from_environment(devices=devices, memory="64MiB", timeout_s=30, **settings)
    environ = cuda_emulator.environment(chosen, cuda_emulator.library())
    environ = {name: value for name, value in environ.items() if not name.startswith(("PYTEST_", "TAZZA_", "COV_"))}
    given = list(command) or ["-c", textwrap.dedent(script)]
    done = subprocess.run(
        [sys.executable, *given],
        cwd=ROOT,
        env=environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=patience,
    )
    assert done.returncode == 0, (
        f"the child on the emulator ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout
