"""The contract battery on emulated devices, and the programs of ``inside_*.py``, under jitter and several seeds."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cuda.conftest import ROOT, Child

WORLDS = [(2, 0, 0, "all"), (4, 300, 1, "all"), (2, 300, 2, "none"), (4, 1000, 3, "0-1,1-0")]
NAMES = ["two", "four-late", "two-late-no-peers", "four-later-two-peers"]


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "jitter", "seed", "peers"), WORLDS, ids=NAMES)
def test_the_battery_passes(emulated: Child, devices: int, jitter: int, seed: int, peers: str) -> None:
    battery = ("--pyargs", "tazza.testing.contract", "--tazza-backend=cuda", f"--tazza-seed={seed}")
    _pytest(emulated, *battery, devices=devices, jitter_us=jitter, seed=seed, peers=peers)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "jitter", "seed", "peers"), WORLDS, ids=NAMES)
def test_the_programs_inside_pass(emulated: Child, devices: int, jitter: int, seed: int, peers: str) -> None:
    files = sorted(
        str(path.relative_to(ROOT)) for path in ROOT.glob("tests/cuda/inside_*.py") if path.stem != "inside_handles"
    )
    assert files
    _pytest(emulated, *files, devices=devices, jitter_us=jitter, seed=seed, peers=peers)


def _pytest(emulated: Child, *arguments: str, **settings: Any) -> None:
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers")
    out = emulated("", "-m", "pytest", *options, *arguments, **settings)
    assert " passed" in out
