"""Weights packed once: the copy is kept, made again after a change, in the account, and given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.dnn.choosing import library_named
from tazza.dnn.onednn.plan import OnednnPlan
from tazza.errors import ArgumentError, BackendUnavailableError, ClosedError
from tests import interop

try:
    library_named("onednn")
except BackendUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", dnn="onednn") as ctx:
        yield ctx


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The packings that were made: operation and number of the input."""
    made: list[tuple[str, int]] = []
    pack = OnednnPlan.pack

    def counted(self: OnednnPlan, state: Any, number: int, *rest: Any) -> None:
        made.append((self.operation.name, number))
        pack(self, state, number, *rest)

    monkeypatch.setattr(OnednnPlan, "pack", counted)
    return made


def image(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("turned", [False, True])
def test_convolutions_with_packed_weights(ctx: tz.Context, groups: int, turned: bool) -> None:
    x, dy = image(2, 16, 9, 9), image(2, 24, 9, 9)
    w = image(24, 16 // groups, 3, 3)
    w = w[::-1].transpose(0, 1, 3, 2) if turned else w
    options: dict[str, Any] = {"padding": 1, "groups": groups}
    weights = ctx.dnn.weights(w)
    for _ in range(2):
        assert np.array_equal(ctx.dnn.conv2d(x, weights, **options), ctx.dnn.conv2d(x, w, **options))
        found, expected = (ctx.dnn.conv2d_backward(dy, x, one, **options) for one in (weights, w))
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("channels", "size"), [(64, 5), (4096, 3)])
@pytest.mark.parametrize("way", ["backwards", "broadcast"])
def test_packed_weights_that_lie_as_the_library_has_no_layout_for(
    ctx: tz.Context, channels: int, size: int, way: str
) -> None:
    x, w = image(1, channels, size, size), image(1, channels, 3, 3)
    w = w[:, :, ::-1] if way == "backwards" else np.broadcast_to(w[:, :1], w.shape)
    weights = ctx.dnn.weights(w)
    expected = ctx.dnn.conv2d(x, w.copy(), padding=1)
    assert weights.nbytes == 0
    np.testing.assert_allclose(ctx.dnn.conv2d(x, weights, padding=1), expected, rtol=1e-4, atol=1e-3)
    assert weights.nbytes > w.nbytes  # filters are padded to blocks of eight: more than the array's room


def test_dense_layers_with_packed_weights(ctx: tz.Context, packs: list[tuple[str, int]]) -> None:
    x, w, dy = image(5, 40), image(30, 40), image(5, 30)
    weights = ctx.dnn.weights(w)
    assert np.array_equal(ctx.dnn.linear(x, weights), ctx.dnn.linear(x, w))
    assert packs == [("linear", 1)]
    ctx.dnn.linear(x, weights, activation="relu")
    assert len(packs) == 1  # the same layout
    found, expected = (ctx.dnn.linear_backward(dy, x, one) for one in (weights, w))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_change_is_seen_when_it_is_told(ctx: tz.Context, packs: list[tuple[str, int]]) -> None:
    x, w = image(5, 40), image(30, 40)
    weights = ctx.dnn.weights(w)
    first = ctx.dnn.linear(x, weights)
    w *= 2
    assert np.array_equal(ctx.dnn.linear(x, weights), first)
    weights.changed()
    assert np.array_equal(ctx.dnn.linear(x, weights), ctx.dnn.linear(x, w))
    assert not np.array_equal(ctx.dnn.linear(x, weights), first)
    assert (weights.version, len(packs)) == (1, 2)


def test_copies_are_counted_and_given_back(ctx: tz.Context, packs: list[tuple[str, int]]) -> None:
    x, w = image(5, 400), image(300, 400)

    def live() -> int:
        return sum(one.nbytes for one in ctx.memory.snapshot().holdings if one.label == "packed weights")

    weights = ctx.dnn.weights(w)
    assert (weights.nbytes, live()) == (0, 0)
    expected = ctx.dnn.linear(x, weights)
    assert weights.nbytes >= w.nbytes
    assert live() >= w.nbytes
    assert weights.trim(1 << 30) == 0
    assert weights.trim() >= w.nbytes
    assert (weights.nbytes, live()) == (0, 0)
    assert np.array_equal(ctx.dnn.linear(x, weights), expected)
    assert len(packs) == 2
    assert "version 0" in repr(weights)
    del weights
    gc.collect()
    assert live() == 0


def test_relief_takes_them(ctx: tz.Context) -> None:
    x, w = image(5, 400), image(300, 400)
    weights = ctx.dnn.weights(w)
    ctx.dnn.linear(x, weights)
    assert weights in ctx.own_stream.runtime.workspaces.now()


def test_weights_of_another_context_are_refused(ctx: tz.Context) -> None:
    x, w = image(5, 4), image(3, 4)
    with tz.open("cpu", dnn="onednn") as other:
        weights = other.dnn.weights(w)
        with pytest.raises(ArgumentError, match="expected this context's"):
            ctx.dnn.linear(x, weights)
    del other
    gc.collect()
    with pytest.raises(ClosedError, match="is gone"):
        ctx.dnn.linear(x, weights)
    with pytest.raises(ArgumentError, match="got Weights"):
        ctx.dnn.matmul(x, ctx.dnn.weights(w))


def test_the_reference_takes_them_as_they_are() -> None:
    x, w = image(5, 4), image(3, 4)
    with tz.open("cpu", dnn="reference") as ctx:
        weights = ctx.dnn.weights(w)
        assert np.array_equal(ctx.dnn.linear(x, weights), ctx.dnn.linear(x, w))
        assert weights.nbytes == 0


@pytest.mark.interop
def test_tensors_that_come_again_unchanged_are_packed(packs: list[tuple[str, int]]) -> None:
    torch = interop.need("torch")
    with tz.open("cpu", arrays="torch", dnn="onednn") as ctx:
        x, w = torch.randn(5, 40), torch.randn(30, 40)
        expected = [ctx.dnn.linear(x, w) for _ in range(2)]
        assert packs == []
        expected += [ctx.dnn.linear(x, w) for _ in range(3)]
        assert packs == [("linear", 1)]
        assert all(torch.equal(one, expected[0]) for one in expected)
        w.mul_(2)
        for _ in range(4):
            assert torch.allclose(ctx.dnn.linear(x, w), 2 * expected[0], atol=1e-4)
        assert len(packs) == 2
        w.data = torch.ones(30, 40)  # another memory, which no version counts
        assert torch.allclose(ctx.dnn.linear(x, w), x @ w.T, atol=1e-4)
        with pytest.raises(ArgumentError, match="requires grad"):
            ctx.dnn.weights(w.requires_grad_())


@pytest.mark.interop
def test_tensors_that_are_gone_are_forgotten() -> None:
    torch = interop.need("torch")
    with tz.open("cpu", arrays="torch", dnn="onednn") as ctx:
        x = torch.randn(5, 40)
        for _ in range(10):
            w = torch.randn(30, 40)
            for _ in range(4):
                ctx.dnn.linear(x, w)
        del w
        gc.collect()
        ctx.dnn.linear(x, torch.randn(30, 40))
        assert len(ctx.dnn._tensors._seen) <= 2
        with torch.inference_mode():
            w = torch.randn(30, 40)
            assert all(torch.equal(ctx.dnn.linear(x, w), ctx.dnn.linear(x, w)) for _ in range(3))
