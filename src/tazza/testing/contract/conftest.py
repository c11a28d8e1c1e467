"""Fixtures of the battery when it runs by itself: ``pytest --pyargs tazza.testing.contract``."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tazza.core.device import device
from tazza.errors import TazzaError
from tazza.testing.contract.battery import Target, installed_arrays, note_outcome, skip_undeclared
from tazza.testing.plugin import backend_names, seed_of
from tazza.testing.simulation import simulate


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the whole battery on each device, and again for each further array library of it that is installed."""
    if "whole_target" in metafunc.fixturenames:
        known = [(name, arrays) for name in backend_names(metafunc.config) for arrays in _array_libraries(name)]
        names = [f"{name}-{arrays}" if arrays else name for name, arrays in known]
        metafunc.parametrize("whole_target", known, ids=names, indirect=True, scope="session")


def _array_libraries(name: str) -> list[str]:
    """The default as an empty string, and what else there is."""
    try:
        return ["", *installed_arrays(device(name))[1:]]
    except TazzaError:  # the tests will say what is wrong with the device
        return [""]


@pytest.fixture(scope="session")
def whole_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """The device under test; simulated ones are fresh."""
    seed = seed_of(request.config)
    with simulate(devices=2, memory="64MiB", seed=seed):
        name, arrays = request.param
        yield Target(device(name), seed, arrays)


@pytest.fixture
def target(request: pytest.FixtureRequest, whole_target: Target) -> Target:
    """The device under test, or a skip with what it does not declare."""
    skip_undeclared(request, whole_target)
    return whole_target


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what became of each test."""
    return note_outcome(item, (yield))
