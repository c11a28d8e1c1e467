"""Every operation against PyTorch, forward and backward by its autograd; and on PyTorch's tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tazza as tz
from tazza.dnn import ReferenceDnn
from tazza.dnn.operations import OPERATIONS
from tests.interop import need
from tests.unit.dnn_cases import CASES, Array, draw_array

pytestmark = pytest.mark.interop
torch: Any = need("torch")
functional = torch.nn.functional
DNN = ReferenceDnn(xp)

TOLERANCE: dict[str, dict[str, Any]] = {
    "float64": {"rtol": 1e-10, "atol": 1e-11},
    "float32": {"rtol": 2e-4, "atol": 2e-5},
}
"""Both sides add in orders of their own; gradients of normalisations cancel."""

DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**16)
FUSED: dict[str | None, Callable[[Any], Any]] = {
    None: lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
ALL = {**FUSED, "gelu": functional.gelu, "silu": functional.silu}


def check(dtype: str, ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other.detach().numpy(), **TOLERANCE[dtype])


def differentiated(function: Callable[..., Any], dy: Array, *arrays: Array) -> tuple[Any, ...]:
    """PyTorch's result and the gradients of its arguments."""
    leaves = [torch.tensor(one, requires_grad=True) for one in arrays]
    y = function(*leaves)
    return (y, *torch.autograd.grad(y, leaves, torch.tensor(dy)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(ALL, key=str)), DTYPES, SEEDS)
def test_activations(kind: Any, dtype: str, seed: int) -> None:
    if kind is None:
        return
    x, dy = 3 * draw_array(seed, 4, 9, dtype=dtype), draw_array(seed + 1, 4, 9, dtype=dtype)
    y = DNN.activate(x.astype(dtype), kind)
    check(dtype, (y, DNN.activate_backward(dy, kind, x=x, y=y)), differentiated(ALL[kind], dy, x))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.sampled_from(list(FUSED)), DTYPES, SEEDS)
def test_matmul_with_an_epilogue(stack: int, rows: int, inner: int, activation: Any, dtype: str, seed: int) -> None:
    shapes = (stack, rows, inner), (stack, inner, 3), (3,), (stack, rows, 3)
    a, b, bias, dy = (draw_array(seed + n, *shape, dtype=dtype) for n, shape in enumerate(shapes))
    y = DNN.matmul(a, b, bias, activation=activation)
    gradients = DNN.matmul_backward(dy, a, b, y=y, activation=activation)
    check(dtype, (y, *gradients), differentiated(lambda a, b, c: FUSED[activation](a @ b + c), dy, a, b, bias))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
    st.integers(1, 2),
    st.sampled_from(list(FUSED)),
    DTYPES,
    SEEDS,
)
def test_conv2d(size: int, stride: int, padding: int, groups: int, activation: Any, dtype: str, seed: int) -> None:
    shapes = (2, 4, 5, 6), (2 * groups, 4 // groups, size, size), (2 * groups,)
    x, w, bias = (draw_array(seed + n, *shape, dtype=dtype) for n, shape in enumerate(shapes))
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups}
    y = DNN.conv2d(x, w, bias, activation=activation, **options)
    dy = draw_array(seed + 3, *y.shape, dtype=dtype)
    gradients = DNN.conv2d_backward(dy, x, w, y=y, activation=activation, **options)

    def theirs(x: Any, w: Any, bias: Any) -> Any:
        return FUSED[activation](functional.conv2d(x, w, bias, **options))

    check(dtype, (y, *gradients), differentiated(theirs, dy, x, w, bias))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), DTYPES, SEEDS)
def test_pooling(size: int, stride: int, padded: bool, counted: bool, dtype: str, seed: int) -> None:
    x, padding = draw_array(seed, 2, 3, 5, 6, dtype=dtype), size // 2 if padded else 0
    options: dict[str, Any] = {"stride": stride, "padding": padding}
    y = DNN.avg_pool2d(x, size, count_padding=counted, **options)
    dy = draw_array(seed + 1, *y.shape, dtype=dtype)
    dx = DNN.avg_pool2d_backward(dy, x, size, count_padding=counted, **options)
    mean = differentiated(lambda x: functional.avg_pool2d(x, size, count_include_pad=counted, **options), dy, x)
    check(dtype, (y, dx), mean)
    y = DNN.max_pool2d(x, size, **options)
    dx = DNN.max_pool2d_backward(dy, x, y, size, **options)
    check(dtype, (y, dx), differentiated(lambda x: functional.max_pool2d(x, size, **options), dy, x))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.booleans(), DTYPES, SEEDS)
def test_batch_norm(count: int, channels: int, images: bool, dtype: str, seed: int) -> None:
    shape = (count, channels, 3, 2) if images else (count, channels)
    shapes = shape, (channels,), (channels,), shape
    x, gamma, beta, dy = (draw_array(seed + n, *one, dtype=dtype) for n, one in enumerate(shapes))
    y, mean, variance = DNN.batch_norm(x, gamma, beta, epsilon=0.01)
    gradients = DNN.batch_norm_backward(dy, x, gamma, mean, variance, epsilon=0.01)

    def theirs(*given: Any) -> Any:
        return functional.batch_norm(given[0], None, None, *given[1:], training=True, eps=0.01)

    check(dtype, (y, *gradients), differentiated(theirs, dy, x, gamma, beta))
    y = DNN.batch_norm_inference(x, gamma, beta, mean, variance, epsilon=0.01)
    gradients = DNN.batch_norm_inference_backward(dy, x, gamma, mean, variance, epsilon=0.01)
    statistics = torch.tensor(mean), torch.tensor(variance)

    def frozen(*given: Any) -> Any:
        return functional.batch_norm(given[0], *statistics, *given[1:], training=False, eps=0.01)

    check(dtype, (y, *gradients), differentiated(frozen, dy, x, gamma, beta))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.integers(1, 2), DTYPES, SEEDS)
