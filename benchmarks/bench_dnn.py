"""Convolutions of ResNet-50 and matrix products through ``ctx.dnn``, beside PyTorch and ONNX Runtime.

Each side has the same threads and packs its weights once; images lie plain on both sides, or with the channels
innermost on both. `floor_dnn` says what the library under ``ctx.dnn`` can do without tazza.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import numpy as np

import tazza as tz
from benchmarks.dnn_peers import THREADS, Arrays, Call, arrays_of, onnxruntime_calls, settled, torch_calls
from benchmarks.dnn_shapes import BATCHES, CONVOLUTIONS, MATMULS, Convolution, Matmul
from benchmarks.harness import Area, Budget, Case, Missing
from tazza.errors import BackendUnavailableError

MEAN, MOST = 1.1, 1.3
_ROUNDS: Final = {1: 9, 32: 5}
_OPERATIONS: Final = {1: 4, 32: 1}
_PEERS: Final = {
    "nchw": ("torch", "onnxruntime"),
    "nhwc": ("torch", "torch-packed"),
    "matmul": ("torch", "onnxruntime"),
}

Works = Sequence[tuple[Convolution | Matmul, int]]
WORKS: Final[Works] = (
    *((work, batch) for batch in BATCHES for work in CONVOLUTIONS),
    *((work, 1) for work in MATMULS),
)


def area(works: Works = WORKS, dnn: str = "onednn") -> Area:
    """Cases of all shapes, and budgets for each and for the geometric mean of each kind.

    Args:
        works: operations, each with the number of images.
        dnn: the library of our side.
    """
    try:
        ctx = tz.context("cpu", seed=1, dnn=dnn)
        _ = ctx.dnn
    except BackendUnavailableError as error:
        return Area(cases=[Missing("dnn.*.tazza", str(error))])
    modules = {name: _module(name) for name in ("torch", "onnxruntime")}
    cases: list[Case | Missing] = [
        Missing(f"dnn.*.{name}", f"{name} is not installed; pip install '.[bench]'")
        for name, module in modules.items()
        if module is None
    ]
    budgets: list[Budget] = []
    with tz.limit_threads(THREADS):
        for work, batch in works:
            made = cases_of(ctx, modules, work, batch)
            cases += made
            budgets += _each([case.id for case in made])
    kinds = dict.fromkeys(_kind(work, batch, layout) for work, batch in works for layout in _layouts(work))
    return Area(cases=cases, budgets=[*_means(list(kinds)), *budgets], scope=tz.limit_threads(THREADS))


def cases_of(ctx: tz.Context, modules: dict[str, Any], work: Convolution | Matmul, batch: int) -> list[Case]:
    """All sides of one operation, whose results must agree."""
    arrays = arrays_of(work, batch)
    sides = {f"{layout}.tazza": call for layout, call in tazza_calls(ctx, work, arrays).items()}
    torch, onnxruntime = modules["torch"], modules["onnxruntime"]
    if torch is not None:
        with torch.inference_mode():
            theirs = torch_calls(torch, work, arrays)
            expected = theirs["nchw"]().numpy()
        for layout in _layouts(work):
            sides[f"{layout}.torch"] = theirs["nchw" if layout == "matmul" else layout]
            found = ctx.to_numpy(sides[f"{layout}.tazza"]())
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))
        if "packed" in theirs:
            sides["nhwc.torch-packed"] = theirs["packed"]
    if onnxruntime is not None:
        sides[f"{_layouts(work)[0]}.onnxruntime"] = onnxruntime_calls(onnxruntime, work, arrays)["nchw"]
    return [_case(work, batch, side, call, torch) for side, call in sides.items()]


def tazza_calls(ctx: tz.Context, work: Convolution | Matmul, arrays: Arrays) -> dict[str, Call]:
    """Our calls by layout, or ``"matmul"``, which is a dense layer: that is what packs its weights."""
    if isinstance(work, Matmul):
        a, turned = ctx.asarray(arrays.x["nchw"]), ctx.dnn.weights(ctx.asarray(np.ascontiguousarray(arrays.w.T)))
        return {"matmul": lambda: ctx.dnn.linear(a, turned)}
    w = ctx.dnn.weights(ctx.asarray(arrays.w))
    plain, last = (ctx.asarray(arrays.x[layout]) for layout in _layouts(work))
    stride, padding = work.stride, work.padding
    return {
        "nchw": lambda: ctx.dnn.conv2d(plain, w, stride=stride, padding=padding),
        "nhwc": lambda: ctx.dnn.conv2d(last, w, stride=stride, padding=padding),
    }


def _case(work: Convolution | Matmul, batch: int, side: str, call: Call, torch: Any) -> Case:
    layout, who = side.split(".")
    count = _OPERATIONS.get(batch, 1)
    return Case(
        f"{_kind(work, batch, layout)}-{work.name}.{who}",
        "with mode():\n" + "    call()\n" * count,
        {"call": call, "settled": settled, "mode": torch.inference_mode if who.startswith("torch") else nullcontext},
        setup="settled(call)",
        operations=count,
        rounds=_ROUNDS.get(batch),
    )


def _kind(work: Convolution | Matmul, batch: int, layout: str) -> str:
    return "dnn.matmul" if isinstance(work, Matmul) else f"dnn.conv{batch}-{layout}"


def _layouts(work: Convolution | Matmul) -> tuple[str, ...]:
    return ("matmul",) if isinstance(work, Matmul) else ("nchw", "nhwc")


def _means(kinds: Sequence[str]) -> list[Budget]:
    return [
        Budget(f"{kind}-*.tazza", f"{kind}-*.{peer}", MEAN)
        for kind in kinds
        for peer in _PEERS[kind.rpartition("-")[2].removeprefix("dnn.")]
    ]


def _each(names: Sequence[str]) -> list[Budget]:
    """The budget of each pair of one operation's cases."""
    pairs = []
    for name in names:
        case, _, who = name.rpartition(".")
        if who != "tazza":
            pairs.append(Budget(f"{case}.tazza", name, MOST))
    return pairs


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:  # listed as missing
        return None
