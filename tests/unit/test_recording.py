"""Recordings: events in order, origins, a bounded history, one a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.hot import HOOKED, point


def test_events_say_who_what_and_where() -> None:
    with tz.open("cpu", memory_limit=100_000) as ctx:
        early = ctx.allocate(64, label="early")
        with ctx.memory.record() as recording:
            with ctx.memory.budget(50_000, name="decode"):
                first = ctx.allocate(1000, label="first")
            del early
            with pytest.raises(tz.OutOfMemoryError):
                ctx.allocate(200_000, label="huge")
            snapshot = ctx.memory.snapshot()
            assert "2 events" in repr(recording)
        kinds = [(event.kind, event.label, event.nbytes, event.owner) for event in snapshot.events]
        assert kinds == [
            ("allocate", "first", 1000, ("context on cpu:0", "decode")),
            ("oom", None, 200_000, ("context on cpu:0",)),
        ]
        assert "test_events_say_who_what_and_where" in snapshot.events[0].site[0]
        assert "early" not in [event.label for event in snapshot.events], "it is older than the recording"
        live = [block for segment in snapshot.segments for block in segment.blocks if block.label == "first"]
        assert live[0].site == snapshot.events[0].site
        assert ctx.memory.snapshot().events == ()
        del first
    assert point.listeners is None


@pytest.mark.skipif(not HOOKED, reason="uncompiled: NumPy's arrays are declared to be outside")
def test_numpys_arrays_are_recorded() -> None:
    with tz.open("cpu") as ctx, ctx.memory.record():
        array = np.ones(100)
        growing = np.fromiter(iter(range(1000)), np.int64)
        del array
        snapshot = ctx.memory.snapshot()
        events = [event for event in snapshot.events if event.nbytes == 800]
        assert [event.kind for event in events] == ["allocate", "free"]
        assert [event.library for event in events] == ["numpy", "numpy"]
        assert "test_recording.py" in events[0].site[0]
        assert growing.nbytes in [block.nbytes for block in snapshot.blocks]
        balance = sum(event.nbytes if event.kind == "allocate" else -event.nbytes for event in snapshot.events)
        assert balance == growing.nbytes


def test_the_history_is_bounded_and_says_so() -> None:
    with tz.open("cpu") as ctx, ctx.memory.record(events=10, sites=False):
        for _ in range(20):
            ctx.allocate(64)
        snapshot = ctx.memory.snapshot()
        assert len(snapshot.events) == 10
        assert snapshot.events_lost >= 20
        assert snapshot.events[0].site == ()


def test_one_recording_a_device_and_others_are_not_heard() -> None:
    with tz.open("cpu") as ctx, tz.open("sim:0") as sim:
        with ctx.memory.record():
            with pytest.raises(tz.errors.BusyError, match="stop that recording"):
                ctx.memory.record()
            with sim.memory.record():
                on_sim = sim.allocate(64, label="there")
                assert [event.label for event in sim.memory.snapshot().events] == ["there"]
                assert ctx.memory.snapshot().events == ()
        with ctx.memory.record() as again:
            again.stop()
            again.stop()
        memory: Any = ctx.memory
        with pytest.raises(tz.errors.ArgumentError, match="^events: got"):
            memory.record(events=0)
        del on_sim
