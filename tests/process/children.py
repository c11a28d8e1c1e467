"""Child processes for tests: forked ones that run a function, and fresh interpreters that run a script."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

__all__ = ["TIMEOUT", "in_fork", "run_script"]

TIMEOUT = 30.0
"""Seconds after which a child counts as hung."""

_SESSION = os.getpid()
_ROOT = Path(__file__).parents[2]


def in_fork(function: Callable[[], object]) -> None:
    """Run `function` in a forked child; raises what it raised there as text, also where the child hangs or dies."""
    reading, writing = os.pipe()
    # The child is not measured: a lock of the measuring tool that another thread holds at the fork stays held there.
    tracing, in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        pid = os.fork()
        if pid == 0:
            _run_and_leave(function, writing)
    except OSError:  # no memory for a child
        os.close(reading)
        raise
    finally:
        sys.settrace(tracing)
        threading.settrace(in_threads)
        os.close(writing)
    try:
        ready, _, _ = select.select([reading], [], [], TIMEOUT)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        report = os.read(reading, 1 << 16).decode() if ready else f"hung for {TIMEOUT:g} s"
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(reading)
    assert (report, os.waitstatus_to_exitcode(status)) == ("fine", 0), f"the forked child:\n{report}"


def _run_and_leave(function: Callable[[], object], writing: int) -> NoReturn:
    if os.getppid() == _SESSION:  # not in a child's child: it would wait for the watchdog that its parent has
        faulthandler.dump_traceback_later(TIMEOUT / 2, exit=True, file=writing)  # where it hangs, if it does
    try:
        function()
        report, code = "fine", 0
    except BaseException:  # the child must not return into the parent's test session
        report, code = traceback.format_exc(), 1
    os.write(writing, report.encode()[: 1 << 15])
    os._exit(code)


def run_script(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; returns its exit code, output and errors as text.

    Args:
        source: the script, indented as it stands in the test.
        environment: variables on top of this process's.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
