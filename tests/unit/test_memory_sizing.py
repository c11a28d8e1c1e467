"""Sizes and growth, and what they reserve on recorded traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tazza.hot import Account
from tazza.memory.sizing import round_up, segment_nbytes, small_below, surplus
from tazza.memory.stats import MemoryStats
from tests.unit.hot_fakes import make_pool

TRACES = Path(__file__).parents[2] / "benchmarks" / "traces"


@given(st.integers(0, 1 << 62), st.sampled_from([64, 256, 4096]))
def test_round_up_is_the_least_multiple(nbytes: int, unit: int) -> None:
    rounded = round_up(nbytes, unit)
    assert rounded % unit == 0
    assert nbytes <= rounded < nbytes + unit


@given(st.integers(1, 1 << 30), st.integers(0, 1 << 40))
def test_segments_hold_the_request_and_large_ones_nothing_else(units: int, peak: int) -> None:
    granted = 64 * units
    nbytes = segment_nbytes(granted, peak, 64)
    assert nbytes % 64 == 0
    assert nbytes >= granted
    if granted >= small_below(peak):
        assert nbytes == granted


def test_surplus_is_what_exceeds_a_tenth_of_the_peak() -> None:
    assert surplus(1000, 100, 1000) == 0
    assert surplus(1000, 200, 1000) == 100


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.npz")), ids=lambda path: path.stem)
def test_reserved_stays_close_to_live_on_real_training(path: Path) -> None:
    pool, _ = make_pool()
    lane, account = pool.new_lane(), Account("trace")
    blocks = []
    live = peak = 0
    with np.load(path) as archive:
        events = archive["events"].tolist()
    for event in events:
        if event > 0:
            blocks.append(pool.take(event, lane, account))
            live += event
            peak = max(peak, live)
        else:
            live -= blocks[-1 - event].requested
            pool.give(blocks[-1 - event])
    assert pool.reserved_peak <= 1.15 * peak
    assert account.peak <= 1.01 * peak


def test_statistics_have_torch_names() -> None:
    stats = MemoryStats(live=64, peak=128, allocated_bytes=64, reserved_bytes=256, allocations=3, frees=2)
    torch_names = stats.as_torch()
    assert (stats.active_bytes, stats.active_bytes_peak) == (64, 128)
    assert torch_names["allocated_bytes.all.current"] == 64
    assert torch_names["reserved_bytes.all.current"] == 256
    assert torch_names["allocation.all.current"] == 1
