"""``import tazza`` costs little more than ``import numpy`` and loads nothing that a user did not ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

BUDGET = 1.5
HEAVY = {"asyncio", "cuda", "cupy", "dpctl", "email", "importlib.metadata", "jax", "multiprocessing", "pathlib"} | {
    "pytest", "rich", "scipy", "sklearn", "tazza.cli", "tazza.demo", "tazza.dnn", "tazza.testing", "torch", "unittest"
}  # fmt: skip


def run(code: str) -> str:
    """The output of a fresh interpreter that runs ``code``."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def seconds(module: str) -> float:
    """Processor time that importing ``module`` takes: other programs on the machine hardly change it."""
    return float(run(f"import time; t = time.process_time(); import {module}; print(time.process_time() - t)"))


@pytest.fixture
def bytecode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an installation by pip: everything is compiled to bytecode, whatever this environment forbids."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):  # a tracer of tazza's lines would be timed too
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    run("import tazza")


@pytest.mark.usefixtures("bytecode")
def test_import_costs_little_more_than_numpy() -> None:
    ratios: list[float] = []
    # More pairs only while the verdict is out: a machine under load gets a fair measurement, not a second chance.
    for _ in range(3):
        for _ in range(5):
            base = seconds("numpy")
            ratios.append(seconds("tazza") / base)
        if median(ratios) <= BUDGET:
            break
    assert median(ratios) <= BUDGET, f"import tazza / import numpy, pairs: {[round(r, 2) for r in ratios]}"


def test_import_loads_nothing_heavy() -> None:
    base = set(run("import sys, numpy; print(*sys.modules)").split())
    loaded = set(run("import sys, tazza; print(*sys.modules)").split())
    heavy = sorted((loaded - base) & HEAVY)
    assert not heavy, f"import tazza loads {heavy}"
