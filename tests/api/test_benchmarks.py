"""The benchmark harness judges rightly, and every area runs."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.__main__ import AREAS, main
from benchmarks.compare import peer
from benchmarks.harness import Budget, Case, Missing, judge, measure
from benchmarks.report import BUILD


def test_examples_of_the_harness() -> None:
    assert doctest.testmod(harness).failed == 0


def test_ratios_are_taken_within_a_round() -> None:
    # The machine slowed down tenfold in the last two rounds: medians of each side alone would say 0.2.
    results = {"a.x.ours": [1.0, 1.0, 10.0, 10.0, 10.0], "a.x.theirs": [2.0, 2.0, 20.0, 20.0, 20.0]}
    [verdict] = judge([Budget("a.x.ours", "a.x.theirs", at_most=0.6)], results)
    assert verdict.ratio == 0.5
    assert verdict.verdict == "ok"


@pytest.mark.parametrize(
    ("at_most", "gated", "expected"), [(2.0, True, "ok"), (0.5, True, "MISSED"), (0.5, False, "over (reported)")]
)
def test_verdicts(at_most: float, gated: bool, expected: str) -> None:
    [verdict] = judge([Budget("a.x.a", "a.x.b", at_most, gated)], {"a.x.a": [1.0], "a.x.b": [1.0]})
    assert verdict.verdict == expected


def test_a_missing_peer_is_listed_and_never_an_error() -> None:
    def build(module: object) -> Case:
        raise AssertionError("must not be called")

    missing = peer("a.x.nobody", "no_such_package_of_ours", build)
    assert isinstance(missing, Missing)
    assert "not installed" in missing.reason
    assert judge([Budget("a.x.us", "a.x.nobody", 1.0)], {"a.x.us": [1.0]})[0].verdict == "not measured"


def test_a_star_stands_for_the_geometric_mean_of_all_pairs() -> None:
    results = {"a.x.ours": [1.0] * 3, "a.x.theirs": [2.0] * 3, "a.y.ours": [8.0] * 3, "a.y.theirs": [1.0] * 3}
    assert judge([Budget("a.*.ours", "a.*.theirs", at_most=2.0)], results)[0].ratio == pytest.approx(2.0)
    alone = results | {"a.z.ours": [1.0] * 3}
    assert judge([Budget("a.*.ours", "a.*.theirs", at_most=2.0)], alone)[0].verdict == "not measured"
    assert judge([Budget("b.*.ours", "b.*.theirs", at_most=2.0)], results)[0].verdict == "not measured"


class LineTimer:
    """Stands in for `timeit.Timer`: a run takes a millisecond for each line of the statement."""

    def __init__(self, statement: str, setup: str, globals: dict[str, object]) -> None:
        self.lines = len(statement.splitlines())

    def timeit(self, number: int) -> float:
        return number * self.lines * 1e-3

    def repeat(self, repeat: int, number: int) -> list[float]:
        return [self.timeit(number)] * repeat


def test_times_are_per_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.timeit.Timer", LineTimer)
    one, ten = Case("a.x.one", "f()\n", {}), Case("a.x.ten", "f()\n" * 10, {}, operations=10)
    results = measure([one, ten], rounds=4, sample_seconds=0.05)
    assert results == {"a.x.one": [pytest.approx(1e-3)] * 4, "a.x.ten": [pytest.approx(1e-3)] * 4}


def test_long_cases_get_fewer_samples_and_their_budget_pairs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.harness.timeit.Timer", LineTimer)
    cases = [
        Case("a.x.ours", "f()\n", {}, rounds=2),
        Case("a.x.theirs", "f()\n" * 2, {}, rounds=2),
        Case("a.y", "f()", {}),
    ]
    results = measure(cases, rounds=5, sample_seconds=0.01)
    assert [len(results[case.id]) for case in cases] == [2, 2, 5]
    assert judge([Budget("a.x.ours", "a.x.theirs", 1.0)], results)[0].ratio == pytest.approx(0.5)


def test_a_run_prints_its_build_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.json"
    assert main(["context", "--rounds", "1", "--sample-ms", "0.1", "--json", str(target)]) == 0
    printed = capsys.readouterr().out
    assert "context.with.tazza" in printed
    assert printed.count(BUILD) > 3
    document = json.loads(target.read_text("utf-8"))
    assert document["machine"]["build"] in ("compiled", "uncompiled")
    assert document["seconds"]["context.with.tazza"] > 0


@pytest.mark.parametrize("area", ["event", "hooks", "traces"])
def test_areas_run(area: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([area, "--rounds", "1", "--sample-ms", "0.1"]) == 0
    assert f"  {area}." in capsys.readouterr().out


def test_unknown_areas_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["nonsense"])
    assert info.value.code == 2
    message = capsys.readouterr().err
    assert all(area in message for area in AREAS)
