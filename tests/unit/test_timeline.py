"""The record behind traces and reports: what it keeps, in bounded memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import tazza as tz
from tazza.core import timeline as module
from tazza.core.timeline import Series, Slice, Timeline, Usage
from tazza.hot import Account, Operation, emit, point
from tests.process.children import in_fork


@contextmanager
def recorded(limit: int = 10_000) -> Iterator[Timeline]:
    timeline = Timeline(limit)
    timeline.start()
    try:
        yield timeline
    finally:
        timeline.stop()


def named(timeline: Timeline, name: str) -> list[Slice]:
    return [one for one in timeline.slices if one.name == name]


def test_what_runs_lies_inside_the_run() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        ctx.launch(sum, [1], label="inline")
        ctx.launch(sum, [1], label="queued", stream=ctx.new_stream(label="worker")).result(timeout=30)
        ctx.synchronize(timeout=30)
    assert point.listeners is None
    for name, stream in (("inline", "cpu:0 own stream"), ("queued", "worker")):
        [one] = named(timeline, name)
        assert timeline.tracks[one.track] == ("cpu:0", stream)
        assert timeline.start_ns <= one.start_ns <= one.end_ns <= timeline.stop_ns
        [launch] = named(timeline, f"launch {name}")
        assert timeline.tracks[launch.track] == ("host", "MainThread")
        assert launch.start_ns <= one.start_ns


def test_arrows_lead_from_launch_to_run_and_from_what_was_waited_for() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        first, second = ctx.new_stream(label="first"), ctx.new_stream(label="second")
        gate = threading.Event()
        task = ctx.launch(gate.wait, 30, label="first task", stream=first)
        event = first.record()
        second.wait(event)
        after = ctx.launch(lambda value: value, task, label="second task", stream=second)
        threading.Timer(0.02, gate.set).start()
        assert after.result(timeout=30) is True
        ctx.synchronize(timeout=30)
    names = [track.name for track in timeline.tracks]
    [one], [other] = named(timeline, "first task"), named(timeline, "second task")
    launches = {(names[arrow.track], arrow.to_track) for arrow in timeline.arrows if arrow.kind == "launch"}
    assert launches == {("MainThread", one.track), ("MainThread", other.track)}
    orders = [arrow for arrow in timeline.arrows if arrow.kind == "order"]
    pairs = {(names[arrow.track], names[arrow.to_track]) for arrow in orders}
    assert {("first", "second"), ("second", "MainThread")} <= pairs
    assert all(arrow.time_ns <= arrow.to_ns for arrow in orders)
    [record] = [slice_ for slice_ in timeline.slices if slice_.kind == "record"]
    assert any(arrow.time_ns == record.start_ns for arrow in orders)


def test_figures_of_a_stream_are_exact() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        stream = ctx.new_stream(label="worker")
        for _ in range(3):
            ctx.launch(int, label="good", stream=stream)
        bad = ctx.launch(lambda: 1 / 0, label="bad", stream=stream)
        buffer = ctx.allocate(1000)
        ctx.fill(buffer, 1, stream=stream)
        with pytest.raises(ZeroDivisionError):
            bad.result(timeout=30)
        ctx.synchronize(timeout=30)
    [usage] = [timeline.usage[number] for number, track in enumerate(timeline.tracks) if track.name == "worker"]
    assert usage.counts == {"task": 4, "fill": 1}
    assert (usage.failed, usage.nbytes, usage.depth) == (1, 1000, 0)
    assert usage.tasks["good"][0] == 3
    assert usage.tasks["good"][1] >= usage.tasks["good"][2] > 0
    tracks = [track.name for track in timeline.tracks]
    runs = [one for one in timeline.slices if one.kind in ("task", "fill") and tracks[one.track] == "worker"]
    assert usage.busy_ns == sum(one.end_ns - one.start_ns for one in runs)
    assert [one.note for one in named(timeline, "bad")] == ["failed"]


def test_nested_work_counts_once() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        ctx.launch(lambda: ctx.launch(int, label="inner").result(), label="outer")
    [usage] = timeline.usage.values()
    [outer] = named(timeline, "outer")
    assert usage.counts["task"] == 2
    assert usage.busy_ns == outer.end_ns - outer.start_ns


def test_standing_still_is_counted_apart() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        gate = threading.Event()
        held = ctx.launch(gate.wait, 30, label="held", stream=ctx.new_stream(label="first"))
        second = ctx.new_stream(label="second")
        second.wait(held)
        threading.Timer(0.02, gate.set).start()
        second.synchronize(timeout=30)
    [usage] = [timeline.usage[number] for number, track in enumerate(timeline.tracks) if track.name == "second"]
    assert usage.counts["wait"] == 1
    assert usage.waiting_ns > 0
    assert usage.busy_ns == 0
    assert {timeline.tracks[one.track].name for one in named(timeline, "wait for held")} == {"second"}


def test_an_inline_stream_has_a_track_in_each_thread() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        thread = threading.Thread(target=lambda: ctx.launch(int), name="other")
        ctx.launch(int)
        thread.start()
        thread.join(30)
    assert {track.name for track in timeline.tracks if track.group == "cpu:0"} == {
        "cpu:0 own stream",
        "cpu:0 own stream in other",
    }


def test_tracks_are_kept_apart_from_dropped_streams() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        for _ in range(3):
            ctx.launch(int, stream=ctx.new_stream(label="same")).result(timeout=30)
    assert [track.name for track in timeline.tracks if track.group == "cpu:0"] == ["same"] * 3


def test_live_bytes_of_every_account_above() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        first = ctx.allocate(1 << 20)
        second = ctx.allocate(1 << 10)
        del first
        third = ctx.allocate(64)
        del second, third
    series = {one.owner: [live for _, live in one.points] for one in timeline.series}
    [own] = [values for owner, values in series.items() if owner[-1] == ctx.account.name]
    assert own == [1 << 20, (1 << 20) + 1024, 1024, 1024 + 64]
    assert {owner[0] for owner in series} == {"cpu:0"}
    assert len(series) == 2


def test_accounts_of_equal_names_are_one_owner() -> None:
    with recorded() as timeline, tz.open("cpu") as ctx:
        kept = []
        for _ in range(3):
            with ctx.memory.budget("1MiB", name="request"):
                kept.append(ctx.allocate(1024))
        kept.clear()
        ctx.memory.stats()
    [request] = [one for one in timeline.series if one.owner[-1] == "request"]
    assert [live for _, live in request.points][:3] == [1024, 2048, 3072]
    assert request.points[-1][1] == 0
    assert len(request.accounts) <= 1


def test_arrays_of_other_libraries_count_by_their_account() -> None:
    class Array:
        def __init__(self, account: Account) -> None:
            self.account = account

    with recorded() as timeline:
        account = Account("numpy under a context")
        account.charge(64, 64)
        emit(Operation("allocate", nbytes=64, subject=Array(account)))
    assert [(one.owner, [live for _, live in one.points]) for one in timeline.series] == [((account.name,), [64])]


def test_too_many_accounts_count_in_their_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACCOUNTS", 1)
    with recorded() as timeline:
        for name in ("one", "two"):
            emit(Operation("free", subject=type("Block", (), {"account": Account(name)})()))
    assert [one.owner for one in timeline.series] == [("one",)]


def test_a_full_series_keeps_its_peaks() -> None:
    account = Account("x")
    series = Series(("x",))
    series.accounts[id(account)] = account
    peak = 0
    for number in range(100_000):
        nbytes = (number * 7919) % 10_000
        account.charge(nbytes, nbytes)
        peak = max(peak, nbytes)
        series.note(number)
        account.uncharge(nbytes, nbytes)
    assert len(series.points) < 20_000
    assert max(live for _, live in series.points) == peak
    times = [time for time, _ in series.points]
    assert times == sorted(times)
    assert times[-1] == 99_999


def test_names_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NAMES", 2)
    usage = Usage()
    for name in ("a", "b", "c", "d", "a"):
        usage.add("task", name, 5, 0, False)
    assert usage.tasks == {"a": (2, 10, 5), "b": (1, 5, 5), "(other names)": (2, 10, 5)}


def test_what_there_is_no_room_for_is_counted_and_figures_stay_exact() -> None:
    with recorded(limit=5) as timeline, tz.open("cpu") as ctx:
        for _ in range(20):
            ctx.launch(int, label="small")
    assert len(timeline.slices) == 5
    assert len(timeline.arrows) <= 5
    assert timeline.lost >= 35
    [usage] = timeline.usage.values()
    assert usage.counts == {"task": 20}


def test_refusals_are_moments() -> None:
    with recorded(limit=1) as timeline:
        emit(Operation("oom", subject=Account("context on cpu:0")))
        emit(Operation("oom"))
    assert [(one.kind, one.name) for one in timeline.instants] == [("oom", "context on cpu:0")]


def test_what_still_runs_at_the_end_is_unfinished() -> None:
    gate, started = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        gate.wait(30)

    with tz.open("cpu") as ctx:
        with recorded() as timeline:
            task = ctx.launch(wait, label="long", stream=ctx.new_stream())
            assert started.wait(30)
        gate.set()
        task.result(timeout=30)
    [one] = named(timeline, "long")
    assert (one.note, one.end_ns) == ("unfinished", timeline.stop_ns)


def test_what_began_before_is_left_out() -> None:
    gate, started = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        gate.wait(30)

    with tz.open("cpu") as ctx:
        task = ctx.launch(wait, label="early", stream=ctx.new_stream())
        assert started.wait(30)
        with recorded() as timeline:
            gate.set()
            task.result(timeout=30)
            ctx.synchronize(timeout=30)
    assert named(timeline, "early") == []


def test_nothing_is_held_alive() -> None:
    import gc
    import weakref

    with recorded() as timeline:
        ctx = tz.context("cpu")
        task = ctx.launch(int, stream=ctx.new_stream())
        task.result(timeout=30)
        event = ctx.stream.record()
        alive = weakref.ref(task), weakref.ref(event), weakref.ref(ctx)
        ctx.close()
        del task, event, ctx
        gc.collect()
        assert [one() for one in alive] == [None, None, None]
    assert timeline.stop() is False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_not_recorded() -> None:
    with recorded() as timeline:

        def child() -> None:
            emit(Operation("oom"))
            assert not timeline.instants
            assert timeline.stop() is False

        with timeline._lock:  # as if another thread were inside at the fork
            in_fork(child)
        assert timeline.stop() is True
