"""``tazza doctor`` on the terminal and as JSON, and its guide."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tazza.cli import doctor
from tazza.cli.exits import ExitCode
from tazza.cli.main import main
from tazza.doctor import Report
from tazza.doctor.examine import judge
from tazza.doctor.facts import Facts
from tazza.doctor.findings import KINDS
from tests.doctor.planted import GIB, GOMP, HEALTHY, change, plant

Capture = pytest.CaptureFixture[str]
GUIDE = Path(__file__).parents[2] / "docs/guides/doctor.md"


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> list[Facts]:
    """The facts that the command finds, in a list that a test may fill with others."""
    held = [HEALTHY]

    def examine(*arguments: object, **named: object) -> Report:
        return judge(held[0])

    monkeypatch.setattr(doctor, "examine", examine)
    return held


@pytest.mark.usefixtures("facts")
def test_a_healthy_system(capsys: Capture) -> None:
    assert main(["doctor"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "this process" in text.splitlines()[0]
    assert "numpy 2.4.6" in text
    assert "48.0 GiB free of 64.0 GiB\n" in text
    assert "up to 12.4, devices: 1" in text
    assert text.rstrip().endswith("Findings: 0 errors, 0 warnings, 0 notes")


def test_findings_come_last_and_the_worst_first(facts: list[Facts], capsys: Capture) -> None:
    other = replace(GOMP, path="/x/libgomp.so.1", owner="scikit-learn 1.9.1")
    wrong = replace(
        change("driver", state="hung", call="cuInit", detail="no answer within 60 s"),
        libraries=(*HEALTHY.libraries, other, replace(other, path="/y/libgomp.so.1", loaded=False)),
        processors=replace(HEALTHY.processors, quota=4.0),
        memory=replace(HEALTHY.memory, total=60 * GIB, shared_total=None, groups=()),
        packages=(),
        pools=(),
        unknown=("the weather: no window",),
    )
    facts[0] = replace(wrong, memory=replace(wrong.memory, total=wrong.memory.machine_total))
    assert main(["doctor"]) == ExitCode.UNHEALTHY
    text = capsys.readouterr().out
    assert "loaded, see below" in text
    assert "8 of 8, time of 4" in text
    assert "the weather: no window" in text
    last = text[text.index("Findings: ") :]
    assert last.startswith("Findings: 1 error, 1 warning, 1 note\n")
    order = [last.index(word) for word in ("driver-hung", "openmp-copies", "cpu-quota")]
    assert order == sorted(order)
    assert "To do: reinstall the NVIDIA driver" in last
    assert max(map(len, last.splitlines())) <= 120


def test_nothing_to_show(facts: list[Facts], capsys: Capture) -> None:
    facts[0] = replace(change("driver", library="", cuda="", nodes=False, module_version=""), libraries=(), packages=())
    assert main(["doctor"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "Libraries" not in text
    assert "driver-absent: no NVIDIA driver" in text


def test_json(facts: list[Facts], capsys: Capture) -> None:
    facts[0] = replace(change("driver", state="crashed", call="cuInit"), environment=(("LD_LIBRARY_PATH", "/x"),))
    assert main(["doctor", "--json"]) == ExitCode.UNHEALTHY
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == 7
    assert document["healthy"] is False
    assert document["count"] == {"error": 1, "warning": 0, "note": 0}
    assert document["findings"][0]["key"] == "driver-crashed"
    assert document["libraries"][0]["owner"] == "numpy 2.4.6"
    assert document["environment"] == {"LD_LIBRARY_PATH": "/x"}
    assert document["preloaded"] == {}
    assert set(document["versions"]) == {"tazza", "python", "numpy"}


def test_a_child_is_examined(capsys: Capture) -> None:
    assert main(["doctor", "--json", "--import", "json", "--import", "email.mime"]) in (0, ExitCode.UNHEALTHY)
    document = json.loads(capsys.readouterr().out)
    assert document["subject"] == "a child process after import of json, email.mime"
    assert [one["state"] for one in document["imports"]] == ["fine", "fine"]


def test_a_broken_import_is_an_error(capsys: Capture) -> None:
    assert main(["doctor", "--import", "no_module_of_this_name"]) == ExitCode.UNHEALTHY
    assert "import-failed: import no_module_of_this_name: ModuleNotFoundError" in capsys.readouterr().out


def test_a_file_in_this_folder_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    plant(tmp_path, {"threadpoolctl.py": ""})
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == ExitCode.UNHEALTHY
    assert "package-shadowed" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--import", "a b"], ["--timeout", "0"]])
def test_wrong_values(capsys: Capture, arguments: list[str]) -> None:
    assert main(["doctor", *arguments]) == ExitCode.USAGE
    assert "expected" in capsys.readouterr().err


def test_the_guide_lists_every_finding_as_the_code_knows_it() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (error|warning|note) \| (.*) \|$", GUIDE.read_text("utf-8"), re.MULTILINE)
    assert [(key, severity, why) for key, severity, why in rows] == [
        (key, kind.severity.value, kind.why) for key, kind in KINDS.items()
    ]
