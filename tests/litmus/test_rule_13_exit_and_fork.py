"""Rule 13: a forked child cannot use what it inherited and is not hurt by it; interpreter exit drains."""

from __future__ import annotations

import os
import pickle
import select
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ForkedError, NoCurrentContextError
from tests.litmus.harness import CPU, TIMEOUT, World, attempt, litmus, put

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def forked(function: Callable[[], Any]) -> Any:
    """What the function returns in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, pickle.dumps(attempt(function)))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], TIMEOUT)[0], "the forked child hangs"
        return pickle.loads(os.read(reading, 1 << 16))
    finally:
        os.close(reading)
        os.waitpid(child, 0)


@litmus(13, only="all are refused", allowed={frozenset({ForkedError})}, seeds=2)
def test_fork_refuses_what_was_inherited(w: World) -> Any:
    """A child uses context, stream, task, event and buffer of its parent."""
    ctx, x, (a,) = w.here, w.cell(), w.streams(1)
    task, event = ctx.launch(int, stream=a), a.record()
    calls = (
        lambda: ctx.allocate(64),
        lambda: ctx.launch(int),
        lambda: ctx.fill(x, 1),
        lambda: ctx.to_numpy(x),
        lambda: ctx.synchronize(timeout=1),
        lambda: a.record(),
        lambda: a.synchronize(timeout=1),
        lambda: event.synchronize(timeout=1),
        lambda: task.result(timeout=1),
        lambda: x[0:1],
        lambda: ctx.random.random(4),
    )
    return forked(lambda: frozenset(attempt(call) for call in calls))


@litmus(13, only="nothing happens", allowed={(None, None, True, NoCurrentContextError)}, seeds=2)
def test_fork_leaves_cleaning_up_alone(w: World) -> Any:
    """A child of a fork inside ``with ctx:`` closes, leaves, prints and drops what it inherited."""
    ctx, x = w.here, w.cell()
    box = [x]

    def child() -> Any:
        box.clear()
        left = attempt(ctx.__exit__, None, None, None)
        return left, attempt(ctx.close, timeout=1), "Context" in repr(ctx), attempt(tz.current)

    with ctx:
        return forked(child)


@litmus(13, only="the child's context works", allowed={3}, seeds=2)
def test_a_new_context_in_the_child(w: World) -> Any:
    """A child makes a context of its own on the same device and computes."""
    name = w.here.device.name
    w.here.launch(int, stream=w.streams(1)[0]).result(timeout=TIMEOUT)

    def child() -> int:
        with tz.open(name) as ctx:
            x = ctx.asarray(np.ones(1, np.int64), copy=True)
            ctx.launch(put, x, 3).result(timeout=TIMEOUT)
            return int(ctx.to_numpy(x)[0])

    return forked(child)


@litmus(13, only="the parent's work goes on, the child reads the array", allowed={(7, 1)}, worlds=CPU, seeds=4)
def test_fork_with_work_in_flight(w: World) -> tuple[int, int]:
    """Fork while a task is held back; the child reads an array in the parent's pooled memory."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    values = w.here.asarray([7], copy=True)
    a.wait(gate)
    task = w.here.launch(int, 1, stream=a)
    seen = forked(lambda: int(values[0]))
    gate.succeed()
    return seen, task.result(timeout=TIMEOUT)


_EXIT = """
import sys, tazza as tz
ctx = tz.context(sys.argv[1])
stream, gate = ctx.new_stream(), tz.HostEvent()
stream.wait(gate)
for number in range(3):
    ctx.launch(lambda n: print(n, flush=True), number, stream=stream)
gate.succeed()
"""


@litmus(13, only="what was queued is done before the interpreter ends", allowed={(0, "0 1 2", "")}, seeds=1)
def test_exit_drains(w: World) -> tuple[int, str, str]:
    """A process ends right after its launches."""
    done = subprocess.run(
        [sys.executable, "-c", _EXIT, w.here.device.name],
        env=os.environ | {"TAZZA_SIM_DEVICES": str(len(w.devices))},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split()), done.stderr
