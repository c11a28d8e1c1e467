"""``tazza emulate-cuda``: everything behind it reaches the emulator as it stands."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest

from tazza.cli.exits import ExitCode
from tazza.cli.main import main


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-h"],
        ["--devices", "4", "--", "pytest", "--json", "-x", "--", "tests"],
        ["--debug", "true"],
        ["pytest"],
    ],
)
def test_the_emulator_gets_the_arguments_and_gives_the_code(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    seen: list[object] = []

    def run(argv: list[str], prog: str) -> int:
        seen.append((prog, argv))
        return 77

    stand_in = types.ModuleType("cuda_emulator.__main__")
    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda_emulator", types.ModuleType("cuda_emulator"))
    monkeypatch.setitem(sys.modules, "cuda_emulator.__main__", stand_in)
    assert main(["emulate-cuda", *arguments]) == 77
    assert seen == [("tazza emulate-cuda", arguments)]


def test_without_the_emulator_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cuda_emulator", None)
    assert main(["emulate-cuda", "--", "true"]) == ExitCode.UNAVAILABLE
    assert "pip install './emulator[header]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("cuda_emulator") is None, reason="the emulator is not installed")
def test_it_runs_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    program = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0)); raise SystemExit(5)"
    assert main(["emulate-cuda", "--devices", "1", "--", sys.executable, "-c", program]) == 5
    assert capfd.readouterr().out.split() == ["0"]
