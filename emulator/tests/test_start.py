"""Starting in this process: once, with what settings, and when it is refused. Each in a process of its own."""

import re
import subprocess
from pathlib import Path

import pytest

from cuda_emulator import library
from cuda_emulator.compiler import find_c_compiler

from .conftest import Script

COUNT = """
from cuda.bindings import driver
assert driver.cuInit(0)[0] == 0
print(driver.cuDeviceGetCount()[1])
"""


def ended_well(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cuda_bindings_imported_later_run_on_it(python: Script) -> None:
    assert ended_well(python("import cuda_emulator; cuda_emulator.start(devices=3)" + COUNT)) == "3"


def test_the_same_settings_again_are_the_same_emulator(python: Script) -> None:
    script = """
import cuda_emulator as e
one = e.start(devices=3, memory="1GiB")
assert e.start(devices=3, memory=1 << 30) is one is e.started()
try:
    e.start(devices=3, memory="2GiB")
except e.StartError as error:
    print(error)
"""
    said = ended_well(python(script))
    assert "running: CUDA_EMULATOR_MEMORY=1073741824" in said
    assert "asked:   CUDA_EMULATOR_MEMORY=2147483648" in said


def test_what_is_not_given_comes_from_the_environment(python: Script) -> None:
    script = "import cuda_emulator as e; print(e.start(seed=5).settings)"
    said = ended_well(python(script, environ={"CUDA_EMULATOR_DEVICES": "7", "CUDA_EMULATOR_SEED": "1"}))
    assert said.startswith("7 devices of 256 MiB, peers all, seed 5")


def test_starting_leaves_the_environment_as_it_was(python: Script) -> None:
    script = """
import os, cuda_emulator
before = dict(os.environ)
cuda_emulator.start(devices=3)
assert dict(os.environ) == before
"""
    ended_well(python(script, environ={"CUDA_EMULATOR_SEED": "1"}))


def test_a_child_with_its_environment_runs_on_the_same_settings(python: Script) -> None:
    script = f"""
import subprocess, sys, cuda_emulator
emulator = cuda_emulator.start(devices=5)
print(subprocess.check_output([sys.executable, "-c", {COUNT!r}], env=emulator.environment(), text=True))
"""
    assert ended_well(python(script)) == "5"


def test_a_child_may_start_what_it_runs_on_anyway(python: Script) -> None:
    script = f"""
import subprocess, sys, cuda_emulator
child = {COUNT!r} + "import cuda_emulator; print(cuda_emulator.start().settings.devices)"
emulator = cuda_emulator.start(devices=5)
print(subprocess.check_output([sys.executable, "-c", child], env=emulator.environment(), text=True))
"""
    assert ended_well(python(script)).split() == ["5", "5"]


def test_a_child_that_used_cuda_cannot_have_other_settings(python: Script) -> None:
    use = "import cuda_emulator as e\ntry: e.start(devices=3)\nexcept e.StartError as error: print(error)"
    script = f"""
import subprocess, sys, cuda_emulator
emulator = cuda_emulator.start(devices=5, memory="1MiB")
print(subprocess.check_output([sys.executable, "-c", {COUNT + use!r}], env=emulator.environment(), text=True))
"""
    assert "running: CUDA_EMULATOR_DEVICES=5" in ended_well(python(script))


def test_a_fault_of_no_error_is_refused_and_the_emulator_runs_without(python: Script) -> None:
    script = """
import cuda_emulator as e
try:
    e.start(faults="cuInit:1:NO_SUCH_ERROR")
except ValueError as error:
    print(error)
assert e.start().faults == ()
"""
    assert ended_well(python(script)) == "the emulator cannot read the fault 'cuInit:1:NO_SUCH_ERROR'"


@pytest.fixture
def other_driver(tmp_path: Path) -> Path:
    """A library that could be a real driver: only its name says so."""
    path = tmp_path / "libcuda.so.1"
    find_c_compiler().run(["-shared", "-o", str(path), "-x", "c", "-"], "int cuInit(unsigned flags) { return 999; }")
    return path


def test_it_is_refused_where_another_driver_is_loaded(python: Script, other_driver: Path) -> None:
    script = f"""
import ctypes, cuda_emulator as e
driver = ctypes.CDLL({str(other_driver)!r})
try:
    e.start()
except e.StartError as error:
    print(error)
assert e.started() is None
"""
    assert ended_well(python(script)).startswith(f"a CUDA driver is loaded already: {other_driver};")


def test_a_driver_that_is_only_there_is_not_used_and_not_in_the_way(python: Script, other_driver: Path) -> None:
    script = "import cuda_emulator; cuda_emulator.start(devices=3)" + COUNT
    assert ended_well(python(script, environ={"LD_LIBRARY_PATH": str(other_driver.parent)})) == "3"


def test_it_is_refused_where_cuda_bindings_may_be_bound_to_a_real_device(python: Script, tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    script = f"""
import pathlib
import cuda.bindings.driver
import cuda_emulator as e, cuda_emulator.running as running
running.DEVICE_FILES = pathlib.Path({str(tmp_path)!r})
try:
    e.start()
except e.StartError as error:
    print(error)
"""
    assert ended_well(python(script)).startswith("cuda.bindings is imported already")


def test_importing_is_not_starting(python: Script) -> None:
    script = """
import sys
before = set(sys.modules)
import cuda_emulator, cuda_emulator.pytest_plugin
assert cuda_emulator.started() is None
assert "libcuda" not in open("/proc/self/maps").read()
print(sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("cuda", "numba", "numpy", "tazza")))
"""
    assert ended_well(python(script)) == "[]"


def test_the_package_imports_nothing_of_tazza() -> None:
    for path in (Path(__file__).parents[1] / "src").rglob("*.py"):
        assert not re.search(r"^\s*(import|from)\s+tazza", path.read_text(), re.MULTILINE), path


def test_the_library_exports_the_driver_and_its_own_functions_only() -> None:
    symbols = subprocess.check_output(["nm", "-D", "--defined-only", str(library())], text=True, timeout=20)
    names = {line.split()[-1].split("@")[0] for line in symbols.splitlines()}
    assert {"cuInit", "cuMemAlloc_v2", "cuStreamSynchronize_ptsz", "emulator_report"} <= names
    assert all(name.startswith(("cu", "emulator_")) for name in names)
