"""A directory of its own for the shared segments of one test, as other tests, in other processes, sweep too."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core import segment

__all__ = ["ctx", "directory", "names", "needs_names", "numbers", "read", "use"]

SHM = Path("/dev/shm")

needs_names = pytest.mark.skipif(
    os.name != "posix" or not SHM.is_dir(), reason="this system has no shared memory with names and locks"
)


def use(directory: str) -> None:
    """Have this process keep its segments there; for children of a test, before all else."""
    segment._DIRECTORY = directory  # type: ignore[misc]


def names(directory: str) -> list[str]:
    """What is there."""
    return sorted(os.listdir(directory))


def _ours() -> set[str]:
    return {name for name in os.listdir(SHM) if name.startswith(f"tazza-{os.getpid()}-")}


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The directory; nothing may be left in it, nor in the system's own, when the test ends."""
    before, made = _ours(), tempfile.mkdtemp(prefix="tazza-tests-", dir=SHM)
    monkeypatch.setattr(segment, "_DIRECTORY", made)
    try:
        yield made
        segment.sweep()
        assert names(made) == []
        assert _ours() == before
    finally:
        shutil.rmtree(made)


@pytest.fixture(params=["cpu", "sim:0"])
def ctx(request: pytest.FixtureRequest, directory: str) -> Iterator[tz.Context]:
    with tz.open(request.param) as made:
        yield made
        gc.collect()
        assert made.memory.shared.live == 0


def numbers(ctx: tz.Context, count: int = 10) -> tz.Buffer:
    """A shared array of 0, 1, 2 and so on; the array that wrote it is gone."""
    made = ctx.memory.shared.allocate(8 * count, dtype="int64", label="numbers")
    np.asarray(made[:])[:] = range(count)
    return made


def read(buffer: tz.Buffer) -> Any:
    return np.asarray(buffer[:]).tolist()
