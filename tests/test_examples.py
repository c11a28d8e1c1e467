"""Every script in ``examples/`` runs by itself, quietly and to its end."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.interop import REQUIRED

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))

NEEDS = {"inference_server": ("onnxruntime", "silero_vad")}
"""Libraries of the extra `interop` that an example needs."""


def cases() -> list[ParameterSet]:
    """The examples, those that need other libraries marked so."""
    return [
        pytest.param(script, id=script.stem, marks=[pytest.mark.interop] if script.stem in NEEDS else [])
        for script in EXAMPLES
    ]


@pytest.mark.parametrize("script", cases())
def test_example_runs(script: Path, tmp_path: Path) -> None:
    missing = [name for name in NEEDS.get(script.stem, ()) if importlib.util.find_spec(name) is None]
    if missing and not REQUIRED:
        pytest.skip(f"{', '.join(missing)} not installed; pip install '.[interop]'")
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout, f"{script.name} prints nothing"
    assert not done.stderr, done.stderr
