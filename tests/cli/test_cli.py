"""The command line: what it prints, its exit codes, and errors without tracebacks."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tazza as tz
from tazza.cli import bench, demo, devices
from tazza.cli.bench import Timing, break_even
from tazza.cli.exits import ExitCode, describe, exit_code
from tazza.cli.main import main
from tazza.cli.operations import BUILT_IN, Operation, parse_shape, resolve
from tazza.cli.output import show_table, show_text
from tazza.demo import digits
from tazza.errors import (
    ArgumentError,
    BackendUnavailableError,
    CheckpointError,
    DeviceLostError,
    OutOfMemoryError,
    UpstreamError,
)
from tests.demo import small

Capture = pytest.CaptureFixture[str]


def run_json(capsys: Capture, *arguments: str) -> Any:
    """Run a command with ``--json`` and return its one document."""
    assert main([*arguments, "--json"]) == ExitCode.OK
    return json.loads(capsys.readouterr().out)


# The frame ---------------------------------------------------------------------------------------------------------


def test_version_and_help(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tazza {tz.__version__}\n"
    for arguments in (["--help"], ["demo", "--help"], ["bench", "--help"], ["devices", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(f"{code.value:>3}  {code.meaning}" in text for code in ExitCode)


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--epochs", "many"], ["devices", "--color"]])
def test_usage_errors(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == ExitCode.USAGE
    assert "usage: tazza" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ArgumentError("x"), ExitCode.USAGE),
        (BackendUnavailableError("cuda", "no driver"), ExitCode.UNAVAILABLE),
        (DeviceLostError("gone"), ExitCode.UNAVAILABLE),
        (OutOfMemoryError("full"), ExitCode.OUT_OF_MEMORY),
        (MemoryError(), ExitCode.OUT_OF_MEMORY),
        (CheckpointError("damaged"), ExitCode.CHECKPOINT),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (OSError("disk full"), ExitCode.FAILURE),
        (ZeroDivisionError("bug"), ExitCode.FAILURE),
    ],
)
def test_every_error_has_its_code(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: ExitCode
) -> None:
    """The same code where the error is the first cause of others, and a traceback only on request."""

    def failing(options: object) -> ExitCode:
        raise error

    monkeypatch.setattr(devices, "execute", failing)
    assert main(["devices"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"tazza: {describe(error)}")
    assert "Traceback" not in shown.err
    assert main(["devices", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"error": describe(error), "exit_code": code.value}
    with pytest.raises(type(error)):
        main(["devices", "--debug"])
    assert exit_code(UpstreamError("b", UpstreamError("a", error))) == code


def test_a_reader_that_leaves_is_no_traceback() -> None:
    program = "import sys; from tazza.cli.main import main; sys.exit(main(['devices']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.FAILURE
    assert errors == b""


def test_python_m_tazza() -> None:
    command = [sys.executable, "-m", "tazza", "devices", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["versions"]["tazza"] == tz.__version__


# Devices -----------------------------------------------------------------------------------------------------------


def test_devices(capsys: Capture) -> None:
    found = run_json(capsys, "devices")
    backends = {backend["name"]: backend for backend in found["backends"]}
    assert backends["cpu"]["usable"]
    cpu = backends["cpu"]["devices"][0]
    assert cpu["name"] == "cpu:0"
    assert cpu["cores"] == list(tz.device("cpu").cores)
    assert cpu["array_libraries"][0] == "numpy"
    assert main(["devices"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "compiled" in text.splitlines()[0]
    assert "cpu:0" in text
    assert "sim:1" in text


def test_a_backend_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    listed = (
        tz.BackendStatus("cpu", True),
        tz.BackendStatus("npu", False, "no module 'npu'", "pip install npu"),
        tz.BackendStatus("tpu", True),
    )
    real = tz.devices

    def some_devices(kind: str) -> tuple[tz.Device, ...]:
        if kind == "tpu":
            raise BackendUnavailableError("tpu", "no driver", "install the driver")
        return real(kind)

    monkeypatch.setattr(tz, "backends", lambda: listed)
    monkeypatch.setattr(tz, "devices", some_devices)
    found = run_json(capsys, "devices")["backends"]
    assert [(one["name"], one["usable"], one["reason"], one["hint"]) for one in found] == [
        ("cpu", True, "", ""),
        ("npu", False, "no module 'npu'", "pip install npu"),
        ("tpu", False, "no driver", "install the driver"),
    ]
    assert main(["devices"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "no module 'npu'  pip install npu" in text
    assert "install the driver" in text


# Demo --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "load", small.load)


@pytest.mark.usefixtures("small_digits")
def test_demo_json(capsys: Capture, tmp_path: Path) -> None:
    options = ["--device", "sim:1", "--seed", "4", "--epochs", "2", "--batch-size", "8"]
    found = run_json(capsys, "demo", *options, "--checkpoint", str(tmp_path / "file"))
    expected = {
        "device", "seed", "epochs", "batch_size", "test_accuracy", "images_per_second", "peak_bytes", "steps_run",
        "resumed_at_step", "weights_sha256", "compiled", "dnn", "dnn_version", "versions", "train_loss",
        "class_accuracy", "shards", "build", "arrays",
    }  # fmt: skip
    assert set(found) == expected
    assert (found["device"], found["seed"], found["epochs"], found["batch_size"]) == ("sim:1", 4, 2, 8)
    assert (found["steps_run"], found["resumed_at_step"]) == (12, 0)
    assert len(found["weights_sha256"]) == 64
    again = run_json(capsys, "demo", *options, "--checkpoint", str(tmp_path / "file"))
    assert (again["steps_run"], again["resumed_at_step"]) == (0, 12)
    assert again["weights_sha256"] == found["weights_sha256"]


@pytest.mark.usefixtures("small_digits")
def test_demo_report(capsys: Capture) -> None:
    assert main(["demo", "--epochs", "1"]) == ExitCode.OK
    shown = capsys.readouterr()
    assert "training on cpu:0: 2/2" in shown.err
    assert "live" in shown.err
    assert "held-out digits  " in shown.out
    assert "digit  share" in shown.out
    assert ", seen as " in shown.out


@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--device", "cpu:99"], ExitCode.UNAVAILABLE, "no such device"),
        (["--device", "abacus"], ExitCode.UNAVAILABLE, "no such device"),
        (["--epochs", "0"], ExitCode.USAGE, "epochs: got 0"),
        (["--seed", "-1"], ExitCode.USAGE, "seed"),
        (["--batch-size", "1"], ExitCode.USAGE, "batch_size"),
        (["--checkpoint", "FILE"], ExitCode.CHECKPOINT, "not a tazza state file"),
        (["--checkpoint", "DIRECTORY/missing/file", "--epochs", "1"], ExitCode.FAILURE, "No such file"),
    ],
)
def test_demo_errors(capsys: Capture, tmp_path: Path, options: list[str], code: ExitCode, said: str) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"something else")
    places = {"FILE": str(foreign), "DIRECTORY/missing/file": str(tmp_path / "missing" / "file")}
    assert main(["demo", *(places.get(option, option) for option in options)]) == code
    shown = capsys.readouterr()
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert foreign.read_bytes() == b"something else"


def test_demo_out_of_memory(capsys: Capture, monkeypatch: pytest.MonkeyPatch, small_digits: None) -> None:
    real = tz.open
    monkeypatch.setattr(tz, "open", lambda *args, **options: real(*args, memory_limit="32KiB", **options))
    assert main(["demo", "--device", "sim:0"]) == ExitCode.OUT_OF_MEMORY
    assert "OutOfMemoryError" in capsys.readouterr().err


def test_demo_defaults_are_those_of_the_settings() -> None:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    chosen = parser.parse_args([])
    assert (chosen.device, chosen.seed, chosen.checkpoint) == ("auto", 0, None)
    assert (chosen.epochs, chosen.batch_size) == (12, 32)


# Bench -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_operations(capsys: Capture, name: str) -> None:
    found = run_json(capsys, "bench", name, "--sizes=8,16", "--seconds=0.001", "--device=cpu", "--device=sim:1")
    assert found["operation"] == name
    assert [(one["device"], one["size"]) for one in found["timings"]] == [
        ("cpu:0", 8), ("cpu:0", 16), ("sim:1", 8), ("sim:1", 16),
    ]  # fmt: skip
    for one in found["timings"]:
        assert one["compute"] > 0
        assert one["repeats"] >= 3
        assert one["total"] == pytest.approx(one["to_device"] + one["compute"] + one["to_host"])
        assert one["nbytes"] == BUILT_IN[name].nbytes(one["size"])
    assert [one["device"] for one in found["break_even"]] == ["sim:1"]


def test_an_operation_of_the_user(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_module.py").write_text(
        "seen = []\n"
        "def outer(a, b, scale=2):\n"
        "    seen.append((a.shape, b.shape, str(a.dtype)))\n"
        "    return [a[:, None] * b[None, :] * scale, 'not an array']\n"
        "def failing(x):\n"
        "    raise ValueError('not today')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = ["--sizes", "4", "--seconds", "0.001", "--device", "cpu"]
    assert main(["bench", "users_module:outer", *options]) == ExitCode.OK
    assert "users_module:outer" in capsys.readouterr().out
    seen = sys.modules["users_module"].seen
    assert set(seen) == {((4,), (4,), "float32")}
    seen.clear()
    assert main(["bench", "users_module:outer", *options, "--shape", "N", "--shape", "7"]) == ExitCode.OK
    assert set(seen) == {((4,), (7,), "float32")}
    capsys.readouterr()
    assert main(["bench", "users_module:failing", *options]) == ExitCode.FAILURE
    assert "ValueError: not today" in capsys.readouterr().err
    assert main(["bench", "users_module:absent", *options]) == ExitCode.USAGE
    assert "cannot be imported" in capsys.readouterr().err
    assert main(["bench", "users_module:seen", *options]) == ExitCode.USAGE
    del sys.modules["users_module"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "nonsense"],
        ["bench", "no_such_module_anywhere:f"],
        ["bench", "matmul", "--shape", "N"],
        ["bench", "os:getcwd", "--shape", "N,x"],
        ["bench", "--sizes", "0"],
        ["bench", "--sizes", "ten"],
        ["bench", "--seconds", "0"],
    ],
)
def test_bench_usage(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == ExitCode.USAGE
    assert "expected" in capsys.readouterr().err.replace("cannot be imported", "expected")


def timing(device: str, size: int, compute: float, move: float = 0.0) -> Timing:
    return Timing(device, size, 4 * size, move, compute, move, 3)


def test_break_even_is_where_a_device_stays_faster() -> None:
    timings = [timing("cpu:0", size, cost) for size, cost in ((1, 1.0), (2, 2.0), (4, 4.0), (8, 8.0))]
    timings += [timing("gpu:0", size, cost, 1.0) for size, cost in ((1, 0.5), (2, 2.5), (4, 2.5), (8, 2.6))]
    timings += [timing("slow:0", size, 100.0) for size in (1, 2, 4, 8)]
    gpu, slow = break_even(timings)
    assert (gpu.device, gpu.against, gpu.moved, gpu.resident) == ("gpu:0", "cpu:0", 8, 4)
    assert (slow.moved, slow.resident) == (None, None)
    assert break_even([]) == []


def test_bench_table_says_where_it_pays(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {"cpu:0": 2.0, "sim:0": 1.0}

    def measured(operation: Operation, device: tz.Device, sizes: Any, *, seconds: float) -> list[Timing]:
        return [timing(device.name, size, costs[device.name], 1.0) for size in sizes]

    monkeypatch.setattr(bench, "measure", measured)
    assert main(["bench", "--sizes", "16", "--device", "cpu", "--device", "sim"]) == ExitCode.OK
    text = capsys.readouterr().out
    assert "sim:0 pays against cpu:0 from: no measured size (data moved), 16 (resident)" in text


def test_shapes() -> None:
    assert parse_shape("N, 64") == (None, 64)
    operation = resolve("os:fsencode")
    assert operation.shapes == ((None,),)
    assert [array.shape for array in Operation("x", len, ((None, 3),)).arguments(5)] == [(5, 3)]
    for bad in ("", "n", "N,-1", "N;N"):
        with pytest.raises(ArgumentError, match="--shape"):
            parse_shape(bad)


# Output ------------------------------------------------------------------------------------------------------------


class Terminal:
    """A stream that claims to be a terminal with an old encoding."""

    encoding = "ascii"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text.encode("ascii", "replace").decode()
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_plain_tables_are_aligned(capsys: Capture) -> None:
    show_table("Title", ("name", "N"), [("a", 1), ("long name", 1000)])
    assert capsys.readouterr().out == (
        "Title\n  name          N\n  ---------  ----\n  a             1\n  long name  1000\n\n"
    )
    show_table("Facts", ("", ""), [("a", "b")], left=2)
    assert capsys.readouterr().out == "Facts\n  a  b\n\n"


def test_a_terminal_gets_a_rich_table(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show_table("Title", ("name", "N"), [("[brackets]", 1)])
    assert "[brackets]" in terminal.text
    monkeypatch.setitem(sys.modules, "rich.table", None)
    terminal.text = ""
    show_table("Title", ("name", "N"), [("a", 1)])
    assert terminal.text.startswith("Title\n  name  N\n")


def test_text_that_the_stream_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    show_text("caf\u00e9")
    assert terminal.text == "caf?\n"


def test_an_array_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert main(["demo", "--device", "sim:0", "--arrays", "torch"]) == ExitCode.USAGE
    assert "an array library of sim:0: numpy" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["demo", "--device", "cpu", "--arrays", "torch"]) == ExitCode.UNAVAILABLE
    assert "pip install torch" in capsys.readouterr().err
