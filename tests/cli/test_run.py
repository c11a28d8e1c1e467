"""``tazza run``: programs run as Python runs them, under a context, and a report of what they did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tazza as tz
from tazza.cli.exits import ExitCode
from tazza.cli.main import main
from tazza.cli.program import Program, show_failure
from tazza.errors import ArgumentError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def process_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run leaves arguments, paths and ``__main__`` as the program did: put them back after each test."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


def script(folder: Path, source: str, name: str = "script.py") -> str:
    path = folder / name
    path.write_text(source, "utf-8")
    return str(path)


def python(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a process of its own."""
    command = [sys.executable, *arguments]
    variables = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=folder, env=variables)


def tazza_run(*arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "tazza", "run", "--device", "cpu", *arguments, folder=folder, **environment)


# As Python does ----------------------------------------------------------------------------------------------------

LOOK = """
import sys
import helper
print(sys.argv[1:], sys.path[0], __name__, __file__, __spec__ and __spec__.name, __package__)
print(sys.modules["__main__"].__dict__ is globals(), helper.VALUE)
print(sorted(name for name in globals() if name.startswith("__")))
"""


def test_a_script_sees_what_it_sees_under_python(tmp_path: Path) -> None:
    script(tmp_path, "VALUE = 5\n", "helper.py")
    path = script(tmp_path, LOOK)
    arguments = ["--json", "-m", "x", "--device", "y"]
    ours, theirs = tazza_run(path, *arguments), python(path, *arguments)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.stdout == theirs.stdout
    assert ours.returncode == 0


def test_a_relative_path_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    script(tmp_path / "real", "VALUE = 5\n", "helper.py")
    (tmp_path / "link.py").symlink_to(script(tmp_path / "real", LOOK))
    ours, theirs = tazza_run("link.py", folder=tmp_path), python("link.py", folder=tmp_path)
    assert ours.stdout == theirs.stdout
    assert theirs.returncode == ours.returncode == 0, ours.stderr


@pytest.mark.parametrize("name", ["package", "package.part"])
def test_a_module_sees_what_it_sees_under_python(tmp_path: Path, name: str) -> None:
    script(tmp_path, "VALUE = 5\n", "helper.py")
    (tmp_path / "package").mkdir()
    for file in ("__init__.py", "__main__.py", "part.py"):
        script(tmp_path / "package", LOOK if file != "__init__.py" else "", file)
    ours = tazza_run("-m", name, "--json", "-m", folder=tmp_path)
    theirs = python("-m", name, "--json", "-m", folder=tmp_path)
    assert theirs.returncode == 0, theirs.stderr
    assert ours.stdout == theirs.stdout
    assert ours.returncode == 0


def test_folders_and_archives_with_a_main(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    script(folder, "import sys; print('main', sys.path[0], __name__)", "__main__.py")
    archive = tmp_path / "archive.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(folder / "__main__.py", "__main__.py")
    for path in (folder, archive):
        assert tazza_run(str(path)).stdout == python(str(path)).stdout != ""


def test_compiled_scripts(tmp_path: Path) -> None:
    import py_compile

    path = script(tmp_path, "print('compiled', __name__)")
    compiled = py_compile.compile(path, cfile=str(tmp_path / "script.pyc"))
    assert compiled is not None
    assert tazza_run(compiled).stdout == "compiled __main__\n"


@pytest.mark.parametrize("ending", ["sys.exit()", "sys.exit(0)", "sys.exit(7)", "sys.exit('text')", "raise SystemExit"])
def test_exit_codes_are_the_programs(tmp_path: Path, ending: str) -> None:
    path = script(tmp_path, f"import sys\n{ending}\n")
    ours, theirs = tazza_run(path), python(path)
    assert ours.returncode == theirs.returncode
    assert ours.stderr.endswith(theirs.stderr)


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    1 / 0\ntry:\n    f()\nexcept ZeroDivisionError:\n    raise ValueError('x')\n",
        "def broken(:\n",
        "import nowhere_to_be_found\n",
        "import sys\nsys.excepthook = lambda *what: print('hook', what[0].__name__)\n1 / 0\n",
        "raise ExceptionGroup('many', [ValueError('a'), KeyError('b')])\n",
    ],
)
def test_tracebacks_are_the_programs(tmp_path: Path, source: str) -> None:
    path = script(tmp_path, source)
    ours, theirs = tazza_run(path), python(path)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
    assert ours.stderr.startswith(theirs.stderr)
    assert "tazza/cli" not in ours.stderr


