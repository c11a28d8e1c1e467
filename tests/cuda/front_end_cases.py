"""Operations for plans of the front end, with the arrays that NumPy gives for them; and arrays of a layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

import tazza as tz
from tazza.dnn import CudnnWrapper, Layout, Operation, Plan
from tazza.dnn.cudnn import describe
from tazza.dnn.cudnn.describe import channels_last, contiguous

__all__ = ["CASES", "Case", "attentions", "convolutions", "executed", "placed", "products", "read", "run"]

draws = np.random.default_rng(21)


class Case(NamedTuple):
    """An operation with its inputs and outputs, None where the plan reads or writes none."""

    operation: Operation
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def integers(*shape: int) -> Any:
    """Whole numbers: sums of products are exact in any order."""
    return draws.integers(-3, 4, shape).astype("f4")


def small(*shape: int) -> Any:
    """Numbers around 0."""
    return draws.standard_normal(shape).astype("f4")


def convolutions(dtype: str, lay: Any = channels_last) -> dict[str, Case]:
    """Forward with and without what follows, and both gradients."""
    x, w, bias = integers(2, 8, 6, 5), integers(16, 8, 3, 3), integers(16)
    laid = lay(dtype, *x.shape), lay(dtype, *w.shape)
    with tz.open("cpu", dnn="reference") as cpu:
        y, active = cpu.dnn.conv2d(x, w, padding=1), cpu.dnn.conv2d(x, w, bias, padding=1, activation="relu")
        dy = integers(*y.shape)
        dx, dw, _ = cpu.dnn.conv2d_backward(dy, x, w, padding=1)
    return {
        "conv": Case(describe.conv2d(*laid, padding=1), (x, w, None), (y,)),
        "conv-bias-relu": Case(
            describe.conv2d(*laid, padding=1, bias=True, activation="relu"), (x, w, bias), (active,)
        ),
        "conv-backward-x": Case(
            describe.conv2d_backward(*laid, padding=1, of="x"), (dy, None, w, None), (dx, None, None)
        ),
        "conv-backward-w": Case(
            describe.conv2d_backward(*laid, padding=1, of="w"), (dy, x, None, None), (None, dw, None)
        ),
    }


def products(dtype: str) -> dict[str, Case]:
    """Stacks of matrices, and a linear layer with its gradients."""
    a, b = integers(3, 8, 16), integers(3, 16, 24)
    x, w, bias = integers(16, 32), integers(24, 32), integers(24)
    laid, pair = (
        (contiguous(dtype, *x.shape), contiguous(dtype, *w.shape)),
        (
            contiguous(dtype, *a.shape),
            contiguous(dtype, *b.shape),
        ),
    )
    dy, dz = integers(16, 24), integers(3, 8, 24)
    return {
        "matmul": Case(describe.matmul(*pair), (a, b), (a @ b,)),
        "matmul-backward-a": Case(
            describe.matmul_backward(*pair, of="a"), (dz, None, b), (dz @ b.transpose(0, 2, 1), None)
        ),
        "linear-bias-relu": Case(
            describe.linear(*laid, bias=True, activation="relu"), (x, w, bias), (np.maximum(x @ w.T + bias, 0),)
        ),
        "linear-backward-x": Case(describe.linear_backward(*laid, of="x"), (dy, None, w, None), (dy @ w, None, None)),
        "linear-backward-w": Case(describe.linear_backward(*laid, of="w"), (dy, x, None, None), (None, dy.T @ x, None)),
    }


def attentions(dtype: str, rows: int = 16, width: int = 16) -> dict[str, Case]:
    """Causal and not, each head of k with one or two of q; and its gradients."""
    found = {}
    for name, causal, heads in (("attention", False, 4), ("attention-causal", True, 2)):
        q, k, v, dy = (small(2, count, rows, width) for count in (4, heads, heads, 4))
        laid = [contiguous(dtype, *one.shape) for one in (q, k, v)]
        y, stats, gradients = attended(q, k, v, dy, causal)
        found[name] = Case(describe.attention(*laid, causal=causal), (q, k, v), (y, stats))
        found[f"{name}-backward"] = Case(
            describe.attention_backward(*laid, causal=causal), (dy, q, k, v, y, stats), gradients
        )
    inference = describe.attention(*laid, causal=True, stats=False)
    return found | {"attention-inference": Case(inference, (q, k, v), (y, None))}


def attended(q: Any, k: Any, v: Any, dy: Any, causal: bool) -> tuple[Any, Any, tuple[Any, Any, Any]]:
    """Attention with its sums and gradients, by the book and in float64."""
    each, scale = q.shape[1] // k.shape[1], q.shape[3] ** -0.5
    wide_k, wide_v = (np.repeat(one.astype("f8"), each, axis=1) for one in (k, v))
    scores = q.astype("f8") @ wide_k.swapaxes(2, 3) * scale
    if causal:
        scores[..., np.triu_indices(scores.shape[2], 1)[0], np.triu_indices(scores.shape[2], 1)[1]] = -np.inf
    most = scores.max(3, keepdims=True)
    stats = most + np.log(np.exp(scores - most).sum(3, keepdims=True))
    weights = np.exp(scores - stats)
    y = weights @ wide_v
    inner = weights * (dy @ wide_v.swapaxes(2, 3) - (dy * y).sum(3, keepdims=True)) * scale
    dk, dv = inner.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ dy
    grouped = [one.reshape(one.shape[0], -1, each, *one.shape[2:]).sum(2) for one in (dk, dv)]
    made = [one.astype("f4") for one in (y, stats, inner @ wide_k, *grouped)]
    return made[0], made[1], (made[2], made[3], made[4])


CASES = {
    **convolutions("float32"),
    "conv-planes": convolutions("float32", contiguous)["conv-bias-relu"],
    **products("float32"),
    **attentions("float32"),
}
"""Of float32, which every device of the tests computes."""


def placed(ctx: tz.Context, layout: Layout | None, values: Any = None) -> tz.Buffer | None:
    """A Buffer that lies as a layout says, of the values or of what is no number."""
    if layout is None:
        return None
    extent = 1 + sum((count - 1) * step for count, step in zip(layout.shape, layout.strides, strict=True))
    flat = np.full(extent, np.nan, layout.dtype)
    steps = [step * flat.itemsize for step in layout.strides]
    if values is not None:
        as_strided(flat, layout.shape, steps)[...] = values
    made: tz.Buffer = ctx.asarray(flat).view(layout.dtype, layout.shape, steps)
    return made


def read(ctx: tz.Context, array: tz.Buffer) -> Any:
    """The values of a Buffer that lies in any order."""
    assert array.base is not None
    flat = ctx.to_numpy(array.base)
    return as_strided(flat, array.shape, array.strides)


def executed(
    ctx: tz.Context, wrapper: CudnnWrapper, plan: Plan, case: Case, index: int | None = None
) -> list[tz.Buffer | None]:
    """Execute a loaded plan in a state on Buffers made for it; returns the outputs."""
    pairs = zip(case.operation.inputs, case.inputs, strict=True)
    inputs = [None if one is None else placed(ctx, layout, one) for layout, one in pairs]
    outputs = [
        None if one is None else placed(ctx, layout)
        for layout, one in zip(case.operation.outputs, case.outputs, strict=True)
    ]
    run(wrapper, plan, [*inputs, *outputs], index)
    return outputs


def run(wrapper: CudnnWrapper, plan: Plan, arrays: Sequence[Any], index: int | None = None) -> None:
    """As the guide says; in the state of an index, or one that is idle."""

    def inside(state: Any) -> None:
        with state.workspace.get(plan.workspace_bytes) as lease:
            plan.execute(state, arrays, lease)

    if index is not None:
        wrapper.with_state(index, inside)
        return
    with wrapper.lease() as state:
        inside(state)
