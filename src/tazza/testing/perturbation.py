"""Thread jitter: the same program in other interleavings, drawn from a seed."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tazza.hot import Operation, listen

__all__ = ["jitter"]

_INTERVALS = (5e-6, 5e-3)  # seconds; 5 ms is what CPython does by itself
_LONGEST = 50e-6  # seconds


@contextmanager
def jitter(seed: int = 0, *, chance: float = 0.25) -> Iterator[None]:
    """Perturb when threads run, inside ``with`` or a decorated function.

    The interpreter switches threads after an interval drawn from the seed, and at each operation that passes tazza's
    instrumentation point (allocation, copy, fill, launch, record, wait, host access) the calling thread may lose its
    turn. A program that is right stays right; one that forgot a wait is found out more often. The draws repeat with the
    seed, the interleavings, which the system has a part in, do not entirely.

    Args:
        seed: another seed perturbs in other places.
        chance: how likely an operation is to lose its turn.

    >>> import tazza as tz
    >>> with jitter(seed=3), tz.open("cpu") as ctx:
    ...     ctx.launch(sum, [1, 2], stream=ctx.new_stream()).result(timeout=10)
    3
    """
    draws = random.Random(seed)

    def stumble(operation: Operation) -> None:
        if draws.random() < chance:
            time.sleep(draws.choice((0.0, _LONGEST * draws.random())))

    before = sys.getswitchinterval()
    stop = listen(stumble)
    sys.setswitchinterval(draws.choice(_INTERVALS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        stop()
