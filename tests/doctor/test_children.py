"""Child processes: what imports do there, and what two OpenMP runtimes in one real process look like."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tazza.doctor.children import _kill, _signal_name, run_child
from tazza.doctor.collect import Sources, collect
from tazza.doctor.examine import examine, judge
from tazza.doctor.facts import Facts, Imported
from tests.doctor.planted import hang_until_killed, plant

TIMEOUT = 60.0
MODULES = {
    "doctor_fine.py": "print('noise on the output')\n__version__ = '1.2'\n",
    "doctor_fails.py": "raise OSError('libmissing.so.1: cannot open shared object file')\n",
    "doctor_crashes.py": "import os\nos.abort()\n",
    "doctor_exits.py": "import sys\nprint('bye', file=sys.stderr)\nsys.exit(4)\n",
    "doctor_hangs.py": (
        "import os, subprocess, sys\n"
        "open(os.environ['DOCTOR_GATE'], 'w').close()\n"
        "subprocess.run([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    ),
    "doctor_leaves.py": (
        "import os, subprocess, sys\n"
        "read, write = os.pipe()\n"
        "subprocess.Popen([sys.executable, '-c', 'input()'], stdin=read)\n"
    ),
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that a child process can import, each broken in its way."""
    plant(tmp_path, MODULES)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONPATH", path)


def imports(*names: str, timeout: float = TIMEOUT) -> tuple[Facts, tuple[Imported, ...]]:
    facts = collect(Sources(), names, timeout=timeout)
    return facts, facts.imports


@pytest.mark.usefixtures("modules")
def test_imports_that_come_in(tmp_path: Path) -> None:
    facts, found = imports("doctor_fine", "json")
    assert found[0] == Imported("doctor_fine", "fine", "", "1.2", str(tmp_path / "doctor_fine.py"))
    assert found[1].state == "fine"
    assert facts.subject == "a child process after import of doctor_fine, json"


@pytest.mark.usefixtures("modules")
def test_an_import_that_fails_lets_the_next_one_in() -> None:
    facts, found = imports("doctor_fails", "doctor_missing", "doctor_fine")
    assert [one.state for one in found] == ["failed", "failed", "fine"]
    assert found[0].detail == "OSError: libmissing.so.1: cannot open shared object file"
    assert found[1].detail == "ModuleNotFoundError: No module named 'doctor_missing'"
    assert [finding.key for finding in judge(facts).findings if finding.severity == "error"] == ["import-failed"] * 2


@pytest.mark.usefixtures("modules")
def test_an_import_that_crashes_is_named() -> None:
    facts, found = imports("doctor_fine", "doctor_crashes", "json")
    assert [one.state for one in found] == ["fine", "crashed", "not reached"]
    assert found[1].detail == "killed by SIGABRT"
    assert facts.subject == "this process"
    assert "import-crashed" in {finding.key for finding in judge(facts).findings}


@pytest.mark.usefixtures("modules")
def test_an_import_that_ends_the_process_is_named() -> None:
    _, found = imports("doctor_exits", "json")
    assert [(one.state, one.detail) for one in found] == [
        ("failed", "exit code 4; bye"),
        ("not reached", "an import before it ended the process"),
    ]


@pytest.mark.usefixtures("modules")
def test_an_import_that_hangs_ends_by_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCTOR_GATE", str(tmp_path / "gate"))
    hang_until_killed(monkeypatch, tmp_path / "gate")
    facts, found = imports("doctor_fine", "doctor_hangs", timeout=0.1)
    assert [one.state for one in found] == ["fine", "hung"]
    assert found[1].detail == "no answer within 0.1 s"
    assert "import-hung" in {finding.key for finding in judge(facts).findings}


@pytest.mark.usefixtures("modules")
def test_a_process_that_an_import_leaves_behind_keeps_nobody() -> None:
    _, found = imports("doctor_leaves")
    assert found[0].state == "fine"


def test_half_a_line_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = plant(tmp_path, {"speaks.py": "print('{\"a\": 1}')\nprint('[2]')\nprint('{\"a\"')\n"}) / "speaks.py"
    monkeypatch.setattr("tazza.doctor.children.__file__", str(tmp_path / "children.py"))
    child = run_child(script.name, [], timeout=TIMEOUT)
    assert child.said == ({"a": 1},)
    assert child.last("a") == 1
    assert child.last("b") is None


def test_without_process_groups_the_child_alone_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "killpg", raising=False)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        _kill(process)
        assert process.returncode


def test_a_child_that_cannot_be_killed_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that sleeps in a driver's part of the kernel."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(os, "killpg", lambda group, number: None, raising=False)
        monkeypatch.setattr("tazza.doctor.children._DEATH", 0.01)
        _kill(process)
        assert process.returncode is None


def test_how_a_child_ended() -> None:
    assert _signal_name(-11) == "killed by SIGSEGV"
    assert _signal_name(0xC0000005) == "ended with 0xc0000005"


@pytest.mark.interop
def test_two_openmp_runtimes_in_a_real_process() -> None:
    for name in ("torch", "sklearn"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: it brings an OpenMP runtime of its own")
    report = examine(["torch", "sklearn.linear_model"], timeout=TIMEOUT)
    assert [(one.state, one.detail) for one in report.facts.imports] == [("fine", "")] * 2
    loaded = report.facts.loaded("OpenMP")
    if len(loaded) < 2:
        pytest.skip("torch and scikit-learn share one OpenMP runtime here")
    assert {library.owner.partition(" ")[0] for library in loaded} == {"torch", "scikit-learn"}
    assert {"openmp-copies", "openmp-mixed", "openmp-clash"} & {finding.key for finding in report.findings}
    assert report.coherence()["OpenMP"] is False
    assert {"numpy", "scipy"} <= {library.owner.partition(" ")[0] for library in report.facts.loaded("BLAS")}


@pytest.mark.interop
def test_one_runtime_alone_is_coherent() -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: it brings an OpenMP runtime of its own")
    report = examine(["torch"], timeout=TIMEOUT)
    assert [one.state for one in report.facts.imports] == ["fine"]
    assert report.coherence()["OpenMP"] is True
    assert not {finding.key for finding in report.findings} & {"openmp-copies", "openmp-mixed", "openmp-clash"}
