"""The battery against every built-in device, and against simulated ones with each ability switched off."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator

import pytest

import tazza as tz
from tazza.testing import simulate
from tazza.testing.contract.battery import Target, installed_arrays, note_outcome, skip_undeclared

LATENESS = 30e-6


@dataclasses.dataclass(frozen=True)
class Setting:
    """A device in a world: simulated with these settings, or a CPU (`parts` says into how many it is split)."""

    device: str
    devices: int = 2
    without: str = ""
    parts: int = 1
    arrays: str = ""

    def __str__(self) -> str:
        if self.device.startswith("cpu"):
            return "cpu" + ("-part" if self.parts > 1 else "") + (f"-{self.arrays}" if self.arrays else "")
        return f"sim-of-{self.devices}" + (f"-no-{self.without}" if self.without else "")


SETTINGS = [
    Setting("cpu"),
    Setting("cpu", parts=2),
    *(
        pytest.param(Setting("cpu", arrays=name), marks=pytest.mark.interop)
        for name in installed_arrays(tz.device("cpu"))[1:]
    ),
    Setting("sim:0", devices=1),
    Setting("sim:1", devices=2),
    Setting("sim:5", devices=8),
    *(
        Setting("sim:0", without=ability)
        for ability in ("cross_device_wait", "peer_copy", "timing", "float64", "pinned", "ordered_memory")
    ),
]


@pytest.fixture(scope="module", params=SETTINGS, ids=str)
def setting(request: pytest.FixtureRequest) -> Setting:
    """Which device the battery runs on."""
    chosen: Setting = request.param
    if chosen.parts > len(tz.device("cpu").cores):
        pytest.skip("this machine has one processor, which cannot be split")
    return chosen


@pytest.fixture(scope="module")
def whole_target(setting: Setting) -> Iterator[Target]:
    """The device under test."""
    without = {setting.without} - {""}
    with simulate(devices=setting.devices, memory="64MiB", lateness=LATENESS, without=without):
        device = tz.device(setting.device)
        yield Target(device.split(setting.parts)[0] if setting.parts > 1 else device, arrays=setting.arrays)


@pytest.fixture
def target(request: pytest.FixtureRequest, whole_target: Target) -> Target:
    """The device under test, or a skip with what it does not declare."""
    skip_undeclared(request, whole_target)
    return whole_target


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what became of each test."""
    return note_outcome(item, (yield))
