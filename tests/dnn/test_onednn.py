"""oneDNN against the reference in float64, and PyTorch where that is there: shapes, strides and layouts by Hypothesis.

Tolerance: sums of n products of numbers about 1, in float32 and in any order, are off by less than 4 * sqrt(n) units in
the last place of the largest result; what is only copied, chosen or masked is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tazza as tz
from tazza.dnn import PlannedDnn, ReferenceDnn
from tazza.dnn.choosing import library_named
from tazza.errors import BackendUnavailableError
from tests import interop

try:
    library_named("onednn")
except BackendUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

Array = np.ndarray[Any, np.dtype[Any]]
EPSILON = float(np.finfo(np.float32).eps)
reference = ReferenceDnn(xp)


@pytest.fixture(scope="module")
def dnn() -> Iterator[PlannedDnn]:
    with tz.open("cpu", dnn="onednn") as ctx:
        yield ctx.dnn


def near(found: Any, expected: Any, terms: int) -> None:
    """Compare with the formula in float64, see above."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    largest = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    error = float(np.max(np.abs(found - expected), initial=0.0))
    assert error <= 4 * max(1, terms) ** 0.5 * EPSILON * largest, (error, largest, terms)


def wide(array: Array | None) -> Any:
    return None if array is None else np.asarray(array, np.float64)


