"""Interpreter exit with work in flight: refuse new work, drain for a while, name what is abandoned."""

from __future__ import annotations

import atexit
import time

from tazza import config
from tazza.core import segment
from tazza.core.runtime import live_runtimes
from tazza.errors import CleanupWarning, TazzaError
from tazza.util.report import report

__all__ = ["drain_at_exit"]


def drain_at_exit() -> None:
    """Close every context that is still open, within ``TAZZA_EXIT_TIMEOUT`` seconds for all together.

    The names of shared memory go too, as nobody is left who could.
    """
    deadline = time.monotonic() + config.exit_timeout()
    for runtime in live_runtimes():
        for ctx in runtime.contexts():
            ctx.gate.shut()
    for runtime in live_runtimes():
        for ctx in runtime.contexts():
            _close(ctx, max(0.0, deadline - time.monotonic()))
    segment.forsake()


def _close(ctx: object, timeout: float) -> None:
    runtime = ctx._runtime  # type: ignore[attr-defined]
    try:
        ctx.close(timeout)  # type: ignore[attr-defined]
    except TimeoutError:
        left = ", ".join(sorted(set(runtime.in_flight.values()))) or "queued work"
        report(f"interpreter exit abandons work on {runtime.name}: {left}", CleanupWarning)
    except TazzaError as error:
        report(f"closing {ctx!r} at interpreter exit", CleanupWarning, error=error)
    except BaseException as error:  # a task's SystemExit too: the other contexts are still to be drained
        report(f"a task on {runtime.name} failed and nobody asked", CleanupWarning, error=error)


atexit.register(drain_at_exit)
