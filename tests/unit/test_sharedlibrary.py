"""Libraries are found by their files, without loading them; what `tz.backends()` says of CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tazza as tz
from tazza.util.sharedlibrary import has_library


def test_a_library_on_the_loaders_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "libtazza-was-here.so.1"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'empty'}{os.pathsep}{tmp_path}")
    assert not has_library(name)
    (tmp_path / name).touch()
    assert has_library(name)
    assert not has_library(name + "0")


def test_a_library_that_is_loaded_is_found() -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not list what a process has loaded")
    loaded = [line.rsplit("/", 1)[1] for line in maps.read_text().splitlines() if ".so" in line and "/" in line]
    assert has_library(loaded[0])


def test_cuda_says_why_it_cannot_be_used_and_what_to_install() -> None:
    [status] = [one for one in tz.backends() if one.name == "cuda"]
    if status.usable:
        pytest.skip("this machine has a CUDA driver")
    assert "libcuda.so.1" in status.reason or status.reason.startswith("no module 'cuda")
    needed = "install NVIDIA's driver" if "libcuda.so.1" in status.reason else "pip install 'tazza"
    assert needed in status.hint
    with pytest.raises(ImportError, match=needed):
        tz.context("cuda")
    assert tz.device("auto").kind == "cpu"


def test_importing_tazza_imports_and_loads_nothing_of_cuda() -> None:
    code = "import sys, tazza as tz; tz.backends(); print([m for m in sys.modules if m.startswith('cuda.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
