"""What several test files use: running Python in a fresh process, and a driver in miniature for tests of the build."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TIMEOUT_S = 100

Script = Callable[..., subprocess.CompletedProcess[str]]
Passes = Callable[..., str]

LIBRARIES = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import cuda_emulator
emulator = cuda_emulator.start(devices=2, memory="64MiB", libraries=True, timeout_s=20, **SETTINGS)
from libraries_program import *
import threading
dnn = library("libcudnn.so.9")
draws = np.random.default_rng(1)
def drawn(*shape): return draws.standard_normal(shape).astype("f4")
"""

CONVOLUTION = """
device = Device()
handle = handle_of(dnn, device.stream)
def convolution(algorithm=2, **options):
    groups = options.get("groups", 1)
    one = Convolution(dnn, drawn(3, 4, 7, 6), drawn(6, 4 // groups, 3, 3), **options)
    size = one.workspace(handle, algorithm)
    scratch = device.allocate(size) if size else 0
    y = device.allocate(4 * int(np.prod(one.shape)))
    status = one.forward(handle, device.put(one.x), device.put(one.w), y, scratch, size, algorithm)
    assert status == 0, last_error(dnn)
    return one, y
"""


@pytest.fixture
def python(tmp_path: Path) -> Script:
    """Runs a script in a fresh interpreter, without this process's settings; returns its output and exit code."""

    def run(script: str, *, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_EMULATOR_")}
        cache = {name: os.environ[name] for name in ("CUDA_EMULATOR_CACHE",) if name in os.environ}
        return subprocess.run(
            [sys.executable, "-c", script],
            env={**kept, **cache, **(environ or {})},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    return run


@pytest.fixture
def passes(python: Script) -> Passes:
    """Runs a script on the emulator with libraries; fails where it does."""

    def run(script: str, **settings: object) -> str:
        done = python(f"SETTINGS = {settings!r}\n{LIBRARIES}\n{script}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


SMALL_DRIVER = {
    "cuda_api.h": "#define __CUDA_API_VERSION_INTERNAL\n#include <cuda.h>\n",
    "call.h": """
        #include <stdbool.h>
        #include "calls.h"
        CUresult call_begin(int index, bool per_thread);
        CUresult call_end(CUresult result);
        CUresult call_missing(void);
        typedef struct { const char *name; int version; int flags; void *function; } Proc;
        typedef struct { CUresult code; const char *name; const char *text; } ErrorName;
    """,
    "call.c": """
        #include "call.h"
        CUresult call_begin(int index, bool per_thread) { (void)index; (void)per_thread; return CUDA_SUCCESS; }
        CUresult call_end(CUresult result) { return result; }
        CUresult call_missing(void) { return CUDA_ERROR_NOT_SUPPORTED; }
        CUresult emulated_cuInit(unsigned int flags) { return flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS; }
    """,
    "exports.map": "{ global: cu[A-Z]*; local: *; };",
}


@pytest.fixture
def small_sources(tmp_path: Path) -> Path:
    """C sources that the generated layer can be built with: only cuInit is implemented."""
    folder = tmp_path / "c"
    folder.mkdir()
    for name, text in SMALL_DRIVER.items():
        (folder / name).write_text(text)
    return folder
