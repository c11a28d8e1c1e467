"""The pytest plugin and the battery as a user runs them, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TESTS = """
import tazza as tz

def test_step(tazza_ctx):
    assert tz.current() is tazza_ctx
    x = tazza_ctx.asarray([1.0, 2.0], dtype="float32")
    assert tazza_ctx.to_numpy(tazza_ctx.launch(lambda x: x * 2, x)).tolist() == [2.0, 4.0]
    print("ran on", tazza_ctx.device, "with seed", tazza_ctx.spec.seed)

def test_a_failure_that_nobody_asks_about(tazza_ctx):
    tazza_ctx.launch(lambda: 1 / 0)
"""


def run(folder: Path, *arguments: str) -> list[str]:
    """The lines that pytest prints."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    return done.stdout.splitlines()


def test_the_fixture_runs_on_every_backend(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(_TESTS)
    lines = run(tmp_path, "--tazza-seed=5", "test_user.py")
    for name in ("cpu:0", "sim:0"):
        assert f"PASSED test_user.py::test_step[{name}]" in lines
        assert f"ran on {name} with seed 5" in lines
        forgotten = f"ERROR test_user.py::test_a_failure_that_nobody_asks_about[{name}]"
        assert any(line.startswith(forgotten) for line in lines)
    assert "tazza: seed 5" in lines


def test_the_backend_is_chosen_by_an_option(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(_TESTS)
    lines = run(tmp_path, "--tazza-backend=sim:1", "-k", "step", "test_user.py")
    assert [line for line in lines if line.startswith("PASSED")] == ["PASSED test_user.py::test_step[sim:1]"]


def test_the_battery_runs_by_name(tmp_path: Path) -> None:
    lines = run(tmp_path, "--pyargs", "tazza.testing.contract", "--tazza-backend=cpu", "-k", "level_1 or declared")
    passed = [line for line in lines if line.startswith("PASSED")]
    assert any("test_bytes_come_back[cpu]" in line for line in passed)
    assert any("test_skips_equal_the_declaration[cpu]" in line for line in passed)
    assert any("declares no queues" in line for line in lines)
    assert " failed" not in lines[-1]
