"""The benchmark of the overhead runs on the emulator."""

from __future__ import annotations

import pytest

from benchmarks import bench_cuda, floor_cuda
from tests.cuda.conftest import Child


@pytest.mark.slow
def test_the_same_work_is_timed_through_all_three(emulated: Child) -> None:
    out = emulated("", "-m", "benchmarks", "cuda", "--rounds", "1", "--sample-ms", "0.1")
    for kind in bench_cuda.KINDS:
        for who in ("tazza", *bench_cuda.PEERS):
            assert f"cuda.{kind}_emulator.{who} " in out


@pytest.mark.slow
def test_calls_are_timed_while_their_queues_are_held(emulated: Child) -> None:
    out = emulated("", "-m", "benchmarks.floor_cuda", "--rounds", "2")
    for kind in floor_cuda.KINDS:
        for who in ("tazza", *bench_cuda.PEERS):
            assert f"{kind:16} {who:10} " in out
    for floor in floor_cuda.FLOORS:
        assert f"{'record_and_wait':16} {floor:10} " in out
