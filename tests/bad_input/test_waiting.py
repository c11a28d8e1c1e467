"""Functions that raise, waits that can never end, and queues that are full."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

import tazza as tz
from tazza.errors import (
    CancelledTaskError,
    CleanupWarning,
    DeadlockError,
    QueueFullError,
    UpstreamError,
    WaitTimeoutError,
)
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT, Hold


@pytest.fixture(params=["cpu", "sim:0"])
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with tz.open(request.param, max_queued=4) as made:
        yield made


@pytest.fixture
def stream(ctx: tz.Context) -> tz.Stream:
    """A stream whose work is done by another thread, on every device."""
    return ctx.new_stream(label="queued")


def broken() -> None:
    raise ZeroDivisionError("what the user did")


def test_raising_function_fails_its_task_and_nothing_else(ctx: tz.Context, stream: tz.Stream) -> None:
    before = ctx.launch(lambda: 1, stream=stream)
    failed = ctx.launch(broken, stream=stream, label="step 7")
    needs = ctx.launch(lambda value: value, failed, label="step 8")
    other = ctx.launch(lambda: 2, stream=stream)
    assert (before.result(TIMEOUT), other.result(TIMEOUT)) == (1, 2)
    with pytest.raises(ZeroDivisionError, match="what the user did") as caught:
        failed.result(TIMEOUT)
    assert any("test_waiting.py" in note and "broken" in note for note in caught.value.__notes__)
    with pytest.raises(UpstreamError, match=r"step 8.*did not run because.*step 7.*ZeroDivisionError") as upstream:
        needs.result(TIMEOUT)
    assert isinstance(upstream.value.cause, ZeroDivisionError)
    ctx.synchronize(TIMEOUT)
    assert ctx.health


def test_failure_that_nobody_saw_is_raised_by_synchronize_once(ctx: tz.Context, stream: tz.Stream) -> None:
    ctx.launch(broken, stream=stream)
    with pytest.raises(ZeroDivisionError, match="what the user did"):
        stream.synchronize(TIMEOUT)
    stream.synchronize(TIMEOUT)


def test_raising_callback_is_named_and_stops_no_other(ctx: tz.Context) -> None:
    called = threading.Event()

    def clumsy(event: object) -> None:
        raise ZeroDivisionError("in a callback")

    event = tz.HostEvent()
    event.on_done(clumsy)
    event.on_done(lambda event: called.set())
    with pytest.warns(CleanupWarning, match=r"callback '.*clumsy' failed: ZeroDivisionError: in a callback"):
        _ends(event, called)
    assert ctx.launch(lambda: 5).result(TIMEOUT) == 5


def _ends(event: tz.HostEvent, called: threading.Event) -> None:
    event.succeed()
    assert called.wait(TIMEOUT)


def test_task_that_asks_for_its_own_result(ctx: tz.Context, stream: tz.Stream) -> None:
    handed: list[tz.Task] = []
    hold = Hold()

    def ask() -> object:
        hold.block()
        return handed[0].result()

    handed.append(ctx.launch(ask, stream=stream, label="narcissus"))
    hold.release()
    with pytest.raises(DeadlockError, match="'narcissus' would wait for itself.*launch on another stream"):
        handed[0].result(TIMEOUT)


def test_task_that_waits_for_work_queued_behind_it(ctx: tz.Context, stream: tz.Stream) -> None:
    handed: list[tz.Task] = []
    hold = Hold()

    def ask() -> object:
        hold.block()
        return handed[0].result()

    asking = ctx.launch(ask, stream=stream)
    handed.append(ctx.launch(lambda: 3, stream=stream))
    hold.release()
    with pytest.raises(DeadlockError, match=r"work queued behind it.*wait outside the task"):
        asking.result(TIMEOUT)
    assert handed[0].result(TIMEOUT) == 3


@pytest.mark.parametrize("how", ["stream", "context", "close", "event"])
def test_task_that_waits_for_its_own_stream(ctx: tz.Context, stream: tz.Stream, how: str) -> None:
    def wait() -> None:
        if how == "stream":
            stream.synchronize()
        elif how == "context":
            ctx.synchronize()
        elif how == "close":
            ctx.close()
        else:
            stream.record().synchronize()

    with pytest.raises(DeadlockError, match="wait outside the task|from inside its own task"):
        ctx.launch(wait, stream=stream).result(TIMEOUT)
    assert ctx.launch(lambda: 4, stream=stream).result(TIMEOUT) == 4


def test_full_queue_that_only_the_submitter_could_drain(ctx: tz.Context, stream: tz.Stream) -> None:
    def flood() -> None:
        for _ in range(10):
            ctx.launch(lambda: None, stream=stream)

    with pytest.raises(DeadlockError, match=r"is full \(4 submissions\).*use another stream"):
        ctx.launch(flood, stream=stream).result(TIMEOUT)


def test_full_queue_waits_with_a_timeout(ctx: tz.Context, stream: tz.Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold()
    ctx.launch(hold.block, stream=stream)
    assert hold.entered.wait(TIMEOUT)
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", "0.05")
    with pytest.raises(WaitTimeoutError, match=r"is full \(4 submissions\).*nothing was submitted"):
        for _ in range(10):
            ctx.launch(lambda: None, stream=stream)
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", str(TIMEOUT))
    hold.release()
    assert ctx.launch(lambda: 6, stream=stream).result(TIMEOUT) == 6


def test_full_queue_on_an_event_loop_is_refused_at_once(ctx: tz.Context, stream: tz.Stream) -> None:
    hold = Hold()

    async def flood() -> int:
        tasks = [ctx.launch(hold.block, stream=stream)]
        with pytest.raises(QueueFullError, match=r"await an earlier task.*asyncio\.to_thread"):
            while len(tasks) < 10:
                tasks.append(ctx.launch(lambda: None, stream=stream))
        hold.release()
        for task in tasks:
            await asyncio.wait_for(_finished(task), TIMEOUT)
        return len(tasks)

    assert 3 <= asyncio.run(flood()) <= 6


async def _finished(task: tz.Task) -> object:
    return await task


def test_wait_that_is_too_short_cancels_nothing(ctx: tz.Context, stream: tz.Stream) -> None:
    hold = Hold()
    task = ctx.launch(hold.block, stream=stream, label="slow")
    for wait in (task.result, stream.synchronize, ctx.synchronize, ctx.close):
        with pytest.raises(WaitTimeoutError):
            wait(0.01)
    with pytest.raises(WaitTimeoutError, match=r"1 of 1 .*the first is <Task 'slow'"):
        tz.wait([task], timeout=0.01)
    assert not task.cancel(), "a task that runs cannot be cancelled"
    hold.release()
    assert task.result(TIMEOUT) is None
    ctx.close(TIMEOUT)


def test_cancelled_task_says_so_and_so_do_those_that_need_it(ctx: tz.Context, stream: tz.Stream) -> None:
    hold = Hold()
    ctx.launch(hold.block, stream=stream)
    task = ctx.launch(lambda: 1, stream=stream, label="unwanted")
    needs = ctx.launch(lambda value: value, task, stream=stream)
    assert task.cancel()
    assert not task.cancel()
    with pytest.raises(CancelledTaskError, match="'unwanted' was cancelled before it started"):
        task.result(TIMEOUT)
    hold.release()
    with pytest.raises(UpstreamError, match="'unwanted'"):
        needs.result(TIMEOUT)


def test_an_adopted_stream_ends_when_its_lender_is_gone() -> None:
    """Its queue is destroyed with the lender: nothing more runs there, and nobody may wait for that."""
    with simulate(devices=1), tz.open("sim:0") as ctx:
        lender = ctx.new_stream()
        adopted = ctx.adopt_stream(lender.native)
        runner = adopted.runner
        lender.close()
        task = ctx.launch(print, stream=adopted)
        with pytest.raises(tz.errors.BackendError, match="queue was destroyed"):
            task.result(timeout=TIMEOUT)
        adopted.close()
        assert not runner.is_working
