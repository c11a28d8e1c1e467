"""An asyncio service in front of a device: awaiting a task never blocks the loop.

Run: python examples/serve.py [device]
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

import tazza as tz


async def answer(ctx: tz.Context, weights: object, request: int) -> float:
    """Score one request."""
    x = np.full(64, request, "float32")
    return await ctx.launch(lambda x, w: float(x @ w), ctx.asarray(x), weights)


async def serve(ctx: tz.Context) -> None:
    """Answer 100 requests at once."""
    weights = ctx.asarray(np.linspace(0, 1, 64, dtype="float32"))
    answers = await asyncio.gather(*(answer(ctx, weights, request) for request in range(100)))
    assert answers == sorted(answers)
    print(f"{ctx.device}: {len(answers)} answers, the last is {answers[-1]:.1f}")


def main(device: str) -> None:
    """Open the device and serve."""
    with tz.open(device, memory_limit="16MiB") as ctx:
        asyncio.run(serve(ctx))


if __name__ == "__main__":
    main(*sys.argv[1:] or ["sim:0"])
