"""Settings: every form of a value, the environment there and back, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuda_emulator import Fault, Settings
from cuda_emulator.settings import TABLE, size_of, size_text

POSSIBLE = st.fixed_dictionaries(
    {
        "devices": st.integers(1, 16),
        "memory": st.integers(1, 2**50),
        "peers": st.sampled_from(["all", "none", "0-0"]),
        "seed": st.integers(0, 2**64 - 1),
        "jitter_us": st.integers(0, 10**7),
        "poison": st.one_of(st.just("off"), st.integers(0, 255)),
        "red_zones": st.integers(0, 4096),
        "faults": st.lists(st.sampled_from(["cuInit:1:UNKNOWN", "@copy:p=0.5:700:device=1", "cuMemAlloc:2+:2:sticky"])),
        "trace": st.one_of(st.none(), st.just("/tmp/trace.jsonl")),
        "version": st.one_of(st.none(), st.integers(1000, 99990)),
        "compute": st.sampled_from(["7.5", "9.0", "12.1"]),
        "timeout_s": st.integers(1, 86400),
    }
)


@given(POSSIBLE)
def test_settings_survive_the_environment(values: dict[str, Any]) -> None:
    settings = Settings.of(**values)
    assert Settings.from_environment(settings.environment()) == settings


def test_what_is_given_counts_more_than_the_environment() -> None:
    environ = {"CUDA_EMULATOR_DEVICES": "4", "CUDA_EMULATOR_SEED": "9"}
    settings = Settings.from_environment(environ, devices=3, seed=None)
    assert (settings.devices, settings.seed, settings.memory) == (3, 9, (256 << 20,) * 3)


def test_an_environment_hides_every_variable_of_an_outer_one() -> None:
    assert Settings.of().environment().keys() == {f"CUDA_EMULATOR_{name.upper()}" for name in TABLE}


def test_natural_forms_are_read() -> None:
    settings = Settings.of(
        memory=["1GiB", 1 << 20],
        peers=[(0, 1)],
        poison=False,
        faults=[Fault("@kernel", 3, "CUDA_ERROR_LAUNCH_FAILED"), "cuInit:1:999"],
        trace=Path("t"),
    )
    assert settings.memory == (1 << 30, 1 << 20)
    assert settings.peers == "0-1"
    assert settings.poison is None
    assert [str(fault) for fault in settings.faults] == ["@kernel:3:LAUNCH_FAILED", "cuInit:1:999"]
    assert settings.trace == Path.cwd() / "t"
    assert str(settings).startswith("2 devices of 1 GiB and 1 MiB, peers 0-1, seed 0")


def test_poison_of_zero_is_not_no_poison() -> None:
    assert [Settings.of(poison=value).poison for value in (0, "0x00", "off", False)] == [0, 0, None, None]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("devices", 0, "from 1 to 16"),
        ("devices", "17", "from 1 to 16"),
        ("devices", True, "whole number"),
        ("memory", "lots", "256MiB"),
        ("memory", "1GiB,1GiB,1GiB", "3 sizes for 2 devices"),
        ("memory", "0", "not a size"),
        ("peers", "0>1", "pairs"),
        ("peers", "0-2", "names device 2"),
        ("seed", -1, "whole number"),
        ("poison", 256, "from 0 to 255"),
        ("red_zones", "wide", "whole number"),
        ("faults", "cuInit", "when"),
        ("compute", "nine", "9.0"),
        ("timeout_s", 0, "from 1"),
    ],
)
def test_an_impossible_value_is_named(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)^{name}: .*{expected}"):
        Settings.of(**{name: value})


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(TypeError, match=r"'jitter' is not a setting.*jitter_us"):
        Settings.of(jitter=3)


@given(st.integers(1, 2**50))
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert size_of(size_text(size)) == size_of(size) == size
