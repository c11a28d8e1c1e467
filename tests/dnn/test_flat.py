"""Memory over many operations of many shapes: what the process and the account hold does not grow."""

from __future__ import annotations

import gc
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.dnn import DnnWrapper
from tests.conftest import FULL

CALLS, SEED = (100_000 if FULL else 4_000), 17
MIB = 1 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.timeout(600)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the resident size is read from /proc")
@pytest.mark.parametrize("library", ["auto", "reference"])
def test_memory_stays_flat_over_random_operations(library: str) -> None:
    draws = random.Random(SEED)
    with tz.open("cpu", seed=SEED, dnn=library) as ctx:
        wrapper, dnn = DnnWrapper(ctx), ctx.dnn
        noise = ctx.random.standard_normal(1 << 16, dtype="float32")

        def array(*shape: int) -> Any:
            count = int(np.prod(shape))
            first = draws.randrange(noise.size - count)
            return noise[first : first + count].reshape(shape)

        def convolve() -> None:
            size, channels, filters = draws.choice((4, 7, 12)), draws.choice((1, 3, 8)), draws.choice((2, 8))
            x, w = array(draws.choice((1, 2)), channels, size, size), array(filters, channels, 3, 3)
            y = dnn.conv2d(x, w, padding=1, activation="relu")
            if draws.random() < 0.5:
                dnn.conv2d_backward(y, x, w, y=y, padding=1, activation="relu")

        def multiply() -> None:
            x, w = array(draws.choice((1, 5, 32)), 24), array(draws.choice((3, 16)), 24)
            y = dnn.linear(x, w, activation="relu")
            dnn.linear_backward(y, x, w, y=y, activation="relu")

        def pool() -> None:
            x = array(2, draws.choice((1, 4)), 8, 8)
            y = dnn.max_pool2d(x, 2)
            dnn.max_pool2d_backward(y, x, y, 2)

        live, held = list[int](), list[int]()
        for call in range(CALLS):
            draws.choice((convolve, multiply, pool))()
            if (call + 1) % (CALLS // 20) == 0:
                gc.collect()
                live.append(ctx.memory.stats().live)
                held.append(resident())
        half = len(held) // 2
        slope = (held[-1] - held[half - 1]) / (CALLS / 2)
        print(f"{dnn.name}, seed {SEED}: {CALLS} operations, live {live[-1]}, resident slope {slope:+.2f} bytes a call")
        assert len(set(live)) == 1, live
        assert held[-1] - held[half - 1] <= 4 * MIB, held
        assert all(info.leased_bytes == 0 for info in wrapper.states())
        assert dnn.plans().size <= dnn.plans().limit
