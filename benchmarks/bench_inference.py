"""The inference guide's service, without HTTP, beside ONNX Runtime in an executor: 64 clients that ask again and again.

Both run the same model with one thread a run, and as many runs at once as there are processors, on one event loop. Ours
admits eight requests at a time by their memory; the plain one takes all of them.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import numpy as np

import tazza as tz
from benchmarks.harness import Area, Budget, Case, Missing
from examples.inference_server import Samples, Service, framed, model_file, voice

CLIENTS, REQUESTS, ROUNDS = 64, 192, 5
SECONDS = 1.0  # of sound in a request

Infer = Callable[[Samples], Awaitable[list[float]]]


class Plain:
    """What one would write without tazza."""

    def __init__(self, workers: int) -> None:
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.session: Any = onnxruntime.InferenceSession(str(model_file()), options)
        self.pool = ThreadPoolExecutor(workers)

    async def infer(self, samples: Samples) -> list[float]:
        """Return the probabilities of speech."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, self._detect, samples)

    def _detect(self, samples: Samples) -> list[float]:
        probabilities: list[float] = self.session.run(["speech_probs"], framed(samples))[0].tolist()
        return probabilities


async def load(infer: Infer, samples: Samples) -> list[float]:
    """Have the clients make all requests; return the latency of each in seconds."""
    latencies: list[float] = []
    left = iter(range(REQUESTS))

    async def client() -> None:
        for _ in left:
            begin = time.perf_counter()
            await infer(samples)
            latencies.append(time.perf_counter() - begin)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return latencies


def area() -> Area:
    """Requests a second as cases, and the median and the 99th percentile of their latency as amounts."""
    names = ("inference.request.tazza", "inference.request.onnxruntime")
    try:
        importlib.import_module("onnxruntime")
        model_file()
    except (ImportError, FileNotFoundError) as error:
        return Area(cases=[Missing(name, f"{error}; pip install '.[interop]'") for name in names])
    ctx = tz.context("cpu", memory_limit="1GiB")
    ours, plain = Service(ctx), Plain(len(ctx.device.cores))
    samples = voice(SECONDS)

    def once(infer: Infer) -> list[float]:
        return asyncio.run(load(infer, samples))

    sides: dict[str, Infer] = {"tazza": ours.infer, "onnxruntime": plain.infer}
    seen: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        for who in sorted(sides, reverse=bool(turn % 2)):
            shares = np.quantile(once(sides[who]), (0.5, 0.99))
            for name, share in zip(("p50", "p99"), shares, strict=True):
                seen.setdefault(f"inference.{name}-seconds.{who}", []).append(float(share))
    return Area(
        cases=[
            Case(name, "once(infer)", {"once": once, "infer": infer}, operations=REQUESTS)
            for name, infer in zip(names, sides.values(), strict=True)
        ],
        budgets=[
            Budget(*names, at_most=1.1, gated=False),
            *(
                Budget(f"inference.{p}-seconds.tazza", f"inference.{p}-seconds.onnxruntime", 1.1, gated=False)
                for p in ("p50", "p99")
            ),
        ],
        amounts={name: median(values) for name, values in seen.items()},
    )
