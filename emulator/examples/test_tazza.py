"""Tests of a program on tazza: its results under jitter, its memory limit, a device that fails, and what it leaves."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from cuda_emulator import Emulator

tz = pytest.importorskip("tazza")

import tazza_pipeline  # noqa: E402  tazza may be missing

DEVICES = ["cuda:0", "cuda:1"]


@pytest.fixture(autouse=True)
def caches_go_back(cuda_emulator: Emulator) -> Iterator[None]:
    """tazza keeps freed memory for reuse; given back, the strict check of pytest.ini sees what is really left.

    After a failure contexts do not wait for their work, and memory that a queue still uses is not given back.
    """
    yield
    assert cuda_emulator.wait_idle()
    for name in DEVICES:
        with tz.open(name) as ctx:
            assert ctx.memory.stats().live == 0
            ctx.memory.trim()


def batches(count: int) -> list[np.ndarray]:
    return [np.full(1000, number, "float32") for number in range(count)]


def test_results_are_right_whatever_runs_late() -> None:
    for number, result in enumerate(tazza_pipeline.process(batches(40), DEVICES)):
        np.testing.assert_array_equal(result, np.full(2000, number, "float32"))


def test_too_large_a_batch_is_an_error_that_says_who_holds_what(cuda_emulator: Emulator) -> None:
    with pytest.raises(tz.OutOfMemoryError) as caught:
        tazza_pipeline.process([np.zeros(1 << 20)], DEVICES)
    assert caught.value.limit == 1 << 20


def test_a_driver_without_memory_is_an_error_and_no_crash(cuda_emulator: Emulator) -> None:
    with cuda_emulator.injecting("cuMemAlloc:2+:OUT_OF_MEMORY"), pytest.raises(tz.OutOfMemoryError):
        tazza_pipeline.process(batches(400), DEVICES, memory_limit="1GiB")


BROKEN = """
import cuda_emulator, pytest, numpy as np, tazza as tz, tazza_pipeline
emulator = cuda_emulator.start()
batches = [np.ones(1000, "float32")] * 8
with emulator.injecting("@copy:3:ILLEGAL_ADDRESS:device=1"), pytest.raises(tz.errors.BackendError):
    tazza_pipeline.process(batches, ["cuda:0", "cuda:1"])
assert len(tazza_pipeline.process(batches, ["cuda:0"])) == 8
with pytest.raises(tz.errors.DeviceLostError, match="ILLEGAL_ADDRESS"):
    tz.context("cuda:1")
"""


def test_a_broken_device_is_told_and_the_other_one_works_on(cuda_emulator: Emulator) -> None:
    """In a process of its own, as a device that is lost stays so until the process ends, as on hardware."""
    subprocess.run([sys.executable, "-c", BROKEN], env=cuda_emulator.environment(), check=True, timeout=60)
