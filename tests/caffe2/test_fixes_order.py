"""What Caffe2 got wrong about devices, streams, events and copies, and what must hold here instead.

The numbers are those of the list "Fix" in the project's notes on Caffe2.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

import tazza as tz
from tazza.errors import DeviceLostError, NoCurrentContextError, WaitTimeoutError
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT, Hold

NO_PEERS = frozenset({"peer_copy", "cross_device_wait"})


@pytest.fixture(params=[frozenset(), NO_PEERS], ids=["peers", "no-peers"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[tz.Context, tz.Context]]:
    """Contexts on two simulated devices."""
    with simulate(2, without=request.param), tz.open("sim:0") as first, tz.open("sim:1") as second:
        yield first, second


def test_fix_01_switching_is_a_scope_that_restores() -> None:
    """Caffe2's SwitchToDevice changed the thread's device and stream and left them so; id -1 looped without end.

    Here a stream is made current by a scope that restores whatever happens, None keeps the current one, a queue of
    another library can be adopted, and no constructor changes what is current.
    """
    with tz.open("sim:0") as ctx, tz.open("sim:1") as other:
        assert tz.current() is other
        stream = ctx.new_stream()
        tz.context("cpu").close()
        assert tz.current() is other, "a constructor changed what is current"
        with pytest.raises(KeyError):
            with ctx.on(stream):
                assert (tz.current(), ctx.stream) == (ctx, stream)
                assert ctx.launch(lambda: None, stream=None).stream is stream, "None keeps the current stream"
                raise KeyError
        assert (tz.current(), ctx.stream) == (other, ctx.own_stream)
        adopted = ctx.adopt_stream(stream.native)
        assert ctx.launch(lambda: 3, stream=adopted).result(TIMEOUT) == 3
    with pytest.raises(NoCurrentContextError):
        tz.current()


def test_fix_02_a_context_is_bound_to_its_device_and_stream(pair: tuple[tz.Context, tz.Context]) -> None:
    """A CUDAContext used "whatever stream is current", and could be finished only in the thread that had switched.

    Here its device and stream are its own, whatever is current, and any thread submits and synchronises.
    """
    ctx, other = pair
    buffer = ctx.allocate(80, dtype="int64")
    with ThreadPoolExecutor(2) as executor, other:
        executor.submit(ctx.fill, buffer, 7).result(TIMEOUT)
        task = executor.submit(ctx.launch, lambda x: x.sum(), buffer).result(TIMEOUT)
        executor.submit(ctx.synchronize, TIMEOUT).result(TIMEOUT)
        assert task.is_done
        assert (task.stream, task.result(TIMEOUT)) == (ctx.own_stream, 70)


def test_fix_03_the_device_index_is_never_lost(pair: tuple[tz.Context, tz.Context]) -> None:
    """A Caffe2 tensor kept only its device type through a change of dtype, a fetch or a reuse: index 1 became 0.

    Here everything made from a context on ``sim:1`` is on ``sim:1`` while ``sim:0`` is current.
    """
    first, ctx = pair
    with first:
        buffer = ctx.allocate(64, dtype="float64")
        made = {
            "stream": ctx.new_stream(),
            "slice": buffer[2:4],
            "view": buffer.view("int32"),
            "empty": ctx.empty((2, 3), "float32"),
            "host data": ctx.asarray([1.0, 2.0]),
            "moved": ctx.asarray(first.asarray([1.0, 2.0])),
            "dtype": ctx.asarray(ctx.asarray([1.0, 2.0]), dtype="float32"),
            "random": ctx.random.random(4),
            "result": ctx.launch(lambda: np.ones(3)).result(TIMEOUT),
        }
        del buffer
        made["reused"] = ctx.allocate(64)
        assert {name: str(thing.device) for name, thing in made.items()} == dict.fromkeys(made, "sim:1")
        assert tz.context_of(ctx.stream.record()) is tz.context_of(made["reused"]) is ctx
        ctx.synchronize(TIMEOUT)


def test_fix_04_streams_are_not_compared_by_raw_handle(pair: tuple[tz.Context, tz.Context]) -> None:
    """Two devices' default streams had the same null handle, so Caffe2 took a wait between them for needless.

    Here streams are equal only to themselves, also where two share a queue, and a wait between devices is a wait.
    """
    ctx, other = pair
    twin = ctx.adopt_stream(ctx.stream.native)
    assert twin.native is ctx.stream.native
    assert twin != ctx.stream
    assert len({twin, ctx.stream, other.stream}) == 3

    hold = Hold()
    ctx.launch(hold.block)
    other.stream.wait(ctx.stream)
    after = other.launch(lambda: 1)
    assert hold.entered.wait(TIMEOUT)
    with pytest.raises(WaitTimeoutError):
        after.result(0.02)
    hold.release()
    assert after.result(TIMEOUT) == 1


def test_fix_08_copies_between_devices_are_ordered_on_both_sides(pair: tuple[tz.Context, tz.Context]) -> None:
    """Caffe2 queued such a copy on one device's stream: the other's later work could overtake it, and freed memory
    or changed host memory could still be read by it.

    Here what the source's stream does later comes after the copy, both buffers live until it is done, and a host
    source may be changed when the call returns.
    """
    ctx, other = pair
    words = 1 << 15
    for round_ in range(5):
        source, target = ctx.allocate(words * 8, dtype="int64"), other.allocate(words * 8, dtype="int64")
        host = np.full(words, round_)
        ctx.copy(source, host)
        host[:] = -1
        other.copy(target, source)
        ctx.fill(source, -2)  # later on the source's stream: must not overtake the copy
        del source
        ctx.fill(ctx.allocate(words * 8, dtype="int64"), -3)  # what takes its memory over comes later too
        assert np.unique(other.to_numpy(target)).tolist() == [round_]


def test_fix_08_a_dropped_source_lives_until_its_copy_is_done(pair: tuple[tz.Context, tz.Context]) -> None:
    """The same hazard with the copy held back for certain: the source is dropped long before it is read."""
    ctx, other = pair
    hold = Hold()
    other.launch(hold.block)
    source, target = ctx.allocate(800, dtype="int64"), other.allocate(800, dtype="int64")
    ctx.fill(source, 5)
    other.copy(target, source)
    del source
    again = [ctx.allocate(800, dtype="int64") for _ in range(4)]
    for buffer in again:
        ctx.fill(buffer, 9)
    hold.release()
    assert np.unique(other.to_numpy(target)).tolist() == [5]


def test_fix_12_event_waits_have_timeouts_and_raise() -> None:
    """Finish of a Caffe2 event had no timeout and never raised; waiting for an unrecorded event never ended.

    Here every wait takes a timeout and raises the failure, and only HostEvents can be unfinished by themselves.
    """
    event = tz.HostEvent("never")
    assert (event.status, event.error_message) == (tz.EventStatus.INITIALIZED, "No error")
    with pytest.raises(WaitTimeoutError, match="'never'.*nothing was cancelled"):
        event.synchronize(0.01)
    assert event.fail(ValueError("first"))
    assert not event.fail(ValueError("second"))
    assert not event.succeed()
    assert (event.status, event.error_message) == (tz.EventStatus.FAILED, "first")
    for _ in range(2):
        with pytest.raises(ValueError, match="first"):
            event.synchronize(TIMEOUT)
    with pytest.raises(TypeError):
        tz.Event()  # type: ignore[call-arg]  # an unrecorded event cannot be made


def test_fix_12_callbacks_run_under_no_lock_and_also_on_failure() -> None:
    """Callbacks of a Caffe2 event ran under its mutex, and not at all where it was recorded with an error.

    Here a callback may do anything with its event, however that ended.
    """
    event, seen = tz.HostEvent(), threading.Event()

    def use_it(own: tz.HostEvent) -> None:
        assert not own.succeed()
        own.on_done(lambda _: seen.set())
        with pytest.raises(ValueError, match="why"):
            own.synchronize(TIMEOUT)

    event.on_done(use_it)
    event.fail(ValueError("why"))
    assert seen.wait(TIMEOUT)


def test_fix_12_scheduled_device_work_can_be_abandoned() -> None:
    """A recorded CUDA event could neither be cancelled nor given up. Here ``close(abandon=True)`` does not wait."""
    hold = Hold()
    with tz.open("sim:0") as ctx:
        ctx.launch(hold.block)
        assert hold.entered.wait(TIMEOUT)
        behind = ctx.launch(lambda: 1, after=tz.HostEvent("never"))
        ctx.close(abandon=True)
        assert ctx.is_closed
        with pytest.raises(tz.errors.CancelledTaskError, match="abandoned"):
            behind.result(TIMEOUT)
        hold.release()


def test_fix_14_a_stream_is_made_not_picked_and_errors_are_not_busy() -> None:
    """Caffe2's executors polled for a free stream and took any error of the query for "busy".

    Here a new stream is idle while all others are busy, asking never blocks, and asking a lost device raises.
    """
    holds = [Hold() for _ in range(4)]
    with simulate(1) as simulation, ExitStack() as stack:
        ctx = tz.context("sim:0")
        stack.callback(ctx.close, abandon=True)
        busy = [ctx.new_stream() for _ in holds]
        for hold, stream in zip(holds, busy, strict=True):
            stack.callback(hold.release)
            ctx.launch(hold.block, stream=stream)
            assert hold.entered.wait(TIMEOUT)
        assert not any(stream.is_done for stream in busy)
        assert ctx.launch(lambda: 1, stream=ctx.new_stream()).result(TIMEOUT) == 1
        simulation.lose(0, "fell off the bus")
        with pytest.raises(DeviceLostError, match="fell off the bus"):
            _ = busy[0].is_done
