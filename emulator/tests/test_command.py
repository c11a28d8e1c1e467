"""``python -m cuda_emulator -- command``."""

import sys

import pytest

from cuda_emulator.__main__ import run
from cuda_emulator.settings import TABLE

SETTINGS = "from cuda_emulator import Settings; s = Settings.from_environment(); "


def test_the_command_runs_on_the_devices_that_were_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    script = "from cuda.core import Device; print(len(Device.get_all_devices()))"
    assert run(["--devices", "3", "--", sys.executable, "-c", script]) == 0
    assert capfd.readouterr().out.strip() == "3"


def test_every_option_reaches_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--memory=1GiB,2GiB", "--peers=0-1", "--seed=4", "--jitter-us=9", "--poison=off", "--faults=cuInit:9:999"]
    script = SETTINGS + "print(s.memory, s.peers, s.seed, s.jitter_us, s.poison, *s.faults)"
    assert run([*given, "--", sys.executable, "-c", script]) == 0
    assert capfd.readouterr().out.strip() == "(1073741824, 2147483648) 0-1 4 9 None cuInit:9:999"


def test_one_inside_another_hides_it(capfd: pytest.CaptureFixture[str]) -> None:
    inner = [
        sys.executable,
        "-m",
        "cuda_emulator",
        "--seed=2",
        "--devices=3",
        "--",
        sys.executable,
        "-c",
        SETTINGS + "print(s.seed)",
    ]
    assert run(["--seed=1", "--devices=5", "--", *inner]) == 0
    assert capfd.readouterr().out.strip() == "2"


@pytest.mark.parametrize(("script", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_the_exit_code_is_passed_on(script: str, code: int) -> None:
    assert run(["--", sys.executable, "-c", script]) == code


def test_the_help_names_its_caller_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"], prog="tazza emulate-cuda") == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: tazza emulate-cuda [options] -- command")
    assert all(f"--{name.replace('_', '-')} " in said for name in TABLE)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "there is no command"),
        (["--devices=0", "--", "true"], "devices: '0' is not a whole number from 1 to 16"),
        (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["--", "no-such-command"], "no-such-command cannot be run: No such file"),
    ],
)
def test_what_cannot_be_started_is_said(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    assert said in capsys.readouterr().err
