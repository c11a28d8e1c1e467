"""Allocate and free through a context, with limit and account on."""

from __future__ import annotations

import gc
import threading
from functools import partial
from types import ModuleType

import numpy as np

import tazza as tz
from benchmarks.compare import peer
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.hot import COMPILED

SIZE = 1024
LARGE = 1 << 20  # too large for a stack of blocks of one size
LIVE = 10**6
PER_THREAD = 50_000 if COMPILED else 2_000
THREADS = 8


class Crowd:
    """Threads that each run the same loop of allocate + free, started together."""

    def __init__(self, context: tz.Context, threads: int) -> None:
        self.context, self.threads = context, threads

    def run(self) -> None:
        """Start the threads and wait for all of them."""
        crew = [threading.Thread(target=self._work) for _ in range(self.threads)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    def _work(self) -> None:
        allocate = self.context.allocate
        for _ in range(PER_THREAD):
            allocate(SIZE)


def crowd(case: str, context: tz.Context, threads: int) -> Case:
    """Total throughput of several threads, as seconds per operation."""
    return Case(case, "run()", {"run": Crowd(context, threads).run}, operations=PER_THREAD * threads)


def peers() -> list[Case | Missing]:
    """The same allocations by PyOpenCL's C++ pool, by PyTorch and by NumPy."""

    def pyopencl(module: ModuleType, case: str, nbytes: int) -> Case:
        tools = __import__("pyopencl.tools").tools
        platforms = module.get_platforms()
        if not platforms:
            raise RuntimeError("no OpenCL platform; pip install pocl-binary-distribution")
        queue = module.CommandQueue(module.Context(platforms[0].get_devices()[:1]))
        pool = tools.MemoryPool(tools.ImmediateAllocator(queue))
        return Case(case, f"allocate({nbytes})", {"allocate": pool.allocate})

    def torch(module: ModuleType, case: str, nbytes: int) -> Case:
        return Case(case, f"empty({nbytes // 4})", {"empty": module.empty})

    found: list[Case | Missing] = []
    for name, nbytes in (("allocate", SIZE), ("allocate_large", LARGE)):
        for module, make in (("pyopencl", pyopencl), ("torch", torch)):
            case = f"pool.{name}.{module}"
            found.append(peer(case, module, partial(make, case=case, nbytes=nbytes)))
        found.append(Case(f"pool.{name}.numpy", f"empty({nbytes}, 'u1')", {"empty": np.empty}))
    return found


def area() -> Area:
    """Cases of one thread, of a million other live blocks, and of eight threads."""
    # A part of the CPU, here all of it, has a pool of its own: what lives in it is not in the other's way.
    [part] = tz.device("cpu").split(1)
    empty, full = (tz.context(device, memory_limit="8GiB") for device in ("cpu", part))
    others = [full.allocate(SIZE) for _ in range(LIVE)]
    gc.freeze()  # the million objects belong to the scenery, not to what the collector of a case should visit
    return Area(
        cases=[
            Case("pool.allocate.tazza", "allocate(1024)", {"allocate": empty.allocate}),
            Case("pool.allocate_large.tazza", f"allocate({LARGE})", {"allocate": empty.allocate}),
            Case("pool.allocate_live.tazza", "allocate(1024)", {"allocate": full.allocate, "others": others}),
            crowd("pool.threads1.tazza", empty, 1),
            crowd(f"pool.threads{THREADS}.tazza", empty, THREADS),
            *peers(),
        ],
        budgets=[
            Budget("pool.allocate.tazza", "pool.allocate.pyopencl", at_most=1.0),
            Budget("pool.allocate.tazza", "pool.allocate.torch", at_most=0.3),
            Budget("pool.allocate_large.tazza", "pool.allocate_large.pyopencl", at_most=1.0),
            Budget("pool.allocate_large.tazza", "pool.allocate_large.torch", at_most=0.3),
            Budget("pool.allocate_live.tazza", "pool.allocate.tazza", at_most=1.5),
            Budget(f"pool.threads{THREADS}.tazza", "pool.threads1.tazza", at_most=1.5),
            Budget("pool.allocate.tazza", "pool.allocate.numpy", at_most=1.0, gated=False),
        ],
    )
