"""Facts collected from a planted system, and this real one: the report, its arguments, the installation."""

from __future__ import annotations

import builtins
import doctest
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tazza.doctor
from tazza.doctor import Facts, Finding, Library, Report, Severity, examine
from tazza.doctor.child_imports import main, process_facts
from tazza.doctor.collect import Sources, collect
from tazza.doctor.installation import examine_python, examine_tazza, examine_variables, stale_files
from tazza.doctor.machine import examine_memory
from tazza.errors import ArgumentError
from tests.doctor.planted import install, plant

GIB = 2**30
LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max address space         8589934592           unlimited            bytes     \n"
    "Max locked memory         unlimited            unlimited            bytes     \n"
    "Max open files            256                  1048576              files     \n"
)


def plant_system(root: Path) -> Sources:
    """A container with limits, two OpenMP runtimes in its process and a local file named like a package."""
    site = root / "site-packages"
    install(site, "numpy", "2.4.6", {"numpy/__init__.py": "", "numpy.libs/libgomp-0123abcd.so.1.0.0": ""})
    install(site, "mkl", "2024.1", {"../lib/libiomp5.so": ""})
    libraries = [site / "numpy.libs/libgomp-0123abcd.so.1.0.0", root / "lib/libiomp5.so"]
    plant(
        root,
        {
            "lib/libiomp5.so": "",
            "here/numpy.py": "",
            "pre/libjemalloc.so.2": "",
            "proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {48 * 2**20} kB\n",
            "proc/self/cgroup": "0::/\n",
            "proc/self/limits": LIMITS,
            "proc/self/maps": "".join(f"0-1 r-xp 0 0:0 1 {path}\n" for path in libraries),
            "proc/sys/vm/overcommit_memory": "2\n",
            "sys/fs/cgroup/memory.max": f"{8 * GIB}",
            "sys/fs/cgroup/memory.current": f"{GIB}",
            "sys/fs/cgroup/cpu.max": "50000 100000",
            "dev/shm/x": "",
        },
    )
    environ = {
        "LD_LIBRARY_PATH": str(root / "pre"),
        "LD_PRELOAD": "libjemalloc.so.2:/gone.so",
        "OMP_NUM_THREADS": "x",
        "TAZZA_NONSENSE": "1",
        "OTHER": "1",
    }
    return Sources(root, (str(root / "here"), str(site)), environ)


def test_a_planted_system(tmp_path: Path) -> None:
    report = examine(sources=plant_system(tmp_path))
    facts = report.facts
    assert facts.memory.total == 8 * GIB
    assert facts.memory.free == 7 * GIB
    assert (facts.memory.machine_free, facts.memory.machine_total) == (48 * GIB, 64 * GIB)
    assert facts.memory.shared_total is not None
    assert facts.processors.quota == 0.5
    assert facts.processors.capacity == 1
    assert (facts.limits.address_space, facts.limits.locked, facts.limits.files) == (8 * GIB, None, 256)
    assert facts.preloaded == (("libjemalloc.so.2", True), ("/gone.so", False))
    assert [name for name, _ in facts.environment] == ["OMP_NUM_THREADS", "LD_LIBRARY_PATH", "LD_PRELOAD"]
    assert facts.unknown == ()
    assert {finding.key for finding in report.findings} >= {
        *("openmp-mixed", "package-shadowed", "memory-limit", "cpu-quota", "address-space", "few-files"),
        *("overcommit-strict", "preload", "preload-missing", "threads-setting", "environment-unknown", "driver-absent"),
    }
    loaded = facts.loaded("OpenMP")
    assert [(one.name, one.owner) for one in loaded] == [("libgomp", "numpy 2.4.6"), ("libiomp5", "mkl 2024.1")]


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    """As on macOS and Windows: no /proc; what can be known is reported, and what cannot is said."""
    report = examine(sources=Sources(tmp_path, (), {}))
    assert len(report.facts.unknown) == 2
    assert report.facts.memory.overcommit is None
    assert report.facts.memory.shared_total is None
    pools = {os.path.realpath(pool.path) for pool in report.facts.pools}
    assert {os.path.realpath(one.path) for one in report.facts.libraries if one.loaded} == pools


def test_without_file_system_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "statvfs", raising=False)
    assert examine_memory(plant(tmp_path, {"dev/shm/x": ""})).shared_total is None


