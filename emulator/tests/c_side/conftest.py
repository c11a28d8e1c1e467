"""Each test runs its program in a child process of its own, on an emulator with the settings that it needs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))
pytest.importorskip("cuda.bindings")

# With CUDA_EMULATOR_CFLAGS=-fsanitize=..., the path of that sanitizer's library.
PRELOAD = "CUDA_EMULATOR_TEST_PRELOAD"
KEPT = {"CUDA_EMULATOR_CACHE", "CUDA_EMULATOR_CFLAGS", "CUDA_EMULATOR_TEST_OPERATIONS", PRELOAD}

Program = Callable[[], None]
Child = Callable[..., subprocess.CompletedProcess[str]]

_CHILD = """
import json, sys
sys.path[:0] = {paths!r}
import cuda_emulator
cuda_emulator.start(**json.loads({settings!r}))
import {module}
{module}.{name}()
"""


@pytest.fixture
def child() -> Child:
    """``child(program, returncode=0, **settings)`` runs a function of a test module; its output is the answer's."""

    def run(program: Program, returncode: int = 0, **settings: object) -> subprocess.CompletedProcess[str]:
        paths = [str(FOLDER), str(FOLDER.parents[1] / "src")]
        code = _CHILD.format(
            paths=paths,
            settings=json.dumps(settings),
            module=program.__module__.rpartition(".")[2],
            name=program.__name__,
        )
        environ = {
            name: value for name, value in os.environ.items() if name in KEPT or not name.startswith("CUDA_EMULATOR_")
        }
        if PRELOAD in environ:
            environ["LD_PRELOAD"] = environ[PRELOAD]
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environ)
        assert done.returncode == returncode, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
