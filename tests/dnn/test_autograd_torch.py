"""PyTorch's autograd through `ctx.dnn`: the gradients of the same operations written in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import tazza as tz
from tazza.errors import UnsupportedError
from tests.interop import need

torch = need("torch")
pytestmark = pytest.mark.interop
functional = torch.nn.functional


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", seed=1, arrays="torch", dnn="reference") as ctx:
        yield ctx


Operation = Callable[..., Any]
CASES: dict[str, tuple[Operation, Operation, tuple[tuple[int, ...], ...]]] = {
    "conv2d": (
        lambda dnn, x, w, b: dnn.conv2d(x, w, b, stride=2, padding=1, activation="tanh"),
        lambda x, w, b: torch.tanh(functional.conv2d(x, w, b, 2, 1)),
        ((2, 3, 6, 5), (4, 3, 3, 3), (4,)),
    ),
    "conv2d, no bias": (
        lambda dnn, x, w: dnn.conv2d(x, w),
        lambda x, w: functional.conv2d(x, w),
        ((2, 3, 6, 5), (4, 3, 3, 3)),
    ),
    "linear": (
        lambda dnn, x, w, b: dnn.linear(x, w, b, activation="sigmoid"),
        lambda x, w, b: torch.sigmoid(functional.linear(x, w, b)),
        ((5, 3), (4, 3), (4,)),
    ),
    "matmul": (lambda dnn, a, b: dnn.matmul(a, b), torch.matmul, ((2, 4, 3), (2, 3, 5))),
    "gelu": (lambda dnn, x: dnn.activate(x, "gelu"), functional.gelu, ((7, 3),)),
    "avg_pool2d": (
        lambda dnn, x: dnn.avg_pool2d(x, 2),
        lambda x: functional.avg_pool2d(x, 2),
        ((2, 3, 6, 6),),
    ),
    "max_pool2d": (lambda dnn, x: dnn.max_pool2d(x, 2), lambda x: functional.max_pool2d(x, 2), ((2, 3, 6, 6),)),
    "softmax": (lambda dnn, x: dnn.softmax(x), lambda x: torch.softmax(x, -1), ((5, 4),)),
    "batch_norm": (
        lambda dnn, x, gamma, beta: dnn.batch_norm(x, gamma, beta, epsilon=1e-5)[0],
        lambda x, gamma, beta: functional.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-5),
        ((4, 3, 5, 5), (3,), (3,)),
    ),
    "layer_norm": (
        lambda dnn, x, gamma, beta: dnn.layer_norm(x, gamma, beta, epsilon=1e-5)[0],
        lambda x, gamma, beta: functional.layer_norm(x, gamma.shape, gamma, beta, 1e-5),
        ((4, 6), (6,), (6,)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_pytorch(ctx: tz.Context, name: str) -> None:
    ours, theirs, shapes = CASES[name]
    inputs = [ctx.random.standard_normal(shape, dtype="float64") for shape in shapes]
    leaves = [[one.clone().requires_grad_() for one in inputs] for _ in range(2)]
    y, z = ours(ctx.dnn, *leaves[0]), theirs(*leaves[1])
    weight = ctx.random.standard_normal(tuple(y.shape), dtype="float64")
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    torch.testing.assert_close(y, z, rtol=1e-9, atol=1e-11)
    for mine, its in zip(*leaves, strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_a_loss(ctx: tz.Context) -> None:
    logits = ctx.random.standard_normal((6, 5), dtype="float64")
    labels = ctx.random.integers(5, size=6)
    one, other = (logits.clone().requires_grad_() for _ in range(2))
    loss, _ = ctx.dnn.softmax_cross_entropy(one, labels)
    (3 * loss).backward()
    (3 * functional.cross_entropy(other, labels)).backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_only_what_is_wanted_is_found(ctx: tz.Context) -> None:
    x, w = ctx.random.standard_normal((1, 1, 4, 4)), ctx.random.standard_normal((1, 1, 3, 3)).requires_grad_()
    y = ctx.dnn.conv2d(x, w)
    y.sum().backward()
    assert x.grad is None
    assert w.grad is not None
    with torch.no_grad():
        assert not ctx.dnn.conv2d(x, w).requires_grad
    assert not ctx.dnn.conv2d(x, w.detach()).requires_grad


def test_a_module_trains_with_it(ctx: tz.Context) -> None:
    weight = torch.nn.Parameter(ctx.random.standard_normal((1, 4), dtype="float32"))
    optimiser = torch.optim.SGD([weight], lr=0.1)
    x = ctx.random.standard_normal((32, 4), dtype="float32")
    target = x @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]])
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = ((ctx.dnn.linear(x, weight) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


def test_what_has_no_gradient_says_so(ctx: tz.Context) -> None:
    x = ctx.random.standard_normal((4, 3), dtype="float64")
    gamma, beta, mean, variance = (x[row].abs() + 0.5 for row in range(4))
    with pytest.raises(UnsupportedError, match="no gradient for mean"):
        ctx.dnn.batch_norm_inference(x, gamma, beta, mean.requires_grad_(), variance, epsilon=1e-5)
    y = ctx.dnn.activate(x, "relu")
    with pytest.raises(UnsupportedError, match="once more"):
        ctx.dnn.relu_backward(x.requires_grad_(), y)
    z = ctx.dnn.activate(x, "tanh")
    (grad,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()
