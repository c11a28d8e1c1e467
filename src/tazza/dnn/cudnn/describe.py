"""Operations for the planner, described by layouts: shapes of results follow from those of the arguments.

| name | inputs | outputs | options |
|---|---|---|---|
| ``conv2d`` | x, w, bias? | y | stride, padding, dilation, groups, activation |
| ``conv2d.backward`` | dy, x, w, y? | dx?, dw?, dbias? | the same |
| ``linear`` | x, w, bias? | y | activation |
| ``linear.backward`` | dy, x, w, y? | dx?, dw?, dbias? | activation |
| ``matmul`` | a, b | y | |
| ``matmul.backward`` | dy, a, b | da?, db? | |
| ``attention`` | q, k, v | y, stats? | causal, scale |
| ``attention.backward`` | dy, q, k, v, y, stats | dq, dk, dv | the same |

The first six are those of `tazza.dnn.operations`. A plan of cuDNN computes one gradient of theirs, so exactly one
output of a backward operation is given and the others are None. ``linear`` is cuDNN's matmul with an epilogue.
Attention is over (batch, heads, rows, width); stats are the float32 sums that its gradient needs, (batch, heads,
rows, 1). What lies otherwise than these functions say is described with ``operation._replace(outputs=...)``.
"""

from __future__ import annotations

from typing import Literal

from tazza.dnn.checks import Window, pair
from tazza.dnn.interface import Activation, Pair
from tazza.dnn.library import Layout, Operation
from tazza.errors import ArgumentError

__all__ = [
    "attention",
    "attention_backward",
    "channels_last",
    "contiguous",
    "conv2d",
    "conv2d_backward",
    "linear",
    "linear_backward",
    "matmul",
    "matmul_backward",
]


def contiguous(dtype: str, *shape: int) -> Layout:
    """A layout whose last axis is the innermost.

    >>> contiguous("float16", 2, 3, 4).strides
    (12, 4, 1)
    """
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return Layout(dtype, shape, tuple(reversed(strides)))


def channels_last(dtype: str, n: int, c: int, h: int, w: int) -> Layout:
    """Images or filters whose channels are the innermost axis in memory, as cuDNN's tensor cores like them.

    >>> channels_last("float16", 1, 8, 4, 4).strides
    (128, 1, 32, 8)
    """
    return Layout(dtype, (n, c, h, w), (h * w * c, 1, w * c, c))


def conv2d(
    x: Layout,
    w: Layout,
    *,
    bias: bool = False,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    activation: Activation = None,
) -> Operation:
    """`Dnn.conv2d` of images (N, C, H, W) and filters (O, C / groups, KH, KW); the result lies as `x` does.

    >>> conv2d(channels_last("float16", 1, 8, 4, 4), channels_last("float16", 16, 8, 3, 3), padding=1).outputs
    (Layout(dtype='float16', shape=(1, 16, 4, 4), strides=(256, 1, 64, 16)),)
    """
    window, y = _convolved(x, w, stride, padding, dilation)
    options = (window.stride, window.padding, window.dilation, groups, activation)
    return Operation("conv2d", (x, w, contiguous(x.dtype, w.shape[0]) if bias else None), (y,), options)


def conv2d_backward(
    x: Layout,
    w: Layout,
    *,
    of: Literal["x", "w"],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Operation:
    """The gradient with respect to the images or to the filters of `conv2d`; lies as these do."""
    _check_of(of, ("x", "w"))
    window, dy = _convolved(x, w, stride, padding, dilation)
    outputs = (x, None, None) if of == "x" else (None, w, None)
    options = (window.stride, window.padding, window.dilation, groups, None)
    return Operation("conv2d.backward", (dy, x, w, None), outputs, options)


def linear(x: Layout, w: Layout, *, bias: bool = False, activation: Activation = None) -> Operation:
    """`Dnn.linear`: (N, I) and (O, I) give (N, O), with bias and activation in the product's epilogue."""
    _check_rank("x", x, 2)
    _check_rank("w", w, 2)
    y = contiguous(x.dtype, x.shape[0], w.shape[0])
    return Operation("linear", (x, w, contiguous(x.dtype, w.shape[0]) if bias else None), (y,), (activation,))


def linear_backward(x: Layout, w: Layout, *, of: Literal["x", "w"]) -> Operation:
    """The gradient with respect to one argument of `linear`."""
    _check_of(of, ("x", "w"))
    dy = linear(x, w).outputs[0]
    return Operation("linear.backward", (dy, x, w, None), (x, None, None) if of == "x" else (None, w, None), (None,))


def matmul(a: Layout, b: Layout) -> Operation:
    """`Dnn.matmul`: (..., I, K) and (..., K, J) with equal leading axes give (..., I, J)."""
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise ArgumentError.of("a", a.shape, "a matrix, as is b")
    return Operation("matmul", (a, b), (contiguous(a.dtype, *a.shape[:-1], b.shape[-1]),))


def matmul_backward(a: Layout, b: Layout, *, of: Literal["a", "b"]) -> Operation:
    """The gradient with respect to one argument of `matmul`."""
    _check_of(of, ("a", "b"))
    dy = matmul(a, b).outputs[0]
    return Operation("matmul.backward", (dy, a, b), (a, None) if of == "a" else (None, b))


def attention(
    q: Layout, k: Layout, v: Layout, *, causal: bool = False, scale: float | None = None, stats: bool = True
) -> Operation:
    """Scaled dot-product attention, ``softmax(q @ k.T * scale) @ v`` per head.

    Args:
        q: (batch, heads, rows, width).
        k: (batch, heads of k, columns, width); the heads of `q` are a multiple of these.
        v: (batch, heads of k, columns, width of v).
        causal: a row sees no later column.
        scale: default is ``width ** -0.5``.
        stats: also gives what the gradient needs.
    """
    for name, layout in (("q", q), ("k", k), ("v", v)):
        _check_rank(name, layout, 4)
    y = contiguous(q.dtype, *q.shape[:3], v.shape[3])
    sums = contiguous("float32", *q.shape[:3], 1) if stats else None
    return Operation("attention", (q, k, v), (y, sums), (causal, scale))


def attention_backward(
    q: Layout, k: Layout, v: Layout, *, causal: bool = False, scale: float | None = None
) -> Operation:
    """The three gradients of `attention`; each lies as its argument does."""
    y, stats = attention(q, k, v).outputs
    return Operation("attention.backward", (y, q, k, v, y, stats), (q, k, v), (causal, scale))


def _convolved(x: Layout, w: Layout, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Window, Layout]:
    _check_rank("x", x, 4)
    _check_rank("w", w, 4)
    window = Window(
        size=(w.shape[2], w.shape[3]),
        stride=pair("stride", stride, least=1),
        padding=pair("padding", padding, least=0),
        dilation=pair("dilation", dilation, least=1),
    )
    shape = (x.shape[0], w.shape[0], *window.output((x.shape[2], x.shape[3])))
    last = x.strides[1] == 1 and x.shape[1] > 1
    return window, channels_last(x.dtype, *shape) if last else contiguous(x.dtype, *shape)


def _check_rank(name: str, layout: Layout, rank: int) -> None:
    if not isinstance(layout, Layout) or len(layout.shape) != rank:
        raise ArgumentError.of(name, getattr(layout, "shape", layout), f"a Layout of {rank} axes")


def _check_of(of: str, known: tuple[str, ...]) -> None:
    if of not in known:
        raise ArgumentError.of("of", of, " or ".join(map(repr, known)))
