"""``python -m benchmarks.floor_dnn``: what oneDNN can reach without tazza, beside PyTorch and ONNX Runtime.

Everything is prepared beforehand, results included, and the best of several ways counts: the library's own layout,
plain and channels last, with reorders before and after where images lie otherwise. `bench_dnn` has the same shapes
through ``ctx.dnn``; what it is above these figures is ours. In brackets are the ratios of the shortest samples.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import geometric_mean, median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.dnn_peers import THREADS, Arrays, Call, arrays_of, onnxruntime_calls, settled, torch_calls
from benchmarks.dnn_shapes import BATCHES, CONVOLUTIONS, MATMULS, Convolution, Matmul
from benchmarks.harness import Case, measure
from benchmarks.onednn_direct import ACDB, ANY, NCHW, Engine, Program, Refused

_PEERS = {"nchw": ("torch", "onnxruntime"), "nhwc": ("torch", "torch-packed")}
Results = dict[str, list[float]]
Way = Callable[[Program, Any, Any, Any], Program]


class Row(NamedTuple):
    """One shape and layout.

    Attributes:
        shape: its name.
        layout: of the images.
        way: the fastest way, with the library's names of its implementations.
        seconds: of that, the median.
        ratios: for each peer the median of the ratios within a round.
        least: for each peer the ratio of the shortest samples, which other work on the machine disturbs least.
    """

    shape: str
    layout: str
    way: str
    seconds: float
    ratios: dict[str, float]
    least: dict[str, float]


def floor_calls(engine: Engine, work: Convolution | Matmul, arrays: Arrays, layout: str) -> dict[str, tuple[Call, Any]]:
    """Return what does `work` on oneDNN, by name of the way, with the memory of its result."""
    x, w = arrays.x[layout], arrays.w
    found: dict[str, tuple[Call, Any]] = {}
    for way, add in _convolutions(work, layout) if isinstance(work, Convolution) else _matmuls():
        y = _result(work, len(x), layout)
        try:
            program = add(Program(engine), x, w, y)
        except Refused:
            continue
        found[f"{way} ({', '.join(program.implementations)})"] = program.run, y
    return found


def _convolutions(work: Convolution, layout: str) -> Iterator[tuple[str, Way]]:
    outer = NCHW if layout == "nchw" else ACDB

    def as_a_whole(inner: int) -> Way:
        return lambda program, x, w, y: program.convolution(x, w, y, work.stride, work.padding, outer, inner)

    def sampled(inner: int) -> Way:
        return lambda program, x, w, y: program.sampled(x, w, y, work.stride, inner)

    yield "any", as_a_whole(ANY)
    yield "last", as_a_whole(ACDB)
    if layout == "nchw":
        yield "plain", as_a_whole(NCHW)
        if work.kernel == 1 and work.stride > 1:
            yield "sampled plain", sampled(NCHW)
            yield "sampled last", sampled(ACDB)


def _matmuls() -> Iterator[tuple[str, Way]]:
    yield "matmul", lambda program, a, b, y: program.matmul(a, b, y)
    yield "inner", lambda program, a, b, y: program.inner_product(a, np.ascontiguousarray(b.T), y)


def _result(work: Convolution | Matmul, batch: int, layout: str) -> Any:
    """Memory for a result, as an array with the axes in their logical order."""
    if isinstance(work, Matmul):
        return np.zeros((work.rows, work.columns), np.float32)
    size = work.result_size
    if layout == "nchw":
        return np.zeros((batch, work.filters, size, size), np.float32)
    return np.zeros((batch, size, size, work.filters), np.float32).transpose(0, 3, 1, 2)


def cases_of(
    engine: Engine, torch: Any, onnxruntime: Any, work: Convolution | Matmul, batch: int, threads: int
) -> list[Case]:
    """All sides of one shape; each must have the result of PyTorch."""
    arrays = arrays_of(work, batch)
    calls: dict[str, Call] = {}
    theirs = torch_calls(torch, work, arrays)
    expected = theirs["nchw"]().numpy()
    for layout in arrays.x:
        calls[f"{layout}.torch"] = theirs[layout]
        for way, (run, y) in floor_calls(engine, work, arrays, layout).items():
            run()
            np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
            calls[f"{layout}.onednn {way}"] = run
    if "packed" in theirs:
        calls["nhwc.torch-packed"] = theirs["packed"]
    for layout, call in onnxruntime_calls(onnxruntime, work, arrays, threads).items():
        calls[f"{layout}.onnxruntime"] = call
    name = f"{work.name}-{batch}" if isinstance(work, Convolution) else work.name
    return [
        Case(f"{name}.{who}", "call()", {"call": call, "settled": settled}, setup="settled(call)")
        for who, call in calls.items()
    ]


def rows_of(results: Results) -> Iterator[Row]:
    """The best way of each shape and layout beside the peers."""
    for name in dict.fromkeys(key.partition(".")[0] + "." + key.split(".")[1] for key in results):
        ways = {key: times for key, times in results.items() if key.startswith(f"{name}.onednn ")}
        best = min(ways, key=lambda key: median(ways[key]))
        shape, layout = name.split(".")
        peers = {peer: results[f"{name}.{peer}"] for peer in _PEERS[layout] if f"{name}.{peer}" in results}
        yield Row(
            *(shape, layout, best.partition("onednn ")[2], median(ways[best])),
            {
                peer: median(ours / other for ours, other in zip(ways[best], times, strict=True))
                for peer, times in peers.items()
            },
            {peer: min(map(min, ways.values())) / min(times) for peer, times in peers.items()},
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each shape and layout, and the geometric means."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor_dnn", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="*", default=BATCHES, help="of the convolutions")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of every side (default: {THREADS})")
    parser.add_argument("--rounds", type=int, default=5, help="samples per case (default: 5)")
    parser.add_argument("--sample-ms", type=float, default=20.0, help="length of a sample (default: 20)")
    parser.add_argument("--only", default="", metavar="TEXT", help="shapes whose name has it")
    options = parser.parse_args(arguments)
    import onnxruntime
    import torch

    engine = Engine()
    engine.limit_threads(options.threads)
    torch.set_num_threads(options.threads)
    print(f"load before: {os.getloadavg()}")
    works: list[tuple[Convolution | Matmul, int]] = [
        (work, batch) for batch in options.batches for work in CONVOLUTIONS
    ]
    works += [(work, 1) for work in MATMULS]
    rows: dict[str, list[Row]] = {}
    for work, batch in works:
        if options.only not in work.name:
            continue
        with torch.inference_mode():
            cases = cases_of(engine, torch, onnxruntime, work, batch, options.threads)
            results = measure(cases, rounds=options.rounds, sample_seconds=options.sample_ms / 1000)
        kind = f"convolutions, batch {batch}" if isinstance(work, Convolution) else "matmuls"
        for row in rows_of(results):
            rows.setdefault(f"{kind}, {row.layout}", []).append(row)
            shown = "  ".join(f"{peer} {ratio:5.2f} ({row.least[peer]:.2f})" for peer, ratio in row.ratios.items())
            print(f"{row.shape:<22} {row.layout} {row.seconds * 1e3:9.3f} ms  {shown:<44} {row.way}", flush=True)
    for kind, found in rows.items():
        for peer in found[0].ratios:
            ratios, least = [row.ratios[peer] for row in found], [row.least[peer] for row in found]
            print(
                f"{kind:<27} / {peer:<13} geometric mean {geometric_mean(ratios):.3f} ({geometric_mean(least):.3f})"
                f"  largest {max(ratios):.2f} ({max(least):.2f})"
            )
    print(f"load after: {os.getloadavg()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
