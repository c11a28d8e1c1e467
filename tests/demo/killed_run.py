"""Run the demo in a process of its own that kills itself at a given point: ``killed_run.py POINT NUMBER CHECKPOINT``.

Points, each at its NUMBER-th time: ``step`` before a step; ``torn`` with half of a checkpoint written; ``written`` with
all of it written and flushed; ``moved`` with the new file in place and its directory not yet flushed.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tazza.demo import Training, digits
from tests.demo import small


def main(point: str, number: int, checkpoint: str) -> None:
    """Plant the death and run into it."""
    digits.load = small.load
    left = number

    def now() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    fsync, replace, step = os.fsync, os.replace, Training._step

    def dying_fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode) and point == "torn" and now():
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
            die()
        fsync(handle)

    def dying_replace(source: Any, target: Any) -> None:
        dies = point in ("written", "moved") and now()
        if dies and point == "written":
            die()
        replace(source, target)
        if dies:
            die()

    def dying_step(self: Training, batch: int, rate: float) -> int:
        if point == "step" and now():
            die()
        return step(self, batch, rate)

    patch: Callable[[object, str, object], None] = setattr
    patch(os, "fsync", dying_fsync)
    patch(os, "replace", dying_replace)
    patch(Training, "_step", dying_step)
    small.small_run("cpu", 5, checkpoint)
    raise SystemExit(f"the run ended without reaching {point} {number}")


def die() -> None:
    """End like a loss of power: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
