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
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says with each failure under which seed it happened."""
    report = yield
    emulator = started()
    if emulator and report.failed:
        again = f"--cuda-seed={emulator.settings.seed} draws the same"
        report.sections.append(("cuda emulator", f"{emulator.settings}; {again}"))
    return report


@pytest.fixture(autouse=True)
def _cuda_emulator_after_a_test(pytestconfig: pytest.Config) -> Generator[None, None, None]:
    """Ends the faults of a test and, where that was asked for, says what the test left behind."""
    emulator = started()
    if emulator is None:
        yield
        return
    strict = _value(pytestconfig, "cuda_strict")
    bytes_before, hazards_before = _state(emulator) if strict else (0, [])
    yield
    emulator.faults = emulator.settings.faults
    if strict:
        bytes_after, hazards = _state(emulator)
        said = hazards[len(hazards_before) :]
        if bytes_after > bytes_before:
            kept = bytes_after - bytes_before
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


def _state(emulator: Emulator) -> tuple[int, list[str]]:
    """Live bytes and the hazards so far, when all that was submitted has ended."""
    gc.collect()
    emulator.wait_idle()
    return emulator.live_bytes(), [f"{hazard['kind']}: {hazard['text']}" for hazard in emulator.report()["hazards"]]


def _value(config: pytest.Config, name: str) -> Any:
    """An option, or else the line of the ini file."""
    told = vars(config.known_args_namespace).get(name)
    return config.getini(name) if told is None else told
