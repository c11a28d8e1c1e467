"""The benchmark harness judges rightly, and every area runs."""

from __future__ import annotations

import doctest
import importlib.util
import json
from pathlib import Path
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

from benchmarks import bench_demo_step, bench_dnn, floor_dnn, harness
from benchmarks.__main__ import AREAS, main
from benchmarks.compare import peer
from benchmarks.dnn_peers import arrays_of
from benchmarks.dnn_shapes import CONVOLUTIONS, Convolution, Matmul
from benchmarks.harness import Budget, Case, Missing, judge, measure
from benchmarks.onednn_direct import Engine
from benchmarks.report import BUILD
from tazza.dnn import ReferenceDnn


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


def test_the_area_of_dnn_libraries_compares_every_side_and_has_budgets_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    works: bench_dnn.Works = [(Convolution(3, 8, 4, 3), 1), (Convolution(4, 6, 8, 1, 2), 2), (Matmul(2, 3, 4), 1)]
    area = bench_dnn.area(works, dnn="reference")
    cases = [case for case in area.cases if isinstance(case, Case)]
    monkeypatch.setattr("benchmarks.dnn_peers.SETTLE", 0.0)
    with area.scope:
        seen = measure(cases, rounds=1, sample_seconds=1e-6)
    assert {name for name in seen if name.endswith(".tazza")} == {
        "dnn.conv1-nchw-3x8-k3-4.tazza",
        "dnn.conv1-nhwc-3x8-k3-4.tazza",
        "dnn.conv2-nchw-4x6-k1-8-s2.tazza",
        "dnn.conv2-nhwc-4x6-k1-8-s2.tazza",
        "dnn.matmul-2x3x4.tazza",
    }
    peers = {name for name in seen if not name.endswith(".tazza")}
    verdicts = judge(area.budgets, seen)
    assert {v.budget.peer for v in verdicts if v.ratio is not None and "*" not in v.budget.peer} == peers
    missing = {case.id.rpartition(".")[2] for case in area.cases if isinstance(case, Missing)}
    for verdict in verdicts:
        assert (verdict.ratio is None) == any(verdict.budget.peer.rpartition(".")[2].startswith(one) for one in missing)


@pytest.mark.parametrize("work", [Convolution(3, 8, 4, 3), Convolution(16, 8, 8, 1, 2), Matmul(3, 5, 7)])
def test_every_way_of_the_floor_has_the_result_of_the_formula(work: Convolution | Matmul) -> None:
    try:
        engine = Engine()
    except OSError as error:
        pytest.skip(f"oneDNN is not installed: {error}")
    arrays = arrays_of(work, 2)
    plain = arrays.x["nchw"].astype(np.float64)
    if isinstance(work, Matmul):
        expected = plain @ arrays.w
    else:
        options: Any = {"stride": work.stride, "padding": work.padding}
        expected = ReferenceDnn(xp).conv2d(plain, arrays.w.astype(np.float64), **options)
    for layout in arrays.x:
        ways = floor_dnn.floor_calls(engine, work, arrays, layout)
        assert ways
        for run, y in ways.values():
            run()
            np.testing.assert_allclose(y, expected, atol=1e-5)


def test_the_floor_is_the_fastest_way_beside_each_peer() -> None:
    results = {
        "a.nchw.torch": [2.0, 2.0],
        "a.nchw.onednn any (one)": [4.0, 3.0],
        "a.nchw.onednn last (two, three)": [1.0, 1.2],
        "a.nchw.onnxruntime": [1.0, 1.0],
    }
    [row] = floor_dnn.rows_of(results)
    assert (row.shape, row.layout, row.way, row.seconds) == ("a", "nchw", "last (two, three)", 1.1)
    assert row.ratios == {"torch": pytest.approx(0.55), "onnxruntime": pytest.approx(1.1)}
    assert row.least == {"torch": pytest.approx(0.5), "onnxruntime": pytest.approx(1.0)}


def test_the_area_of_the_demos_step_makes_equal_steps_on_both_sides() -> None:
    area = bench_demo_step.area((4,), dnn="reference")
    steps: list[Any] = [case.names["step"] for case in area.cases if isinstance(case, Case)]
    assert len(steps) == 1 + (importlib.util.find_spec("torch") is not None)
    # Four images are learned by heart: the loss, next to last in what a step returns, falls.
    with area.scope:
        for step in steps:
            losses = [float(step()[-2]) for _ in range(20)]
            assert losses[-1] < 0.7 * losses[0]


def test_the_convolutions_are_those_of_resnet_50() -> None:
    network, size, channels = [Convolution(3, 224, 64, 7, 2)], 56, 64
    for width, blocks, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            stride = 1 if block else first
            network += [Convolution(channels, size, width, 1), Convolution(width, size, width, 3, stride)]
            if block == 0:
                network.append(Convolution(channels, size, 4 * width, 1, stride))
            size, channels = size // stride, 4 * width
            network.append(Convolution(width, size, channels, 1))
    assert len(network) == 53
    assert set(network) == set(CONVOLUTIONS)
    # torchvision states 4.09 thousand million multiplications, the classifier among them.
    products = [one.channels * one.kernel**2 * one.filters * one.result_size**2 for one in network]
    assert sum(products) + 2048 * 1000 == 4_089_184_256


def test_unknown_areas_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["nonsense"])
    assert info.value.code == 2
    message = capsys.readouterr().err
    assert all(area in message for area in AREAS)
