"""Memory that work uses which its stream has not even handed to the device yet."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import tazza as tz
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT


@pytest.mark.parametrize("without", [frozenset[str](), frozenset({"cross_device_wait", "peer_copy"})])
def test_memory_of_deferred_work_is_not_reused_before_it_ran(without: frozenset[str]) -> None:
    """The pool asks for the end of a stream's work in whatever thread allocates next. Where that is the stream's own
    submitter, which is about to hand over the head of the FIFO, the end is still that of the whole FIFO."""
    with simulate(2, without=without), tz.open("sim:1") as far, tz.open("sim:0") as ctx:
        moved, filled = tz.HostEvent("let the result move"), tz.HostEvent("let the fill run")
        stream = ctx.new_stream()
        result = far.launch(lambda: np.arange(4), after=moved)
        buffer = ctx.allocate(1 << 20, dtype="int64")
        address = buffer.address
        first = ctx.launch(lambda array: int(array.sum()), result, stream=stream)  # its move allocates
        stream.wait(filled)
        ctx.fill(buffer, 7, stream=stream)
        del buffer
        moved.succeed()
        assert first.result(TIMEOUT) == 6
        for _ in range(20):
            again = ctx.allocate(1 << 20, dtype="int64")
            assert again.address != address, "the memory was given away while a fill of it was still to come"
            ctx.own_stream.synchronize(TIMEOUT)
            del again
        filled.succeed()
        stream.synchronize(TIMEOUT)
        ctx.memory.stats()
        ctx.synchronize(TIMEOUT)
        assert ctx.memory.stats().live == 0


@pytest.mark.parametrize("device", ["cpu", "sim:0"])
def test_a_full_queue_stays_full_however_often_it_was_synchronised(device: str) -> None:
    """What tazza submits for itself (the ends of streams, marks of the pool) must not make a bounded queue longer."""
    with tz.open(device, max_queued=4) as ctx:
        stream = ctx.new_stream()
        for _ in range(20):
            ctx.launch(lambda: None, stream=stream)
            ctx.synchronize(TIMEOUT)
        gate, accepted = tz.HostEvent(), list[tz.Task]()

        async def flood() -> None:
            with pytest.raises(tz.errors.QueueFullError):
                while len(accepted) < 50:
                    accepted.append(ctx.launch(lambda: None, after=gate, stream=stream))

        asyncio.run(flood())
        gate.succeed()
        assert tz.wait(accepted, TIMEOUT) == [None] * len(accepted)
        assert 3 <= len(accepted) <= 6
