"""Rule 5: a failure goes to its task, on to what needs it, and to nobody else."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import tazza as tz
from tazza.errors import CancelledTaskError, CleanupWarning, UpstreamError
from tests.litmus.harness import SEVERAL, TIMEOUT, World, attempt, fail, full, litmus, until


def cause(task: tz.Task) -> Any:
    """The type of a task's failure, and of its first cause."""
    try:
        task.result(timeout=TIMEOUT)
    except UpstreamError as error:
        return UpstreamError, type(error.cause)
    except Exception as error:
        return type(error)
    return None


@litmus(5, only="the task fails, launch does not, the stream goes on", allowed={(KeyError, 1)})
def test_a_raising_function(w: World) -> tuple[Any, int]:
    """A function that raises, and another behind it."""
    (a,) = w.streams(1)
    failed = w.here.launch(fail, stream=a)
    behind = w.here.launch(int, 1, stream=a)
    return attempt(failed.result, timeout=TIMEOUT), behind.result(timeout=TIMEOUT)


@litmus(
    5,
    only="the last fails with the first cause, the other side and the streams are well",
    allowed={((UpstreamError, KeyError), 11, 1)},
)
def test_a_failure_in_the_middle_of_a_diamond(w: World) -> tuple[Any, int, int]:
    """One task, two that take it of which one raises, one that takes both, one behind it."""
    a, b, c, d = w.streams(4)
    top = w.here.launch(int, 1, stream=a)
    left = w.here.launch(w.late(lambda n: n + 10), top, stream=b)
    right = w.here.launch(lambda n: fail(), top, stream=c)
    bottom = w.here.launch(lambda m, n: m + n, left, right, stream=d)
    behind = w.here.launch(int, 1, stream=d)
    return cause(bottom), left.result(timeout=TIMEOUT), behind.result(timeout=TIMEOUT)


@litmus(5, only="all fail with the first cause, none runs", allowed={((UpstreamError, KeyError), True)})
def test_a_failure_goes_down_a_chain(w: World) -> tuple[Any, bool]:
    """A failed task and five behind one another, passed on and ``after`` in turns, on two streams."""
    ran: list[int] = []
    streams = w.streams(2)
    task = w.here.launch(fail, stream=streams[0])
    for number in range(5):
        here = streams[number % 2]
        if number % 2:
            task = w.here.launch(ran.append, task, stream=here)
        else:
            task = w.here.launch(ran.append, number, after=task, stream=here)
    return cause(task), not ran


@litmus(5, only="the task on the other device fails with the first cause", allowed={(UpstreamError, KeyError)})
def test_a_failure_crosses_devices(w: World) -> Any:
    """A task takes a failed one of another device."""
    return cause(w.there.launch(int, w.here.launch(fail, stream=w.streams(1)[0]), stream=w.there.new_stream()))


@litmus(
    5,
    only="it never runs, what needs it fails, the rest goes on",
    allowed={(True, CancelledTaskError, (UpstreamError, CancelledTaskError), 1)},
)
def test_cancel_before_start(w: World) -> tuple[bool, Any, Any, int]:
    """Cancel a held-back task that another takes; a third is behind them."""
    ran: list[int] = []
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    task = w.here.launch(ran.append, 1, stream=a)
    dependent = w.here.launch(int, task, stream=a)
    behind = w.here.launch(int, 1, stream=a)
    cancelled = task.cancel()
    gate.succeed()
    value = behind.result(timeout=TIMEOUT)
    return cancelled and not ran, cause(task), cause(dependent), value


@litmus(5, only="either it ran or it was cancelled, never both", allowed={(True, CancelledTaskError), (False, 1)})
def test_cancel_against_start(w: World) -> tuple[bool, Any]:
    """Cancel a task while it may start."""
    (a,) = w.streams(1)
    task = w.here.launch(int, 1, stream=a)
    w.pause()
    return task.cancel(), attempt(task.result, timeout=TIMEOUT)


