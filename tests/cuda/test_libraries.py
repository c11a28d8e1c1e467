"""cuBLAS, cuDNN and cuRAND on emulated devices, with the emulator's own libraries; each run in a child process."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.conftest import Child

WORLDS = [(2, 0, 0), (2, 300, 1), (3, 1000, 2)]
OPTIONS = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers")


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "jitter", "seed"), WORLDS, ids=["two", "two-late", "three-later"])
def test_the_programs_inside_pass(emulated: Child, devices: int, jitter: int, seed: int) -> None:
    settings: dict[str, Any] = {"devices": devices, "jitter_us": jitter, "seed": seed, "libraries": True}
    out = emulated("", "-m", "pytest", *OPTIONS, "tests/cuda/inside_handles.py", **settings)
    assert " passed" in out
