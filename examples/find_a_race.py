"""A forgotten wait, found on a laptop: simulated queues run late on purpose, so old data is seen.

Run: python examples/find_a_race.py
"""

from __future__ import annotations

import numpy as np

import tazza as tz


def produce_and_consume(ctx: tz.Context, *, wait: bool) -> bool:
    """Fill a buffer on one stream and read it on another; return whether the reader saw the new data."""
    producer, consumer = ctx.new_stream(), ctx.new_stream()
    data = ctx.allocate(8 * 1000, dtype="float64", shape=(1000,))
    ctx.fill(data, 0.0, stream=producer)
    producer.synchronize(timeout=10)
    ctx.fill(data, 1.0, stream=producer)
    if wait:
        consumer.wait(producer)
    seen = ctx.launch(lambda x: float(np.min(x)), data, stream=consumer)
    return seen.result(timeout=10) == 1.0


def main() -> None:
    """Count right answers with and without the wait."""
    rounds = 50
    with tz.open("sim:0") as ctx:
        for wait in (False, True):
            right = sum(produce_and_consume(ctx, wait=wait) for _ in range(rounds))
            print(f"{'with' if wait else 'without'} the wait: {right} of {rounds} right")
            assert right == rounds or not wait


if __name__ == "__main__":
    main()
