"""What users of Caffe2 relied on and find again here, where it exists already.

The numbers are those of the list "Keep" in the project's notes on Caffe2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT, Hold

PLACES = ["cpu", "sim:0", "sim:1"]


@pytest.mark.parametrize("without", [frozenset[str](), frozenset({"peer_copy", "cross_device_wait"})])
@pytest.mark.parametrize(("there", "here"), list(product(PLACES, PLACES)))
def test_keep_01_and_08_copies_between_every_pair_of_devices(there: str, here: str, without: frozenset[str]) -> None:
    """To, from and within a device, typed or as bytes, asynchronous with a fallback through the host; zero bytes do
    nothing, and the CPU is the reference."""
    with simulate(2, without=without), tz.open(there) as first, tz.open(here) as second:
        numbers = np.arange(12, dtype=np.int32).reshape(3, 4)
        source = first.allocate(48, dtype="int32", shape=(3, 4))
        target = second.allocate(48, dtype="int32", shape=(3, 4))
        first.copy(source, numbers)
        second.stream.wait(first.stream)
        second.copy(target, source)
        landed = np.empty_like(numbers)
        second.copy(landed, target)
        assert landed.tolist() == numbers.tolist()

        untyped = second.allocate(48)
        second.copy(untyped, target)
        assert second.to_numpy(untyped).tobytes() == numbers.tobytes()
        second.copy(second.allocate(0), first.allocate(0))
        second.fill(second.allocate(0, dtype="float64", shape=(0, 3)), 1)
        assert second.to_numpy(second.allocate(0)).tolist() == []
        first.synchronize(TIMEOUT)
        second.synchronize(TIMEOUT)


def test_keep_02_a_device_is_a_record_apart_from_the_seed() -> None:
    """A DeviceOption held device, index and seed; two were the same device whatever their seeds."""
    with tz.open("sim:1", seed=1) as one, tz.open("sim:1", seed=2) as two, tz.open("sim:0", seed=1) as three:
        assert one.device == two.device == tz.device("sim:1")
        assert len({one.device, two.device, three.device}) == 2
        assert one.spec != two.spec
        assert (one.device.kind, one.device.ordinal, one.spec.seed) == ("sim", 1, 1)


def test_keep_03_each_thread_has_a_current_device_and_stream() -> None:
    """The current device and stream belonged to the thread: the same thread kept its stream, others had their own."""
    with tz.open("cpu") as cpu, tz.open("sim:0") as sim:
        choices: list[tuple[tz.Context, tz.Stream]] = [(cpu, cpu.new_stream()), (sim, sim.new_stream())]
        meet, seen = threading.Barrier(2), list[bool]()

        def work(ctx: tz.Context, stream: tz.Stream) -> None:
            with ctx.on(stream):
                meet.wait(TIMEOUT)
                seen.extend(tz.current() is ctx and tz.current().stream is stream for _ in range(100))
                meet.wait(TIMEOUT)

        threads = [threading.Thread(target=work, args=choice) for choice in choices]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        assert seen == [True] * 200


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_keep_04_a_seed_per_context_or_entropy(device: str) -> None:
    """With a seed the numbers repeat, without one they differ; each context has its own generator."""

    def draw(seed: int | None) -> tuple[float, ...]:
        with tz.open(device, seed=seed) as ctx:
            return tuple(ctx.to_numpy(ctx.random.random(5)).tolist())

    assert draw(3) == draw(3) != draw(4)
    assert len({draw(None) for _ in range(5)}) == 5


def test_keep_05_the_first_outcome_of_an_event_stays() -> None:
    """INITIALIZED, SCHEDULED, SUCCESS, FAILED; the first error and its text win, and its exception is thrown again."""
    event = tz.HostEvent()
    assert [state.value for state in tz.EventStatus] == [0, 1, 2, 3]
    event.fail(KeyError("the first"))
    event.fail(ValueError("later"))
    assert event.error_message == "'the first'"
    with pytest.raises(KeyError, match="the first"):
        event.synchronize(TIMEOUT)
    hold = Hold()
    with tz.open("sim:0") as ctx:
        ctx.launch(hold.block)
        scheduled = ctx.stream.record()
        assert (scheduled.status, scheduled.error_message) == (tz.EventStatus.SCHEDULED, "No error")
        hold.release()
        scheduled.synchronize(TIMEOUT)
        assert scheduled.status is tz.EventStatus.SUCCESS


_STREAMS: dict[str, Callable[[tz.Context, tz.Context, tz.Context], tz.Stream]] = {
    "inline": lambda cpu, first, second: cpu.stream,
    "worker": lambda cpu, first, second: cpu.new_stream(),
    "another worker": lambda cpu, first, second: cpu.new_stream(),
    "device": lambda cpu, first, second: first.stream,
    "same device": lambda cpu, first, second: first.new_stream(),
    "other device": lambda cpu, first, second: second.stream,
}


@pytest.mark.parametrize(("waiter", "waited"), list(product(_STREAMS, [*_STREAMS, "host"])))
def test_keep_05_the_wait_matrix_is_full(waiter: str, waited: str) -> None:
    """Every kind of stream can wait for every kind of event; pairs that Caffe2 had not registered failed."""
    with tz.open("cpu") as cpu, tz.open("sim:0") as first, tz.open("sim:1") as second:
        order: list[str] = []
        hold = Hold()
        event: Any = tz.HostEvent()

        def come_first() -> None:
            hold.block()
            order.append("waited")

        def succeed() -> None:
            come_first()
            event.succeed()

        if waited == "host":
            threading.Thread(target=succeed).start()
        else:
            source = _STREAMS[waited](cpu, first, second)
            if source.is_inline:
                hold.release()
            source.context.launch(come_first, stream=source)
            event = source.record()
        target = _STREAMS[waiter](cpu, first, second)
        if target.is_inline:
            hold.release()
        target.wait(event)
        after = target.context.launch(lambda: order.append("waiter"), stream=target)
        hold.release()
        after.result(TIMEOUT)
        assert order == ["waited", "waiter"]


@pytest.mark.parametrize("device", PLACES)
def test_keep_07_memory_is_counted_for_each_device_and_found_by_pointer(device: str) -> None:
    """Bytes now and at most for each device; whose device a pointer belongs to can be asked."""
    with tz.open(device) as ctx, tz.open("sim:0") as other:
        others = other.memory.stats().live
        first = ctx.allocate(4096)
        second = ctx.allocate(8192)
        del second
        ctx.synchronize(TIMEOUT)
        stats = ctx.memory.stats()
        assert (stats.live, stats.peak) == (4096, 12288)
        assert other.memory.stats().live == others
        assert (tz.context_of(first), str(first.device)) == (ctx, str(ctx.device))