@st.composite
def arrays(draw: st.DrawFn, shape: Sequence[int], *, gaps: bool = True) -> Array:
    """Normal numbers that lie in any order of axes, with gaps, backwards or repeated."""
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = draw(st.permutations(range(len(shape))))
    kind = draw(st.sampled_from(("dense", "dense", "gaps", "backwards", "repeated"))) if gaps else "dense"
    extents = [shape[axis] for axis in order]
    if kind == "gaps":
        extents = [2 * extent + 1 for extent in extents]
    made = np.asarray(draws.standard_normal(extents), np.float32)
    if kind == "gaps" and extents:
        made = made[tuple(slice(1, None, 2) for _ in extents)]
    if kind == "backwards" and extents:
        made = made[::-1]
    if kind == "repeated" and extents:
        made = np.broadcast_to(made[:1], made.shape)
    return made.transpose(np.argsort(order))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Array, Array, Array | None, dict[str, Any]]:
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    channels, filters = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    size, stride = draw(st.tuples(*[st.integers(1, 3)] * 2)), draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding, dilation = draw(st.tuples(*[st.integers(0, 2)] * 2)), draw(st.tuples(*[st.integers(1, 2)] * 2))
    image = [
        max(1, dilation[axis] * (size[axis] - 1) + 1 - 2 * padding[axis]) + draw(st.integers(0, 6)) for axis in (0, 1)
    ]
    x = draw(arrays((draw(st.integers(1, 3)), channels, *image)))
    w = draw(arrays((filters, channels // groups, *size)))
    bias = draw(st.none() | arrays((filters,)))
    activation = draw(st.sampled_from((None, "relu", "sigmoid", "tanh")))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "activation": activation}
    return x, w, bias, options


@given(st.data())
def test_convolutions(dnn: PlannedDnn, data: st.DataObject) -> None:
    x, w, bias, options = data.draw(convolutions())
    y = dnn.conv2d(x, w, bias, **options)
    near(y, reference.conv2d(wide(x), wide(w), wide(bias), **options), w[0].size + 1)
    dy = data.draw(arrays(y.shape))
    need_dx = data.draw(st.booleans())
    found = dnn.conv2d_backward(dy, x, w, y=y, need_dx=need_dx, **options)
    expected = reference.conv2d_backward(wide(dy), wide(x), wide(w), y=wide(y), need_dx=need_dx, **options)
    assert (found[0] is None) == (not need_dx)
    terms = w[:, 0].size, dy[:, 0].size, dy[:, 0].size
    for one, other, count in zip(found, expected, terms, strict=True):
        if one is not None:
            near(one, other, 4 * count)


@given(st.data())
def test_dense_layers(dnn: PlannedDnn, data: st.DataObject) -> None:
    rows, width, columns = (data.draw(st.integers(1, 40)) for _ in range(3))
    x, w = data.draw(arrays((rows, width))), data.draw(arrays((columns, width)))
    bias = data.draw(st.none() | arrays((columns,)))
    activation: Any = data.draw(st.sampled_from((None, "relu", "tanh")))
    y = dnn.linear(x, w, bias, activation=activation)
    near(y, reference.linear(wide(x), wide(w), wide(bias), activation=activation), width + 1)
    dy = data.draw(arrays(y.shape))
    found = dnn.linear_backward(dy, x, w, y=y, activation=activation)
    expected = reference.linear_backward(wide(dy), wide(x), wide(w), y=wide(y), activation=activation)
    for one, other, count in zip(found, expected, (columns, rows, rows), strict=True):
        near(one, other, 4 * count)


@given(st.data())
def test_products(dnn: PlannedDnn, data: st.DataObject) -> None:
    rows, width, columns = (data.draw(st.integers(1, 20)) for _ in range(3))
    stack = data.draw(st.lists(st.integers(1, 3), max_size=2))
    fewer = [data.draw(st.sampled_from((1, extent))) for extent in stack[data.draw(st.integers(0, len(stack))) :]]
    a, b = data.draw(arrays((*stack, rows, width))), data.draw(arrays((*fewer, width, columns)))
    if data.draw(st.booleans()):
        a, b = b.swapaxes(-1, -2), a.swapaxes(-1, -2)
    bias = data.draw(st.none() | arrays((b.shape[-1],)))
    activation: Any = data.draw(st.sampled_from((None, "relu", "sigmoid")))
    y = dnn.matmul(a, b, bias, activation=activation)
    near(y, reference.matmul(wide(a), wide(b), wide(bias), activation=activation), width + 1)


@given(st.data())
def test_gradients_of_products(dnn: PlannedDnn, data: st.DataObject) -> None:
    rows, width, columns = (data.draw(st.integers(1, 20)) for _ in range(3))
    stack = data.draw(st.lists(st.integers(1, 3), max_size=2))
    a, b = data.draw(arrays((*stack, rows, width))), data.draw(arrays((*stack, width, columns)))
    activation: Any = data.draw(st.sampled_from((None, "relu", "tanh")))
    y = dnn.matmul(a, b, activation=activation)
    dy = data.draw(arrays(y.shape))
    found = dnn.matmul_backward(dy, a, b, y=y, activation=activation)
    expected = reference.matmul_backward(wide(dy), wide(a), wide(b), y=wide(y), activation=activation)
    for one, other, count in zip(found, expected, (columns, rows, dy.size), strict=True):
        near(one, other, 4 * count)


@given(st.data())
def test_activations(dnn: PlannedDnn, data: st.DataObject) -> None:
    x = data.draw(arrays(data.draw(st.lists(st.integers(1, 5), max_size=5))))
    kind: Any = data.draw(st.sampled_from(("relu", "tanh", "sigmoid", "silu", "gelu")))
    y = dnn.activate(x, kind)
    near(y, reference.activate(wide(x), kind), 64)
    dy = data.draw(arrays(x.shape))
    near(
        dnn.activate_backward(dy, kind, x=x, y=y),
        reference.activate_backward(wide(dy), kind, x=wide(x), y=wide(y)),
        256,
    )


@given(st.data())
def test_pooling(dnn: PlannedDnn, data: st.DataObject) -> None:
    size, stride = data.draw(st.tuples(*[st.integers(1, 3)] * 2)), data.draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = tuple(data.draw(st.integers(0, extent // 2)) for extent in size)
    image = [extent + data.draw(st.integers(0, 6)) for extent in size]
    x = data.draw(arrays((data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), *image)))
    if data.draw(st.booleans()):
        x = np.round(x)  # windows with several largest elements
    options = {"stride": stride, "padding": padding}
    y = dnn.max_pool2d(x, size, **options)
    assert np.array_equal(y, reference.max_pool2d(x, size, **options))
    dy = data.draw(arrays(y.shape))
    near(
        dnn.max_pool2d_backward(dy, x, y, size, **options),
        reference.max_pool2d_backward(wide(dy), wide(x), wide(y), size, **options),
        9,
    )
    whole = data.draw(st.booleans())
    mean = dnn.avg_pool2d(x, size, count_padding=whole, **options)
    near(mean, reference.avg_pool2d(wide(x), size, count_padding=whole, **options), 9)
    near(
        dnn.avg_pool2d_backward(dy, x, size, count_padding=whole, **options),
        reference.avg_pool2d_backward(wide(dy), wide(x), size, count_padding=whole, **options),
        9,
    )


@given(st.data())
def test_softmax(dnn: PlannedDnn, data: st.DataObject) -> None:
    x = data.draw(arrays(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))))
    y = dnn.softmax(x)
    near(y, reference.softmax(wide(x)), 16)
    dy = data.draw(arrays(x.shape))
    near(dnn.softmax_backward(dy, y), reference.softmax_backward(wide(dy), wide(y)), 16)


@given(st.data())
def test_cross_entropy(dnn: PlannedDnn, data: st.DataObject) -> None:
    logits = data.draw(arrays((data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12)))))
    kind = data.draw(st.sampled_from((np.int64, np.int32, np.uint8)))
    labels = np.asarray(
        data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(logits), max_size=len(logits))), kind
    )
    reduction: Any = data.draw(st.sampled_from(("mean", "sum")))
    found = dnn.softmax_cross_entropy(logits, labels, reduction=reduction)
    expected = reference.softmax_cross_entropy(wide(logits), labels, reduction=reduction)
    for one, other in zip(found, expected, strict=True):
        near(one, other, 64)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_the_order_of_axes_is_kept(dnn: PlannedDnn, layout: str) -> None:
    x = np.ones((2, 8, 5, 5), np.float32)
    if layout == "last":
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y = dnn.conv2d(x, np.ones((16, 8, 3, 3), np.float32))
    assert (y if layout == "first" else y.transpose(0, 2, 3, 1)).flags.c_contiguous


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 4, 4)])
def test_batches_of_none_are_none(dnn: PlannedDnn, shape: tuple[int, ...]) -> None:
    x, w = np.ones(shape, np.float32), np.ones((2, 3, 3, 3), np.float32)
    y = dnn.conv2d(x, w)
    assert y.shape == (shape[0], 2, 2, 2)
    dx, dw, dbias = dnn.conv2d_backward(y, x, w)
    assert dx is not None
    assert (dx.shape, dw.any(), dbias.any()) == (shape, shape[0] > 0, shape[0] > 0)


