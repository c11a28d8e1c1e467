"""A program on tazza, to be tested without a GPU: batches go to a device, are worked on there, and come back."""

from contextlib import ExitStack

import numpy as np
import tazza as tz


def mirrored(x: tz.Buffer) -> tz.Buffer:
    """Enqueue what puts a batch and its copy one after the other. A launched function only enqueues."""
    here, count = tz.current(), x.shape[0]
    out: tz.Buffer = here.empty((2 * count,), x.dtype)
    here.copy(out[:count], x)
    here.copy(out[count:], x)
    return out


def process(batches: list[np.ndarray], devices: list[str], memory_limit: str = "1MiB") -> list[np.ndarray]:
    """Spread batches over devices, each with two streams, so that copies of one overlap with work on another."""
    with ExitStack() as opened:
        contexts = [opened.enter_context(tz.open(name, memory_limit=memory_limit)) for name in devices]
        streams = [(ctx, ctx.new_stream()) for ctx in contexts for _ in range(2)]
        tasks = []
        for number, batch in enumerate(batches):
            ctx, stream = streams[number % len(streams)]
            with ctx.on(stream):
                tasks.append((ctx, ctx.launch(mirrored, ctx.asarray(batch))))
        return [ctx.to_numpy(task.result(timeout=10)) for ctx, task in tasks]
