"""The planner's process as the parent sees it: whatever a child does, the question ends and the child is reaped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import pytest

from tazza.dnn.cudnn import process as module
from tazza.dnn.cudnn.process import PlannerProcess
from tazza.errors import BackendError, WaitTimeoutError
from tests.unit.cudnn_fake import without_coverage

Start = Callable[[str], PlannerProcess]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="plans are made on Linux")

ECHO = """
import json, sys
for line in sys.stdin.buffer:
    if not line.strip():
        break
    request = json.loads(line)
    print(json.dumps({"did": request["do"], "size": len(line)}), flush=True)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    without_coverage(monkeypatch)

    def run(code: str) -> PlannerProcess:
        monkeypatch.setattr(module, "command", lambda: [sys.executable, "-c", code])
        return PlannerProcess()

    return run


def check_gone(process: PlannerProcess) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_questions_are_answered_in_turn_and_the_end_is_orderly(start: Start) -> None:
    process = start(ECHO)
    assert [process.ask(do, {}, 30)["did"] for do in ("a", "b")] == ["a", "b"]
    process.end()
    process.end()
    check_gone(process)
    assert process._process.returncode == 0, "it ended by itself when its input did"


def test_a_question_larger_than_a_pipe_gets_through(start: Start) -> None:
    process = start(ECHO)
    assert process.ask("a", {"long": "x" * 3_000_000}, 30)["size"] > 3_000_000
    process.end()


def test_an_answer_may_come_in_pieces(start: Start) -> None:
    pieces = "for piece in b'{\"a\": 1}\\n': os.write(1, bytes([piece]))"
    process = start(f"import os, sys; sys.stdin.buffer.readline()\n{pieces}\nsys.stdin.read()")
    assert process.ask("a", {}, 30) == {"a": 1}
    process.end()


@pytest.mark.parametrize(
    "code",
    [
        "import signal; signal.pause()",  # neither reads nor answers
        "import sys; sys.stdin.buffer.readline(); sys.stdin.buffer.read()",  # reads and does not answer
        "import os, signal; os.write(1, b'{\"a\": '); signal.pause()",  # half an answer
    ],
)
def test_a_child_that_hangs_is_ended_at_the_timeout(start: Start, code: str) -> None:
    process = start(code)
    begun = time.monotonic()
    with pytest.raises(WaitTimeoutError, match=r"did not answer 'a' within 0\.2 s; its process was ended"):
        process.ask("a", {"long": "x" * 300_000}, 0.2)
    assert time.monotonic() - begun < 10
    check_gone(process)


def test_no_time_at_all_is_a_timeout(start: Start) -> None:
    process = start(ECHO)
    with pytest.raises(WaitTimeoutError):
        process.ask("a", {}, 0.0)
    check_gone(process)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(5)", "ended with exit code 5"),
        ("raise ValueError('the last words')", "ended with exit code 1: ValueError: the last words"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)", r"was killed by signal \d+"),
    ],
)
def test_a_child_that_ends_says_how(start: Start, code: str, message: str) -> None:
    process = start(code)
    with pytest.raises(BackendError, match=f"^cudnn.a: the planner's process {message}"):
        process.ask("a", {"long": "x" * 300_000}, 30)
    check_gone(process)


@pytest.mark.parametrize("said", ["garbage", "[1]", "{'a': 1}", "\\xff\\xfe", ""])
def test_garbage_is_no_answer(start: Start, said: str) -> None:
    process = start(f"import os, sys; sys.stdin.buffer.readline(); os.write(1, b'''{said}\\n'''); sys.stdin.read()")
    with pytest.raises(BackendError, match="answered with something that is no JSON object"):
        process.ask("a", {}, 30)
    check_gone(process)


def test_an_endless_line_is_no_answer(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 1 << 20)
    process = start("import os\nwhile True: os.write(1, b'x' * 65536)")
    with pytest.raises(BackendError, match="no JSON object"):
        process.ask("a", {}, 30)
    check_gone(process)


def test_a_child_that_ignores_its_end_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("import os, signal; os.write(1, b'{}\\n'); signal.pause()")
    assert process.ask("a", {}, 30) == {}
    process.end(0.05)
    check_gone(process)


def test_a_fork_that_holds_the_pipe_does_not_delay_the_end(start: Start) -> None:
    process = start(ECHO)
    process.ask("a", {}, 30)
    ready, done = os.pipe(), os.pipe()
    forked = os.fork()
    if forked == 0:  # holds a copy of the child's input until it is told
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    process.end(60)
    assert process._process.returncode == 0, "it was not killed"
    os.write(done[1], b"x")
    os.waitpid(forked, 0)
    for end in (*ready, *done):
        os.close(end)


def test_an_interrupt_ends_the_child(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(ECHO)

    def interrupted(line: bytes, deadline: float) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.ask("a", {}, 30)
    check_gone(process)


def test_what_cannot_be_started_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "command", lambda: ["/no/such/python"])
    with pytest.raises(BackendError, match="cannot be started: .*/no/such/python"):
        PlannerProcess()

    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        PlannerProcess()


def test_the_command_does_not_put_this_folder_on_the_path() -> None:
    assert module.command()[:2] == [sys.executable, "-P"]