@pytest.mark.parametrize("function", ["fused", "alone", "dense", "product"])
def test_relu_keeps_nan(dnn: PlannedDnn, function: str) -> None:
    x = np.asarray([[np.nan, -1.0, 2.0, -0.0]], np.float32)
    image = np.repeat(x.reshape(1, 4, 1, 1), 8, axis=0)
    one = np.eye(4, dtype=np.float32)
    if function == "fused":
        y = dnn.conv2d(image[:, :1], np.ones((1, 1, 1, 1), np.float32), activation="relu")
        assert np.isnan(y).all()
        y = dnn.conv2d(image[:, 1:], np.ones((3, 1, 1, 1), np.float32), groups=3, activation="relu")[0, :, 0, 0]
    elif function == "alone":
        y = dnn.relu(x)[0, 1:]
        assert np.isnan(dnn.relu(x)[0, 0])
    elif function == "dense":
        assert np.isnan(dnn.linear(x, one, activation="relu")).all()
        y = dnn.linear(x[:, 1:], one[1:, 1:], activation="relu")[0]
    else:
        assert np.isnan(dnn.matmul(x, one, activation="relu")).all()
        y = dnn.matmul(x[:, 1:], one[1:, 1:], activation="relu")[0]
    assert y.tolist() == [0.0, 2.0, 0.0]
    assert not np.signbit(y).any()


