"""Scripts in child processes: what breaks there is a finding and not the end of the examination."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

__all__ = ["Child", "run_child"]

_START = "import sys; p = sys.argv.pop(1); exec(compile(open(p, encoding='utf-8').read(), p, 'exec'))"
_DEATH = 5.0  # seconds that a killed process may take to end


@final
@dataclass(frozen=True, slots=True)
class Child:
    """How a child ended.

    Attributes:
        said: the values that it wrote, one a line, as far as it came.
        state: ``"fine"``, ``"failed"`` (an exit code), ``"crashed"`` (a signal) or ``"hung"``.
        detail: its exit code or signal, and the last line that it wrote as an error.
    """

    said: tuple[dict[str, Any], ...]
    state: str
    detail: str

    def last(self, key: str) -> Any:
        """The last value said under a key, or None."""
        return next((value[key] for value in reversed(self.said) if key in value), None)


def run_child(script: str, arguments: Sequence[str], *, timeout: float) -> Child:
    """Run a script of this folder as a fresh process that inherits folder and environment.

    Args:
        script: its file name; it writes JSON objects, one a line.
        arguments: for it.
        timeout: seconds after which it is killed, together with what it started.
    """
    # Not `python FILE`: that would put this folder on the child's path, where the user's own folder belongs.
    command = [sys.executable, "-c", _START, str(Path(__file__).with_name(script)), *arguments]
    # Files, not pipes: what the child itself starts may outlive it and would hold a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
        )
        hung = not _ends(process, timeout)
        output.seek(0)
        errors.seek(0)
        said, complaint = _objects(output.read()), errors.read().decode("utf-8", "replace").strip()
    code = process.returncode or 0
    if hung:
        state, detail = "hung", f"no answer within {timeout:g} s"
    elif code < 0 or code > 0x7FFFFFFF:  # a signal; on Windows an exception's number
        state, detail = "crashed", _signal_name(code)
    else:
        state, detail = ("failed", f"exit code {code}; {complaint.rpartition(chr(10))[2]}") if code else ("fine", "")
    return Child(tuple(said), state, detail)


def _ends(process: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait for the child; if it does not end, or the wait is interrupted, kill it with what it started."""
    try:
        process.wait(timeout)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        if process.returncode is None:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    try:
        process.wait(_DEATH)
    except subprocess.TimeoutExpired:  # it sleeps in the kernel, in a driver that does not answer: no one can end it
        pass


def _signal_name(code: int) -> str:
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # not a signal of this system
        return f"ended with {code:#x}"


def _objects(output: bytes) -> list[dict[str, Any]]:
    said = []
    for line in output.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:  # half a line of a child that was stopped
            continue
        if isinstance(value, dict):
            said.append(value)
    return said