def test_debug_shows_the_frames_of_the_command(tmp_path: Path) -> None:
    assert "program.py" in tazza_run("--debug", script(tmp_path, "1 / 0")).stderr


def test_a_hook_that_fails(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def hook(*what: object) -> None:
        raise KeyError("hook")

    monkeypatch.setattr(sys, "excepthook", hook)
    show_failure(ValueError("original"), whole=False)
    text = capsys.readouterr().err
    assert text.startswith("Error in sys.excepthook:")
    assert text.index("KeyError: 'hook'") < text.index("ValueError: original")


def test_threads_and_exit_functions_run_to_their_end(tmp_path: Path) -> None:
    source = """
import atexit, threading, tazza as tz
name = "module-level"
atexit.register(lambda: print("exit function sees", name))
gate = threading.Event()
def work():
    gate.wait(30)
    print("thread sees", name, tz.current().allocate(64).nbytes)
threading.Thread(target=work).start()
threading.Timer(0.05, gate.set).start()
"""
    done = tazza_run(script(tmp_path, source))
    assert done.stdout.splitlines() == ["thread sees module-level 64", "exit function sees module-level"], done.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_an_interrupt_ends_the_program_and_is_reported(tmp_path: Path) -> None:
    source = (
        "import os, signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Event().wait(60)\n"
    )
    done = tazza_run(script(tmp_path, source))
    assert done.returncode == ExitCode.INTERRUPTED == 128 + signal.SIGINT
    assert "KeyboardInterrupt" in done.stderr
    assert "script.py: interrupted after" in done.stderr
    assert "tazza/cli" not in done.stderr


def test_processes_that_a_program_spawns(tmp_path: Path) -> None:
    source = """
import multiprocessing
def work(x): return x * 2
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [1, 2]))
"""
    assert tazza_run(script(tmp_path, source)).stdout == "[2, 4]\n"


# Under a context ---------------------------------------------------------------------------------------------------


def test_the_context_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    source = (
        "import tazza as tz\nctx = tz.current()\nprint(ctx.device, ctx.spec.seed, ctx.memory.limit, ctx.spec.arrays)"
    )
    options = ["--device", "sim:1", "--seed", "7", "--memory-limit", "64MiB", "--arrays", "numpy"]
    done = python("-m", "tazza", "run", *options, script(tmp_path, source))
    assert done.stdout == f"sim:1 7 {64 << 20} numpy\n", done.stderr


def test_a_limit_ends_a_program_that_takes_too_much(tmp_path: Path) -> None:
    source = "import tazza as tz\nkeep = [tz.current().allocate(1 << 20, label='hoard') for _ in range(100)]\n"
    done = tazza_run("--memory-limit", "8MiB", script(tmp_path, source))
    assert done.returncode == 1
    assert "tazza.errors.OutOfMemoryError" in done.stderr
    assert "hoard" in done.stderr
    assert "script.py: OutOfMemoryError after" in done.stderr


def test_nothing_stays_current_afterwards(tmp_path: Path, capsys: Capture) -> None:
    assert main(["run", "--device", "cpu", script(tmp_path, "import tazza as tz; print(tz.current())")]) == 0
    assert "<CPUContext on cpu:0" in capsys.readouterr().out
    with pytest.raises(tz.errors.NoCurrentContextError):
        tz.current()


# The report --------------------------------------------------------------------------------------------------------

WORK = """
import tazza as tz
ctx = tz.current()
stream = ctx.new_stream(label="worker <b>")
buffer = ctx.allocate(1 << 20, label="batch")
for number in range(4):
    ctx.launch(len, buffer, stream=stream, label="measure")
ctx.fill(buffer, 0, stream=stream)
ctx.launch(lambda: None, label="inline")
stream.synchronize()
"""


def run_json(capsys: Capture, *arguments: str) -> Any:
    code = main(["run", "--device", "cpu", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)
    found["code"] = code
    return found


def test_figures_as_json(tmp_path: Path, capsys: Capture) -> None:
    found = run_json(capsys, "--seed", "3", script(tmp_path, WORK))
    streams = {one["name"]: one for one in found["streams"]}
    assert streams["worker <b>"]["counts"] == {"task": 4, "fill": 1}
    assert streams["cpu:0 own stream"]["counts"] == {"task": 1}
    assert {one["name"]: one["count"] for one in found["tasks"]} == {"measure": 4, "inline": 1}
    assert found["peak"] >= 1 << 20
    assert found["leaks"] == []
    assert (found["code"], found["outcome"], found["health"], found["failed"]) == (0, "done", "ok", False)
    assert ["seed", "3"] in found["facts"]
    assert sum(one["nbytes"] for one in found["headings"]) == found["used"]
    assert 0 < found["streams"][0]["busy_ns"] <= found["elapsed_ns"]


def test_the_report_on_the_terminal_leaves_the_output_alone(tmp_path: Path) -> None:
    done = tazza_run(script(tmp_path, WORK + "print('output')\n"))
    assert done.stdout == "output\n"
    for text in ("script.py: done after", "worker <b>", "measure", "context on cpu:0", "Leaks: none", "health ok"):
        assert text in done.stderr


def test_files_are_written(tmp_path: Path) -> None:
    trace, report = tmp_path / "run.json", tmp_path / "run.html"
    done = tazza_run("--trace", str(trace), "--report", str(report), script(tmp_path, WORK))
    assert done.returncode == 0, done.stderr
    names = [event["name"] for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("measure") == 4
    page = report.read_text("utf-8")
    assert "worker \\u003cb\\u003e" in page
    assert "<b>" not in page


def test_a_run_in_the_process_of_others(tmp_path: Path, capsys: Capture) -> None:
    """The same once more without a process of its own: what ends it comes back from the call."""
    trace, report = tmp_path / "run.json", tmp_path / "run.html"
    files = ["--trace", str(trace), "--report", str(report)]
    path = script(tmp_path, WORK + "tz.leaked = [ctx.allocate(64) for _ in range(2)]\n")
    try:
        assert main(["run", "--device", "cpu", *files, path]) == 0
    finally:
        del tz.leaked  # type: ignore[attr-defined]
    text = capsys.readouterr().err
    for expected in ("script.py: done after", "worker <b>", "measure", "Leaks: 2 blocks, "):
        assert expected in text
    assert trace.is_file()
    assert report.is_file()
    with pytest.raises(SystemExit) as ended:
        main(["run", "--device", "cpu", script(tmp_path, "raise SystemExit(9)")])
    assert ended.value.code == 9
    assert main(["run", "--device", "cpu", script(tmp_path, "raise KeyboardInterrupt")]) == ExitCode.INTERRUPTED
    failing = "import tazza as tz\ntz.current().launch(lambda: 1 / 0, stream=tz.current().new_stream())\n"
    assert main(["run", "--device", "cpu", script(tmp_path, failing)]) == ExitCode.FAILURE
    missing = tmp_path / "gone"
    missing.mkdir()
    lost = script(tmp_path, f"import os; os.rmdir({str(missing)!r})")
    assert main(["run", "--device", "cpu", "--trace", str(missing / "x.json"), lost]) == ExitCode.FAILURE


def test_files_are_written_also_where_the_program_failed(tmp_path: Path) -> None:
    trace, report = tmp_path / "run.json", tmp_path / "run.html"
    done = tazza_run("--trace", str(trace), "--report", str(report), script(tmp_path, WORK + "1 / 0\n"))
    assert done.returncode == 1
    assert json.loads(trace.read_text())["traceEvents"]
    assert "ZeroDivisionError" in report.read_text("utf-8")


LEAK = """import tazza as tz
tz.leaked = tz.current().allocate(5000, label='cache')
names_only = tz.current().allocate(64)
"""


def test_leaks_are_listed_with_their_origin(tmp_path: Path, capsys: Capture) -> None:
    path = script(tmp_path, LEAK)
    found = run_json(capsys, "--fail-on-leaks", path)
    try:
        assert found["code"] == ExitCode.LEAKS
        [leak] = found["leaks"]
        assert (leak["label"], leak["library"], leak["blocks"]) == ("cache", "tazza", 1)
        assert leak["nbytes"] >= 5000
        assert leak["site"][0] == f"{path}:2 <module>"
    finally:
        del tz.leaked  # type: ignore[attr-defined]


def test_leaks_fail_only_when_asked(tmp_path: Path) -> None:
    path = script(tmp_path, LEAK)
    done = tazza_run(path)
    assert done.returncode == 0
    assert "Held at the end (--report or --fail-on-leaks say by whom): 1 block, " in done.stderr
    done = tazza_run("--fail-on-leaks", path)
    assert done.returncode == ExitCode.LEAKS
    assert "Leaks: 1 block, " in done.stderr
    assert "script.py:2 <module>" in done.stderr
    done = tazza_run("--fail-on-leaks", script(tmp_path, LEAK + "import sys; sys.exit(9)\n"))
    assert done.returncode == 9


def test_many_equal_leaks_are_one_line(tmp_path: Path) -> None:
    source = "import tazza as tz\ntz.leaked = [tz.current().allocate(64, label='piece') for _ in range(50)]\n"
    done = tazza_run("--fail-on-leaks", script(tmp_path, source))
    assert "Leaks: 50 blocks" in done.stderr
    assert done.stderr.count("piece") == 1


EXIT = """import atexit, tazza as tz
kept = tz.current().allocate(64)
atexit.register(lambda: print(kept.nbytes))
"""


def test_exit_functions_run_before_anybody_looks_for_leaks(tmp_path: Path) -> None:
    done = tazza_run("--fail-on-leaks", script(tmp_path, EXIT))
    assert (done.returncode, done.stdout) == (0, "64\n"), done.stderr


def test_in_a_process_of_others_exit_functions_keep_their_names(tmp_path: Path) -> None:
    code = "import sys; from tazza.cli.main import main; main(sys.argv[1:])"
    done = python("-c", code, "run", "--device", "cpu", "--json", script(tmp_path, EXIT))
    text, _, last = done.stdout.rstrip().rpartition("\n")
    found = json.loads(text)
    assert last == "64"
    assert len(found["leaks"]) == 1
    assert any("exit" in value for name, value in found["facts"] if name == "leaks")


def test_what_a_module_makes_when_it_is_imported_is_no_leak(tmp_path: Path) -> None:
    script(tmp_path, "import tazza as tz\nTABLE = tz.current().allocate(64)\n", "helper.py")
    done = tazza_run("--fail-on-leaks", script(tmp_path, "import helper\n"))
    assert done.returncode == 0, done.stderr


def test_what_is_registered_as_state_is_no_leak(tmp_path: Path) -> None:
    source = """
import tazza as tz
class Model:
    def __init__(self): self.weights = tz.current().allocate(64)
    def state_dict(self): return {}
    def load_state_dict(self, state): pass
tz.current().state.register("model", Model())
"""
    done = tazza_run("--fail-on-leaks", script(tmp_path, source))
    assert done.returncode == 0, done.stderr


def test_a_task_that_failed_unseen_fails_the_run(tmp_path: Path) -> None:
    source = "import tazza as tz\ntz.current().launch(lambda: 1 / 0, stream=tz.current().new_stream())\n"
    done = tazza_run(script(tmp_path, source))
    assert done.returncode == ExitCode.FAILURE
    assert "tazza: ZeroDivisionError: division by zero" in done.stderr


def test_a_program_that_closes_the_context_itself(tmp_path: Path) -> None:
    done = tazza_run(script(tmp_path, "import tazza as tz\ntz.current().close()\n"))
    assert done.returncode == 0, done.stderr


def test_a_report_that_cannot_be_written_in_the_end(tmp_path: Path) -> None:
    source = f"import shutil\nshutil.rmtree({str(tmp_path / 'gone')!r})\n"
    (tmp_path / "gone").mkdir()
    done = tazza_run("--report", str(tmp_path / "gone" / "run.html"), script(tmp_path, source))
    assert done.returncode == ExitCode.FAILURE
    assert "tazza: FileNotFoundError" in done.stderr


# Wrong commands ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "cpu"], "a script and its arguments"),
        (["-m"], "a script and its arguments, or -m and a module"),
        (["nowhere.py"], "script"),
        (["-m", "no_such_module_anywhere"], "-m"),
        (["-m", ".."], "-m"),
        (["--report", "x.txt", __file__], "--report"),
        (["--report", "no/such/folder/x.html", __file__], "--report"),
        (["--trace", "x.html", __file__], "--trace"),
        (["--device", "cpu", "--memory-limit", "much", __file__], "memory_limit"),
        (["--device", "cpu", "--arrays", "abacus", __file__], "arrays"),
    ],
)
def test_wrong_commands(capsys: Capture, arguments: list[str], text: str) -> None:
    assert main(["run", *arguments]) == ExitCode.USAGE
    assert text in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys: Capture) -> None:
    assert main(["run", "--device", "sim:99", __file__]) == ExitCode.UNAVAILABLE
    assert "sim:99" in capsys.readouterr().err


def test_modules_without_code(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    script(tmp_path / "empty", "", "__init__.py")
    done = tazza_run("-m", "empty", folder=tmp_path)
    assert done.returncode == 1
    assert "No module named 'empty.__main__'" in done.stderr
    done = tazza_run("-m", "math", folder=tmp_path)
    assert done.returncode == 1
    assert "no Python code to run" in done.stderr


def test_programs_name_themselves() -> None:
    assert Program.of(["a/train.py", "-x"], None).name == "train.py"
    assert Program.of([], ["package.part", "-x"]).command == "-m package.part -x"
    with pytest.raises(ArgumentError):
        Program.of([], None)