def test_numbers_pass_a_fused_relu_unchanged(dnn: PlannedDnn) -> None:
    values = np.asarray([1e-38, 1.2e-38, 0.1, 1 / 3, 1.0, 3e38, np.inf, 1e20], np.float32)
    one = np.ones((1, 1), np.float32)
    assert dnn.linear(values[:, None], one, activation="relu")[:, 0].tolist() == values.tolist()
    assert dnn.linear(-values[:-2, None], one, activation="relu")[:, 0].tolist() == [0.0] * 6


@pytest.mark.interop
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_as_in_pytorch(dnn: PlannedDnn, layout: str, groups: int) -> None:
    torch = interop.need("torch")
    torch.manual_seed(1)
    x = torch.randn(2, 8, 9, 9).to(memory_format=getattr(torch, layout)).requires_grad_()
    w, bias = torch.randn(16, 8 // groups, 3, 3, requires_grad=True), torch.randn(16, requires_grad=True)
    y = torch.relu(torch.nn.functional.conv2d(x, w, bias, stride=2, padding=1, groups=groups))
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, w, bias), dy)
    plain = [one.detach().numpy() for one in (x, w, bias, dy)]
    options: dict[str, Any] = {"stride": 2, "padding": 1, "groups": groups, "activation": "relu"}
    found = dnn.conv2d(*plain[:3], **options)
    near(found, y.detach().numpy(), 80)
    for one, other in zip(dnn.conv2d_backward(plain[3], plain[0], plain[1], y=found, **options), expected, strict=True):
        near(one, other.numpy(), 400)


@given(st.data())
def test_batch_normalisation(dnn: PlannedDnn, data: st.DataObject) -> None:
    channels = data.draw(st.integers(1, 17))
    rest = data.draw(st.sampled_from(((), (1, 1), (3, 4))))
    x = data.draw(arrays((data.draw(st.integers(2, 5)), channels, *rest)))
    gamma, beta, mean = (data.draw(arrays((channels,))) for _ in range(3))
    variance = np.abs(data.draw(arrays((channels,)))) + 0.5
    dy = data.draw(arrays(x.shape))
    found = dnn.batch_norm(x, gamma, beta, epsilon=0.25)
    for one, other in zip(found, reference.batch_norm(wide(x), wide(gamma), wide(beta), epsilon=0.25), strict=True):
        near(one, other, 4 * x.size)
    near(
        dnn.batch_norm_inference(x, gamma, beta, mean, variance),
        reference.batch_norm_inference(*map(wide, (x, gamma, beta, mean, variance))),
        64,
    )
    for name, own in (("batch_norm_backward", found[1:]), ("batch_norm_inference_backward", (mean, variance))):
        inputs = dy, x, gamma, *own
        gradients = getattr(dnn, name)(*inputs, epsilon=0.25)
        expected = getattr(reference, name)(*map(wide, inputs), epsilon=0.25)
        for one, other in zip(gradients, expected, strict=True):
            near(one, other, 64 * x.size)


@given(st.data())
def test_layer_normalisation(dnn: PlannedDnn, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    inner = shape[data.draw(st.integers(0, len(shape) - 1)) :]
    x, dy = data.draw(arrays(shape)), data.draw(arrays(shape))
    gamma, beta = data.draw(arrays(inner)), data.draw(arrays(inner))
    found = dnn.layer_norm(x, gamma, beta, epsilon=0.25)
    for one, other in zip(found, reference.layer_norm(wide(x), wide(gamma), wide(beta), epsilon=0.25), strict=True):
        near(one, other, 4 * x.size)
    inputs = dy, x, gamma, *found[1:]
    gradients = dnn.layer_norm_backward(*inputs, epsilon=0.25)
    expected = reference.layer_norm_backward(*map(wide, inputs), epsilon=0.25)
    for one, other in zip(gradients, expected, strict=True):
        near(one, other, 64 * x.size)
