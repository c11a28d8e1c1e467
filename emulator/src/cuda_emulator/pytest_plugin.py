"""The pytest plugin: ``pytest --cuda-emulator`` starts the emulator before any test module, or conftest, imports CUDA.

Every setting is an option (``--cuda-devices``) and a line of the ini file (``cuda_devices``); CUDA_EMULATOR_* count
where neither is given. After each test the faults are again those of the settings. The fixture ``cuda_emulator`` is the
Emulator.
"""

import gc
import random
from collections.abc import Generator
from typing import Any

import pytest

from cuda_emulator.errors import EmulatorError
from cuda_emulator.running import Emulator, start_with, started
from cuda_emulator.settings import TABLE, Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options, and the same as lines of the ini file."""
    group = parser.getgroup("cuda-emulator", "CUDA driver emulator")
    for name, text in (
        ("emulator", "run the tests on emulated CUDA devices"),
        ("strict", "fail a test that leaves memory or a hazard behind"),
    ):
        group.addoption(f"--cuda-{name}", action="store_true", default=None, help=text)
        parser.addini(f"cuda_{name}", text, type="bool", default=False)
    for name, option in TABLE.items():
        text = option.help + ("; random draws one" if name == "seed" else "")
        group.addoption(f"--cuda-{name.replace('_', '-')}", metavar=option.metavar, default=None, help=text)
        parser.addini(f"cuda_{name}", text, default="")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Starts the emulator, if it was asked for."""
    if not _value(early_config, "cuda_emulator"):
        return
    given = {name: _value(early_config, f"cuda_{name}") or None for name in TABLE}
    if given["seed"] == "random":
        given["seed"] = str(random.SystemRandom().randrange(2**32))
    try:
        start_with(Settings.from_environment(**given))
    except (ValueError, EmulatorError) as error:
        raise pytest.UsageError(f"--cuda-emulator: {error}") from error


def pytest_report_header() -> str | None:
    """The settings, with the seed, at the top of the run."""
    emulator = started()
    return f"cuda emulator: {emulator.settings}" if emulator else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says with each failure under which seed it happened."""
    report = yield
    emulator = started()
    if emulator and report.failed:
        again = f"--cuda-seed={emulator.settings.seed} draws the same"
        report.sections.append(("cuda emulator", f"{emulator.settings}; {again}"))
    return report


@pytest.fixture(autouse=True)
def _cuda_faults_end_with_the_test() -> Generator[None, None, None]:
    yield
    emulator = started()
    if emulator:
        emulator.faults = emulator.settings.faults


@pytest.fixture(autouse=True)
def _cuda_strict(pytestconfig: pytest.Config) -> Generator[None, None, None]:
    """Fails a test that ends with more live memory, or more hazards, than it began with."""
    emulator = started()
    if emulator is None or not _value(pytestconfig, "cuda_strict"):
        yield
        return
    bytes_before, hazards_before = _kept(emulator), emulator.report()["n_hazards"]
    yield
    kept = _kept(emulator) - bytes_before
    hazards = emulator.report()["hazards"][hazards_before:]
    said = [f"{hazard['kind']}: {hazard['text']}" for hazard in hazards]
    if kept > 0:
        said.append(f"{kept} bytes of device, pinned or managed memory were allocated and not freed")
    if said:
        pytest.fail("the test left behind:\n" + "\n".join(said), pytrace=False)


@pytest.fixture
def cuda_emulator() -> Emulator:
    """The emulator that the tests run on."""
    emulator = started()
    if emulator is None:
        pytest.fail("the fixture cuda_emulator needs pytest --cuda-emulator, or cuda_emulator = true in the ini file")
    return emulator


def _kept(emulator: Emulator) -> int:
    """Bytes whose free was not even submitted. What the host registered and what modules brought is not counted."""
    gc.collect()
    allocations = emulator.report()["allocations"]
    counted = [one for one in allocations if one["place"] not in ("registered", "global") and not one["leaving"]]
    return sum(one["bytes"] for one in counted)


def _value(config: pytest.Config, name: str) -> Any:
    """An option, or else the line of the ini file."""
    told = config.known_args_namespace.__dict__.get(name)
    return config.getini(name) if told is None else told
