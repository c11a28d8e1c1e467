"""The README and the examples: every block of Python runs, and every setting is described."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cuda_emulator.settings import TABLE, Settings

from .conftest import Script

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_code_of_the_readme_runs(block: str, python: Script) -> None:
    done = python(block)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert list(rows) == list(TABLE)
    said = {name: rows[name].strip() for name in TABLE if name not in ("faults", "trace", "version")}
    assert Settings.of(**said) == Settings()


def test_the_ci_job_has_ten_lines() -> None:
    job = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert job
    assert len(job[1].splitlines()) <= 10


@pytest.mark.parametrize("seed", range(3))
def test_examples_pass_under_seeds(seed: int, python: Script) -> None:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini", f"--cuda-seed={seed}", "."]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT / "examples", capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout


def test_the_example_of_a_trace_writes_one(python: Script, tmp_path: Path) -> None:
    done = python((ROOT / "examples" / "trace.py").read_text())
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ calls and \d+ operations are in .*chrome\.json\n", done.stdout)
    assert (tmp_path / "chrome.json").stat().st_size > 1000
