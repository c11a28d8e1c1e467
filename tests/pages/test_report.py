"""The report of a run as figures: what is drawn of much, and that live bytes add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core.timeline import Slice, Timeline, Track
from tazza.memory.stats import MemoryStats
from tazza.pages import report as module
from tazza.pages.document import Texts
from tazza.pages.report import RunReport
from tests.pages.snapshots import EMPTY, Made


def report_of(timeline: Timeline, **more: Any) -> RunReport:
    values: dict[str, Any] = {
        "title": "train.py",
        "facts": (("seed", "3"),),
        "outcome": "done",
        "failed": False,
        "processor_ns": 5,
        "timeline": timeline,
        "stats": MemoryStats(live=1, peak=2, limit=3),
        "snapshot": EMPTY,
        "leaks": (),
        "health": "ok",
    }
    return RunReport(**(values | more))


def test_of_many_slices_the_longest_are_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_SLICES", 3)
    timeline = Timeline(100)
    timeline.start()
    timeline.stop()
    timeline.tracks.append(Track("cpu:0", "worker"))
    timeline.slices += [Slice(0, "task", f"of {ns} ns", 100 * ns, 100 * ns + ns) for ns in (5, 1, 9, 7, 2)]
    timeline.lost = 4
    columns, left_out = module._slices(timeline, texts := Texts())
    assert [texts.all[number] for number in columns["name"]] == ["of 5 ns", "of 7 ns", "of 9 ns"]
    assert left_out == 2
    report_of(timeline).write(tmp_path / "report.html")
    assert '"slices_left_out":6' in (tmp_path / "report.html").read_text("utf-8")


def test_of_many_moments_the_highest_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOMENTS", 11)
    totals = np.arange(1000) % 37
    totals[515] = 99
    chosen = module._highest(totals)
    assert len(chosen) == 11
    assert 515 in chosen
    assert chosen[-1] == 999
    assert np.all(np.diff(chosen) > 0)


def test_bytes_of_budgets_and_contexts_add_up_to_the_peak() -> None:
    timeline = Timeline(1000)
    with tz.open("cpu") as ctx:
        timeline.start()
        kept = [ctx.allocate(1 << 10)]
        with ctx.memory.budget("8MiB", name="decode"):
            kept += [ctx.allocate(1 << size) for size in range(10, 20)]
        peak = ctx.memory.stats().live
        kept.clear()
        ctx.memory.stats()
        timeline.stop()
    drawn = module._memory(timeline)
    series = {one["name"]: one["values"] for one in drawn["series"]}
    assert max(series["context on cpu:0 / decode"]) == sum(1 << size for size in range(10, 20))
    totals = [sum(values) for values in zip(*series.values(), strict=True)]
    assert max(totals) >= peak
    assert len(drawn["times"]) == len(totals)
    assert all(time >= 0 for time in drawn["times"])


def test_nothing_allocated_draws_nothing() -> None:
    timeline = Timeline(10)
    timeline.start()
    timeline.stop()
    assert module._memory(timeline) == {"times": [], "series": []}


def test_figures_of_leaks_and_tasks() -> None:
    timeline = Timeline(1000)
    timeline.start()
    with tz.open("cpu") as ctx:
        for name in ("slow", "quick", "slow"):
            ctx.launch(lambda name=name: sum(range(20_000 if name == "slow" else 1)), label=name)
    timeline.stop()
    blocks = Made(300).snapshot.blocks
    report = report_of(timeline, leaks=blocks)
    figures = report.as_dict()
    assert [(one["name"], one["count"]) for one in figures["tasks"]] == [("slow", 2), ("quick", 1)]
    assert report.leaked == sum(block.nbytes for block in blocks)
    assert sum(one["nbytes"] for one in figures["leaks"]) == report.leaked
    assert sum(one["blocks"] for one in figures["leaks"]) == len(blocks)
    assert len(figures["leaks"]) <= len(blocks)
    sizes = [one["nbytes"] for one in figures["leaks"]]
    assert sizes == sorted(sizes, reverse=True)
