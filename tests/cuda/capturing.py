"""What the tests of capture and replay share."""

from __future__ import annotations

import gc
from typing import Any

import cuda_emulator
import numpy as np

import tazza as tz
from tests.cuda.kernels import add

__all__ = ["COUNT", "TIMEOUT", "all_are", "captured", "settled", "works", "zeros"]

TIMEOUT = 20.0
COUNT = 64


def zeros(ctx: tz.Context) -> tz.Buffer:
    """Device memory of zeros that is complete."""
    made: tz.Buffer = ctx.asarray(np.zeros(COUNT, "int64"))
    ctx.synchronize(timeout=TIMEOUT)
    return made


def all_are(ctx: tz.Context, x: tz.Buffer, value: int) -> bool:
    """Whether every element has one value."""
    return bool((ctx.to_numpy(x) == value).all())


def settled(ctx: tz.Context) -> int:
    """Live objects of the driver, when everything is over and nothing is kept for reuse."""
    ctx.synchronize(timeout=TIMEOUT)
    for _ in range(3):
        gc.collect()
        ctx.memory.trim()
    assert cuda_emulator.start().wait_idle()
    return int(cuda_emulator.start().live_objects())


def works(ctx: tz.Context, stream: tz.Stream, x: tz.Buffer) -> None:
    """Capture and replay on a stream, after something went wrong there."""
    ctx.fill(x, 1, stream=stream)
    stream.synchronize(timeout=TIMEOUT)
    with stream.capture() as graph:
        ctx.launch(add, x, 1)
    graph.replay(stream)
    stream.synchronize(timeout=TIMEOUT)
    assert all_are(ctx, x, 2)
    assert ctx.health


def captured(ctx: tz.Context, x: tz.Buffer) -> Any:
    """A graph of one fill, with ones."""
    with ctx.new_stream().capture() as graph:
        ctx.fill(x, 1)
    return graph
