"""Borrow another library's memory and give it back, against the hand-over that the library itself offers.

``from_dlpack`` gives a view and no more: no order on either side, no word of when the owner is free again. What that
adds is the ratio, which has no budget.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

import tazza as tz
from benchmarks.compare import peer
from benchmarks.harness import Area, Budget, Case, Missing

SCOPE = "with borrow(obj, stream=stream):\n    pass"


def area() -> Area:
    """Cases on the CPU's own stream: a NumPy array, a DLPack capsule (torch), plain bytes, a Buffer."""
    context = tz.context("cpu")
    names = {"borrow": tz.borrow, "stream": context.own_stream, "kept": context}
    array, plain = np.zeros(1024), bytearray(8192)

    def from_torch(torch: ModuleType) -> Case:
        return Case("borrow.torch.tazza", SCOPE, {**names, "obj": torch.zeros(1024)})

    def through_torch(torch: ModuleType) -> Case:
        return Case("borrow.torch.from_dlpack", "take(obj)", {"take": torch.from_dlpack, "obj": torch.zeros(1024)})

    cases: list[Case | Missing] = [
        Case("borrow.numpy.tazza", SCOPE, {**names, "obj": array}),
        Case("borrow.numpy.from_dlpack", "take(obj)", {"take": np.from_dlpack, "obj": array}),
        Case("borrow.bytes.tazza", SCOPE, {**names, "obj": plain}),
        Case("borrow.bytes.frombuffer", "take(obj, 'u1')", {"take": np.frombuffer, "obj": plain}),
        Case("borrow.buffer.tazza", SCOPE, {**names, "obj": context.allocate(8192, dtype="float64")}),
        peer("borrow.torch.tazza", "torch", from_torch),
        peer("borrow.torch.from_dlpack", "torch", through_torch),
    ]
    pairs = {"numpy": "from_dlpack", "bytes": "frombuffer", "torch": "from_dlpack"}
    budgets = [Budget(f"borrow.{on}.tazza", f"borrow.{on}.{by}", at_most=50.0, gated=False) for on, by in pairs.items()]
    return Area(cases, budgets)
