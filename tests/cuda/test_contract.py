"""The contract battery on emulated devices, and the programs of ``inside_*.py``, under jitter and several seeds."""

from __future__ import annotations

import importlib.util

import pytest

from tests.cuda.conftest import ROOT, Child

PEERS = {2: ["all", "none"], 4: ["all", "none", "0-1,1-0"]}
JITTER = (50, 100, 300, 1000)
"""Microseconds, at most, that each operation starts late."""

SEEDS = range(20)

World = tuple[int, int, int, str]


def world(seed: int) -> World:
    """Devices, jitter, seed and peer access of the world of a seed: every pair of devices and jitter comes up."""
    devices = 2 + 2 * (seed // len(JITTER) % 2)
    return devices, JITTER[seed % len(JITTER)], seed, PEERS[devices][seed % len(PEERS[devices])]


def named(one: World) -> str:
    """A world in words."""
    return "seed-{2}-{0}-devices-{1}-us-peers-{3}".format(*one)


WORLDS = [world(seed) for seed in SEEDS]

OTHERWISE = {"inside_dnn", "inside_handles", "inside_measure"}  # want the emulated libraries: test_libraries.py
OTHERWISE |= {"inside_front_end", "inside_front_end_failures"}  # these too: test_front_end.py
OTHERWISE |= {"inside_calls"}  # order nothing that could be late: test_calls.py
INSIDE = sorted({path.stem for path in ROOT.glob("tests/cuda/inside_*.py")} - OTHERWISE)


@pytest.mark.slow
@pytest.mark.parametrize("one", WORLDS, ids=named)
def test_the_battery_passes(emulated: Child, one: World) -> None:
    battery = ("--pyargs", "tazza.testing.contract", "--tazza-backend=cuda", f"--tazza-seed={one[2]}")
    _pytest(emulated, one, *battery)


@pytest.mark.slow
@pytest.mark.parametrize("file", INSIDE)
@pytest.mark.parametrize("one", WORLDS[1::6], ids=named)
def test_the_programs_inside_pass(emulated: Child, one: World, file: str) -> None:
    if file == "inside_numba" and importlib.util.find_spec("numba") is None:
        pytest.skip("needs numba: pip install './emulator[test]'")
    _pytest(emulated, one, f"tests/cuda/{file}.py")


def _pytest(emulated: Child, one: World, *arguments: str) -> None:
    devices, jitter, seed, peers = one
    options = ("-q", "-n0", "-p", "no:cacheprovider", "-p", "no:randomly", "--strict-markers")
    out = emulated("", "-m", "pytest", *options, *arguments, devices=devices, jitter_us=jitter, seed=seed, peers=peers)
    assert " passed" in out
