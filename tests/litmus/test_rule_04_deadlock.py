"""Rule 4: whoever would wait for himself is told so at once; every other wait ends by its timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import tazza as tz
from tazza.errors import DeadlockError, WaitTimeoutError
from tests.litmus.harness import TIMEOUT, World, attempt, litmus

_REFUSED = {DeadlockError}


def inside_a_task(w: World, form: Callable[[tz.Task, tz.Stream], Any]) -> Any:
    """What ``form(task, stream)`` gives inside the task on a stream that has more work queued behind it."""
    gate, own, (stream,) = tz.HostEvent(), list[tz.Task](), w.streams(1)
    stream.wait(gate)
    own.append(w.here.launch(lambda: attempt(form, own[0], stream), stream=stream))
    w.here.launch(int, stream=stream)
    gate.succeed()
    return own[0].result(timeout=TIMEOUT)


@litmus(4, only="refused", allowed=_REFUSED)
def test_own_result(w: World) -> Any:
    """A task asks for its own result."""
    return inside_a_task(w, lambda task, stream: task.result(timeout=TIMEOUT))


@litmus(4, only="refused", allowed=_REFUSED)
def test_own_result_among_others(w: World) -> Any:
    """A task waits for a list of tasks that it is one of."""
    return inside_a_task(w, lambda task, stream: tz.wait([task], timeout=TIMEOUT))


@litmus(4, only="refused", allowed=_REFUSED)
def test_awaiting_oneself(w: World) -> Any:
    """A task runs an event loop and awaits itself."""

    async def wait_for(task: tz.Task) -> Any:
        return await task

    return inside_a_task(w, lambda task, stream: asyncio.run(wait_for(task)))


@litmus(4, only="refused", allowed=_REFUSED)
def test_an_event_behind_oneself(w: World) -> Any:
    """A task records on its own stream and blocks for the event."""
    return inside_a_task(w, lambda task, stream: stream.record().synchronize(timeout=TIMEOUT))


@litmus(4, only="refused", allowed=_REFUSED)
def test_own_stream(w: World) -> Any:
    """A task synchronises its own stream."""
    return inside_a_task(w, lambda task, stream: stream.synchronize(timeout=TIMEOUT))


@litmus(4, only="refused", allowed=_REFUSED)
def test_own_context(w: World) -> Any:
    """A task synchronises its own context."""
    return inside_a_task(w, lambda task, stream: w.here.synchronize(timeout=TIMEOUT))


@litmus(4, only="refused", allowed=_REFUSED)
def test_closing_from_inside(w: World) -> Any:
    """A task closes its own context."""
    return inside_a_task(w, lambda task, stream: w.here.close(timeout=TIMEOUT))


@litmus(4, only="refused", allowed=_REFUSED)
def test_a_queue_that_only_oneself_could_drain(w: World) -> Any:
    """A task launches more on its own stream than the queue holds."""
    ctx = w.open(max_queued=4)
    stream = ctx.new_stream()
    task = ctx.launch(lambda: attempt(lambda: [ctx.launch(int, stream=stream) for _ in range(20)]), stream=stream)
    return task.result(timeout=TIMEOUT)


@litmus(4, only="the wait ends by its timeout and nothing was cancelled", allowed={(WaitTimeoutError, 1)})
def test_a_wait_ends(w: World) -> tuple[Any, int]:
    """Ask, with a short timeout, for a task behind a closed gate; then open the gate."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(int, 1, stream=a)
    early = attempt(task.result, timeout=0.001)
    gate.succeed()
    return early, task.result(timeout=TIMEOUT)


@litmus(
    4,
    only="at least one wait ends by its timeout, and both tasks end",
    allowed={(WaitTimeoutError, WaitTimeoutError), (WaitTimeoutError, "other"), ("other", WaitTimeoutError)},
)
def test_two_tasks_wait_for_each_other(w: World) -> tuple[Any, Any]:
    """Two tasks on two streams ask for each other's results, with a timeout."""
    gate, tasks, streams = tz.HostEvent(), list[tz.Task](), w.streams(2)
    for number, stream in enumerate(streams):
        stream.wait(gate)
        tasks.append(w.here.launch(lambda n: _word(attempt(tasks[1 - n].result, 0.005)), number, stream=stream))
    gate.succeed()
    one, two = tz.wait(tasks, timeout=TIMEOUT)
    return one, two


def _word(outcome: Any) -> Any:
    return outcome if outcome is WaitTimeoutError or outcome is DeadlockError else "other"
