"""The example of a user who tests a program on tazza with the emulator."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cuda.conftest import ROOT, missing


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_example_passes_under_seeds(seed: int) -> None:
    if reason := missing():
        pytest.skip(reason)
    options = ("-q", "-p", "no:cacheprovider", "-c", "pytest.ini", f"--cuda-seed={seed}", "test_tazza.py")
    command = [sys.executable, "-m", "pytest", *options]
    folder = ROOT / "emulator" / "examples"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