def test_this_process() -> None:
    report = examine()
    if sys.platform == "linux":
        assert all(library.owner for library in report.facts.loaded("BLAS"))
        assert report.facts.python.threads is not None
    assert {package.module for package in report.facts.packages} >= {"numpy", "threadpoolctl", "array_api_compat"}
    assert all(isinstance(library, Library) for library in report.facts.libraries)
    document = json.loads(json.dumps(report.as_dict()))
    assert list(document) == [
        *("healthy", "count", "coherence", "subject", "python", "tazza", "processors", "memory", "limits", "driver"),
        *("libraries", "pools", "packages", "imports", "environment", "preloaded", "unknown", "findings"),
    ]
    assert all(set(one) == {"key", "severity", "seen", "why", "fix", "family"} for one in document["findings"])
    assert report.healthy is not any(finding.severity is Severity.ERROR for finding in report.findings)


@pytest.mark.parametrize("modules", ["torch", ["torch; import os"], [""], [3], ["a..b"]])
def test_names_that_are_none(modules: Sequence[str]) -> None:
    with pytest.raises(ArgumentError, match="modules"):
        examine(modules)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), True, "5"])
def test_timeouts_that_are_none(timeout: Any) -> None:
    with pytest.raises(ArgumentError, match="timeout"):
        examine(timeout=timeout)


# What runs in the child, run here ----------------------------------------------------------------------------------


def test_the_facts_of_a_process_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **named: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert process_facts() == {"maps": "", "threads": None, "pools": None}


def test_pools_that_cannot_be_asked_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    facts = collect(Sources(), timeout=30)
    assert facts.pools == ()
    assert any("threadpoolctl" in text for text in facts.unknown)


def test_the_child_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "output"
    written = os.open(output, os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(os, "dup", lambda number: written)
    monkeypatch.setattr(os, "dup2", lambda one, other: None)
    main(["json", "doctor_missing"])
    said = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert said[0] == {"begin": "json"}
    assert said[1]["module"] == "json"
    assert said[3]["error"].startswith("ModuleNotFoundError")
    assert set(said[4]) == {"maps", "threads", "pools"}


@pytest.mark.parametrize("module", [info.name for info in pkgutil.iter_modules(tazza.doctor.__path__)])
def test_examples_in_docstrings_run(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"tazza.doctor.{module}"))
    assert outcome.failed == 0


def test_public_classes_have_an_example() -> None:
    for value in (examine, Facts, Finding, Library, Report, Severity):
        assert ">>>" in (value.__doc__ or ""), value


# The installation --------------------------------------------------------------------------------------------------


def test_compiled_files_older_than_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: ".cpython-x.so")
    plant(
        tmp_path,
        {"pool.py": "", "pool.cpython-x.so": "", "frame.py": "", "frame.cpython-x.so": "", "x.cpython-y.so": ""},
    )
    plant(tmp_path, {"handler.pyx": "", "handler.cpython-x.so": "", "alone.cpython-x.so": ""})
    for name in ("pool.cpython-x.so", "handler.cpython-x.so"):
        os.utime(tmp_path / name, (1, 1))
    assert stale_files(tmp_path) == ("handler.cpython-x.so", "pool.cpython-x.so")
    installed = tmp_path / "site-packages/hot"
    plant(installed, {"pool.py": "", "pool.cpython-x.so": ""})
    os.utime(installed / "pool.cpython-x.so", (1, 1))
    assert stale_files(installed) == ()  # an installer writes them in any order


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "TAZZA_SIM_SEED": "soon",
        "TAZZA_WAIT_TIMEOUT": "5",
        "TAZZA_DEVICE": "npu:0",
        "TAZZA_COMPILE": "0",
        "TAZZA_EMPTY": "",
        "TAZZA_OTHER": "1",
        "HOME": "/",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    known = examine_tazza({}).known_variables
    assert {"TAZZA_DEVICE", "TAZZA_SIM_WITHOUT", "TAZZA_COMPILE"} <= set(known)
    found = {variable.name: variable for variable in examine_variables(environ, known)}
    assert list(found) == ["TAZZA_COMPILE", "TAZZA_DEVICE", "TAZZA_OTHER", "TAZZA_SIM_SEED", "TAZZA_WAIT_TIMEOUT"]
    assert [name for name, variable in found.items() if not variable.known] == ["TAZZA_OTHER"]
    problems = {name: variable.problem for name, variable in found.items() if variable.problem}
    assert set(problems) == {"TAZZA_DEVICE", "TAZZA_SIM_SEED"}
    assert "a number" in problems["TAZZA_SIM_SEED"]
    [right] = examine_variables({"TAZZA_DEVICE": "sim:1"}, known)
    assert right.problem == ""


def test_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine_python(3)
    assert found.threads == 3
    assert found.start_method == multiprocessing.get_all_start_methods()[0]
    assert multiprocessing.get_start_method(allow_none=True) is None  # looking chose nothing
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "spawn")
    assert examine_python(None).gil is False
    assert examine_python(None).start_method == "spawn"
