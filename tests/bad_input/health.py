"""Is the process still well? Run a small program on every device after something went wrong."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

import tazza as tz

__all__ = ["TIMEOUT", "Hold", "assert_process_is_healthy"]

TIMEOUT = 20.0
"""Seconds that any single wait may take before a test fails."""


class Hold:
    """Keeps a function running until it is let go; lets go by itself after `TIMEOUT`.

    >>> hold = Hold()
    >>> hold.release()
    >>> hold.block("done")
    'done'
    """

    def __init__(self) -> None:
        self.entered, self._open = threading.Event(), threading.Event()

    def block(self, result: Any = None) -> Any:
        """To be launched: says that it runs, waits, and returns `result`."""
        self.entered.set()
        assert self._open.wait(TIMEOUT), "nobody let go"
        return result

    def release(self) -> None:
        """Let every call of `block` return."""
        self._open.set()


def assert_process_is_healthy() -> None:
    """Allocate, fill, copy, launch, draw and read back on the CPU, inline and queued, and on two simulated devices."""
    for name in ("cpu", "sim:0", "sim:1"):
        with tz.open(name, seed=11) as ctx:
            for stream in (ctx.stream, ctx.new_stream()):
                first, second = (ctx.allocate(32, dtype="int64") for _ in range(2))
                ctx.synchronize(TIMEOUT)
                ctx.fill(first, 20, stream=stream)
                ctx.copy(second, first, stream=stream)
                task = ctx.launch(lambda x: x + 1, second, stream=stream)
                assert ctx.to_numpy(task.result(TIMEOUT)).tolist() == [21] * 4
                stream.synchronize(TIMEOUT)
            drawn = ctx.to_numpy(ctx.random.random(4))
            assert drawn.tolist() == np.random.Generator(np.random.Philox(11)).random(4).tolist()
            assert ctx.health
    try:
        inside: object = tz.current()
    except tz.errors.NoCurrentContextError:
        return
    raise AssertionError(f"something left {inside!r} current")
