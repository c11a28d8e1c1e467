"""Rule 15: with ``deterministic=True`` the same program gives the same bits, whatever the threads do."""

from __future__ import annotations

from typing import Any

import tazza as tz
from tests.litmus.harness import TIMEOUT, World, litmus

SHARDS = 6


def shard(w: World) -> Any:
    """A product of random matrices; the numbers belong to the launch."""
    ctx = tz.current()
    w.pause()
    return ctx.xp.matmul(ctx.random.random((8, 32), dtype="float32"), ctx.random.random((32, 8), dtype="float32"))


def total(parts: list[Any]) -> Any:
    """The sum in index order."""
    result = parts[0]
    for part in parts[1:]:
        result = result + part
    return result


def run(w: World, streams: int, seed: int = 7) -> bytes:
    """The sum over all shards, computed on so many streams, as bytes."""
    ctx = w.open(seed=seed, deterministic=True)
    queues = [ctx.new_stream() for _ in range(streams)]
    parts = [ctx.launch(shard, w, stream=queues[number % streams]) for number in range(SHARDS)]
    result = ctx.launch(total, parts, stream=queues[-1]).result(timeout=TIMEOUT)
    return bytes(ctx.to_numpy(result).tobytes())


@litmus(15, only="equal bits", allowed={True}, seeds=6)
def test_equal_results_twice(w: World) -> bool:
    """A sum of random products over three streams, twice."""
    return run(w, 3) == run(w, 3)


@litmus(15, only="equal bits", allowed={True}, seeds=6)
def test_equal_results_on_any_number_of_streams(w: World) -> bool:
    """The same on one stream and on six."""
    return run(w, 1) == run(w, SHARDS)


@litmus(15, only="other bits: the seed counts", allowed={False}, seeds=2)
def test_another_seed(w: World) -> bool:
    """The same with two seeds."""
    return run(w, 2) == run(w, 2, seed=8)


@litmus(15, only="the task's numbers are those of its launch", allowed={True}, seeds=6)
def test_draws_do_not_depend_on_who_comes_first(w: World) -> bool:
    """Four tasks draw on four streams held back by gates that open in the reverse order, and then on one stream."""

    def draw(ctx: tz.Context, streams: list[tz.Stream], gates: list[tz.HostEvent]) -> list[float]:
        for stream, gate in zip(streams, gates, strict=True):
            stream.wait(gate)
        tasks = [
            ctx.launch(lambda: tz.current().random.random(1, dtype="float32"), stream=streams[n % len(streams)])
            for n in range(4)
        ]
        for gate in reversed(gates):
            gate.succeed()
        return [float(ctx.to_numpy(drawn)[0]) for drawn in tz.wait(tasks, timeout=TIMEOUT)]

    one, two = w.open(seed=3), w.open(seed=3)
    apart = draw(one, w.streams(4, one), [tz.HostEvent() for _ in range(4)])
    return apart == draw(two, w.streams(1, two), [tz.HostEvent()])
