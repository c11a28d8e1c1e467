"""Facts in which nothing is wrong, and fake systems, packages and libraries to find facts in."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tazza.doctor import children
from tazza.doctor.facts import Backend, Driver, Facts, Library, Limits, Memory, Package, Processors, Python, Tazza
from tazza.doctor.facts import ThreadPool as ThreadPool

GIB = 2**30
SITE = "/env/lib/python3.11/site-packages"

NUMPY_BLAS = Library("BLAS", "OpenBLAS", f"{SITE}/numpy.libs/libopenblas.so", "0.3.31", "numpy 2.4.6", loaded=True)
GOMP = Library("OpenMP", "libgomp", f"{SITE}/torch/lib/libgomp.so.1", "1", "torch 2.13.0", loaded=True)

HEALTHY = Facts(
    subject="this process",
    python=Python("3.11.7", "Linux", "glibc 2.36", start_method="forkserver", threads=4),
    tazza=Tazza("0.1.0", True, backends=(Backend("cpu", True),), known_variables=("TAZZA_DEVICE", "TAZZA_SIM_SEED")),
    processors=Processors(8, 8, None),
    memory=Memory(48 * GIB, 64 * GIB, 48 * GIB, 64 * GIB, (), 30 * GIB, 32 * GIB, 0),
    limits=Limits(None, None, 4096),
    driver=Driver("/usr/lib/libcuda.so.1", "550.54.14", "550.54.14", True, "fine", cuda="12.4", devices=1),
    libraries=(NUMPY_BLAS, GOMP),
    pools=(ThreadPool("libopenblas", NUMPY_BLAS.path, 8),),
    packages=(
        Package("numpy", ("numpy 2.4.6",), (SITE,), "2.4.6", f"{SITE}/numpy/__init__.py", "2.4.6"),
        Package(
            "torch", ("torch 2.13.0",), (SITE,), "2.13.0", f"{SITE}/torch/__init__.py", "2.13.0+cu124", cuda="12.4"
        ),
    ),
)


def change(part: str, **values: Any) -> Facts:
    """The healthy facts with one part changed."""
    return replace(HEALTHY, **{part: replace(getattr(HEALTHY, part), **values)})


def plant(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


def install(site: Path, name: str, version: str, files: Mapping[str, str], *, requires: tuple[str, ...] = ()) -> None:
    """Put a fake distribution into a folder, with its metadata and the list of its files."""
    plant(site, files)
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    record = "".join(f"{file},sha256=x,1\n" for file in files)
    plant(site, {f"{info}/METADATA": metadata, f"{info}/RECORD": record})


def compile_library(path: Path, source: str) -> Path:
    """Compile C into a shared library, or skip the test where there is no compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    path.parent.mkdir(parents=True, exist_ok=True)
    code = path.parent / "planted.c"
    code.write_text(source)
    command = [compiler, "-shared", "-fPIC", "-o", str(path), str(code)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return path


def hang_until_killed(monkeypatch: pytest.MonkeyPatch, gate: Path) -> None:
    """Let the next child's time begin when it opens the named pipe `gate` for writing, however slow this machine is."""
    os.mkfifo(gate)
    real, gates = children._ends, [gate]

    def ends(process: subprocess.Popen[bytes], timeout: float) -> bool:
        while gates:
            gates.pop().read_bytes()  # comes back when the child has opened and closed it
        return real(process, timeout)

    monkeypatch.setattr(children, "_ends", ends)