def test_layer_norm(extents: list[int], count: int, dtype: str, seed: int) -> None:
    shape, after = tuple(extents), tuple(extents[-count:])
    x, gamma, beta, dy = (draw_array(seed + n, *one, dtype=dtype) for n, one in enumerate((shape, after, after, shape)))
    y, mean, variance = DNN.layer_norm(x, gamma, beta, epsilon=0.01)
    gradients = DNN.layer_norm_backward(dy, x, gamma, mean, variance, epsilon=0.01)

    def theirs(*given: Any) -> Any:
        return functional.layer_norm(given[0], after, *given[1:], eps=0.01)

    check(dtype, (y, *gradients), differentiated(theirs, dy, x, gamma, beta))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), DTYPES, SEEDS)
def test_softmax(extents: list[int], dtype: str, seed: int) -> None:
    x, dy = (3 * draw_array(seed + n, *extents).astype(dtype) for n in range(2))
    y = DNN.softmax(x)
    check(dtype, (y, DNN.softmax_backward(dy, y)), differentiated(lambda x: torch.softmax(x, -1), dy, x))


def test_dropout_scales_as_theirs() -> None:
    x = draw_array(0, 8, 8)
    y, mask = DNN.dropout(x, 0.25, tz.Generator(1))
    theirs = torch.tensor(x)[torch.tensor(mask)] / 0.75
    np.testing.assert_allclose(y[mask], theirs.numpy(), rtol=1e-15)


@pytest.mark.parametrize("name", OPERATIONS)
def test_tensors_are_taken_and_returned(name: str) -> None:
    """Through plans, on tensors, also those with channels last; and by the reference on PyTorch's own namespace."""
    case = CASES[name]
    expected = case.call(DNN, *case.arrays)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    with tz.open("cpu", arrays="torch", dnn="reference", seed=0) as ctx:
        tensors = [ctx.asarray(one) for one in case.arrays]
        last = [one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one for one in tensors]
        for dnn in (ctx.dnn, ReferenceDnn(ctx.xp)):
            for given in (tensors, last):
                found = case.call(dnn, *given)
                for one, other in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
                    assert isinstance(one, torch.Tensor)
                    np.testing.assert_allclose(one.numpy(), other, rtol=1e-11, atol=1e-12)


TRACKED: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "silu": (lambda dnn, x: dnn.activate(x, "silu"), functional.silu, ((4, 5),)),
    "relu": (lambda dnn, x: dnn.relu(x), torch.relu, ((4, 5),)),
    "matmul": (
        lambda dnn, a, b, bias: dnn.matmul(a, b, bias, activation="sigmoid"),
        lambda a, b, bias: torch.sigmoid(a @ b + bias),
        ((2, 3, 4), (2, 4, 5), (5,)),
    ),
    "batch_norm_inference": (
        lambda dnn, x, gamma, beta: dnn.batch_norm_inference(
            x, gamma, beta, torch.ones_like(beta), torch.ones_like(beta)
        ),
        lambda x, gamma, beta: (x - 1) / (1 + 1e-5) ** 0.5 * gamma + beta,
        ((4, 3), (3,), (3,)),
    ),
    "dropout": (
        lambda dnn, x: dnn.dropout(x, 0.5, tz.Generator(3))[0],
        lambda x: x * 2 * torch.tensor(tz.Generator(3).random(20, dtype="float32").reshape(4, 5) >= 0.5),
        ((4, 5),),
    ),
}


@pytest.mark.parametrize("name", TRACKED)
def test_autograd_goes_through_them(name: str) -> None:
    ours, theirs, shapes = TRACKED[name]
    with tz.open("cpu", arrays="torch", dnn="reference", seed=0) as ctx:
        leaves = [torch.tensor(draw_array(number, *shape), requires_grad=True) for number, shape in enumerate(shapes)]
        y, z = ours(ctx.dnn, *leaves), theirs(*leaves)
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
        dy = torch.tensor(draw_array(9, *y.shape))
        for one, other in zip(torch.autograd.grad(y, leaves, dy), torch.autograd.grad(z, leaves, dy), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_dropout_of_tensors_has_the_same_mask() -> None:
    _, expected = DNN.dropout(draw_array(0, 5, 7), 0.3, tz.Generator(4))
    with tz.open("cpu", arrays="torch", dnn="reference", seed=4) as ctx:
        x = ctx.asarray(draw_array(0, 5, 7))
        for dnn, random in ((ctx.dnn, ctx.random), (ReferenceDnn(ctx.xp), tz.Generator(4))):
            _, mask = dnn.dropout(x, 0.3, random)
            assert mask.dtype == torch.bool
            np.testing.assert_array_equal(mask.numpy(), expected)