@litmus(5, only="the first failure once, then none", allowed={("'one'", "'two'", None)})
def test_synchronize_raises_what_nobody_saw(w: World) -> tuple[str, str, Any]:
    """Two functions raise on one stream, which is synchronised three times."""
    (a,) = w.streams(1)
    w.here.launch(fail, "one", stream=a)
    w.here.launch(fail, "two", stream=a)
    shown = []
    for synchronize in (a.synchronize, w.here.synchronize, a.synchronize):
        try:
            synchronize(timeout=TIMEOUT)
        except KeyError as error:
            shown.append(str(error))
        else:
            shown.append("none")
    return shown[0], shown[1], None if shown[2] == "none" else shown[2]


@litmus(5, only="a failure that somebody saw is not raised again", allowed={(KeyError, None)})
def test_a_seen_failure_is_settled(w: World) -> tuple[Any, Any]:
    """Ask for a failed task's result, then synchronise."""
    (a,) = w.streams(1)
    failed = w.here.launch(fail, stream=a)
    return attempt(failed.result, timeout=TIMEOUT), attempt(a.synchronize, timeout=TIMEOUT)


@litmus(5, only="what is behind it runs, synchronize raises", allowed={(1, ValueError, None)})
def test_a_failed_host_event(w: World) -> tuple[int, Any, Any]:
    """A stream waits for a host event that fails."""
    gate, (a,) = tz.HostEvent(), w.streams(1)
    a.wait(gate)
    behind = w.here.launch(int, 1, stream=a)
    gate.fail(ValueError("no data"))
    value = behind.result(timeout=TIMEOUT)
    return value, attempt(a.synchronize, timeout=TIMEOUT), attempt(a.synchronize, timeout=TIMEOUT)


@litmus(5, only="the first outcome", allowed={(True, False), (False, True)})
def test_the_first_outcome_wins(w: World) -> tuple[bool, bool]:
    """One thread lets a host event succeed, another lets it fail, while a stream waits."""
    gate, (a,), won = tz.HostEvent(), w.streams(1), dict[str, bool]()
    a.wait(gate)
    w.threads(
        lambda: won.update(good=gate.succeed()),
        lambda: won.update(bad=gate.fail(ValueError("no data"))),
    )
    raised = attempt(a.synchronize, timeout=TIMEOUT) is ValueError
    return won["good"] and not raised, won["bad"] and raised


@litmus(5, only="once, by name", allowed={1})
def test_a_failure_that_nobody_asks_about(w: World) -> int:
    """A task fails on a context that is dropped."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ctx = tz.context(w.here.spec)
        stream = ctx.new_stream()
        ctx.launch(fail, stream=stream, label="forgotten")
        stream.record().synchronize(timeout=TIMEOUT)
        del stream, ctx
        until(lambda: (w.cell(), seen)[1])
    return sum(one.category is CleanupWarning and "'forgotten'" in str(one.message) for one in seen)


@litmus(5, only="the failure is kept, what the function held is not", allowed={(KeyError, True)})
def test_a_stored_failure_keeps_no_frames(w: World) -> tuple[Any, bool]:
    """A function that holds an object in a local variable raises."""

    class Thing:
        pass

    refs: list[Any] = []

    def fail_with_thing() -> None:
        thing = Thing()
        refs.append(weakref.ref(thing))
        raise KeyError("first")

    task = w.here.launch(fail_with_thing, stream=w.streams(1)[0])
    return attempt(task.result, timeout=TIMEOUT), until(lambda: refs[0]() is None)


@litmus(5, only="the task fails, launch does not", allowed={tz.OutOfMemoryError}, worlds=SEVERAL, seeds=2)
def test_a_move_that_fails(w: World) -> Any:
    """A task takes an array of another device for which its own context has no room."""
    small = w.open(1, memory_limit=1024)
    made = w.here.launch(full, 512, 0)
    if w.seed % 2:
        made.result(timeout=TIMEOUT)
    return attempt(small.launch(len, made).result, timeout=TIMEOUT)


@litmus(5, only="the devices are well", allowed={(True, True, 1)})
def test_failures_never_change_health(w: World) -> tuple[bool, bool, int]:
    """Functions raise on two devices."""
    for ctx in (w.here, w.there):
        attempt(ctx.launch(fail).result, timeout=TIMEOUT)
    return bool(w.here.health), bool(w.there.health), w.read(w.cell(1))
