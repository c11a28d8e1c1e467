"""The operations of the fronts: each names its row of the table and nothing else."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, Literal

from tazza.dnn.checks import FROM_X
from tazza.dnn.interface import Activation, ActivationKind, Array, Dnn, Pair

__all__ = ["PlannedLayers"]


class PlannedLayers(Dnn):
    """What fronts inherit, which say how an operation of the table is done."""

    @abc.abstractmethod
    def _do(
        self, name: str, inputs: Sequence[Array | None], options: tuple[Any, ...], want_first: bool = True
    ) -> list[Array]:
        """Do an operation by its name; returns its outputs."""

    def conv2d(
        self,
        x: Array,
        w: Array,
        bias: Array | None = None,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        activation: Activation = None,
    ) -> Array:
        return self._do("conv2d", (x, w, bias), (stride, padding, dilation, groups, activation))[0]

    def conv2d_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        *,
        y: Array | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        activation: Activation = None,
        need_dx: bool = True,
    ) -> tuple[Array | None, Array, Array]:
        options = stride, padding, dilation, groups, activation
        dx, dw, dbias = self._do("conv2d.backward", (dy, x, w, y), options, bool(need_dx))
        return dx, dw, dbias

    def linear(self, x: Array, w: Array, bias: Array | None = None, *, activation: Activation = None) -> Array:
        return self._do("linear", (x, w, bias), (activation,))[0]

    def linear_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        *,
        y: Array | None = None,
        activation: Activation = None,
        need_dx: bool = True,
    ) -> tuple[Array | None, Array, Array]:
        dx, dw, dbias = self._do("linear.backward", (dy, x, w, y), (activation,), bool(need_dx))
        return dx, dw, dbias

    def matmul(self, a: Array, b: Array, bias: Array | None = None, *, activation: Activation = None) -> Array:
        return self._do("matmul", (a, b, bias), (activation,))[0]

    def matmul_backward(
        self, dy: Array, a: Array, b: Array, *, y: Array | None = None, activation: Activation = None
    ) -> tuple[Array, Array, Array]:
        da, db, dbias = self._do("matmul.backward", (dy, a, b, y), (activation,))
        return da, db, dbias

    def activate(self, x: Array, kind: ActivationKind) -> Array:
        return self._do("activate", (x,), (kind,))[0]

    def activate_backward(
        self, dy: Array, kind: ActivationKind, *, x: Array | None = None, y: Array | None = None
    ) -> Array:
        # What is not needed is left out, so that its layout does not ask for a plan of its own.
        needed = (dy, x, None) if kind in FROM_X else (dy, None, y)
        return self._do("activate.backward", needed, (kind,))[0]

    def max_pool2d(self, x: Array, window: Pair, *, stride: Pair | None = None, padding: Pair = 0) -> Array:
        return self._do("max_pool2d", (x,), (window, stride, padding))[0]

    def max_pool2d_backward(
        self, dy: Array, x: Array, y: Array, window: Pair, *, stride: Pair | None = None, padding: Pair = 0
    ) -> Array:
        return self._do("max_pool2d.backward", (dy, x, y), (window, stride, padding))[0]

    def avg_pool2d(
        self,
        x: Array,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        count_padding: bool | None = None,
    ) -> Array:
        return self._do("avg_pool2d", (x,), (window, stride, padding, count_padding))[0]

    def avg_pool2d_backward(
        self,
        dy: Array,
        x: Array,
        window: Pair,
        *,
        stride: Pair | None = None,
        padding: Pair = 0,
        count_padding: bool | None = None,
    ) -> Array:
        return self._do("avg_pool2d.backward", (dy, x), (window, stride, padding, count_padding))[0]

    def batch_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
        y, mean, variance = self._do("batch_norm", (x, gamma, beta), (epsilon,))
        return y, mean, variance

    def batch_norm_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        dx, dgamma, dbeta = self._do("batch_norm.backward", (dy, x, gamma, mean, variance), (epsilon,))
        return dx, dgamma, dbeta

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> Array:
        return self._do("batch_norm_inference", (x, gamma, beta, mean, variance), (epsilon,))[0]

    def batch_norm_inference_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        inputs = dy, x, gamma, mean, variance
        dx, dgamma, dbeta = self._do("batch_norm_inference.backward", inputs, (epsilon,))
        return dx, dgamma, dbeta

    def layer_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
        y, mean, variance = self._do("layer_norm", (x, gamma, beta), (epsilon,))
        return y, mean, variance

    def layer_norm_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        dx, dgamma, dbeta = self._do("layer_norm.backward", (dy, x, gamma, mean, variance), (epsilon,))
        return dx, dgamma, dbeta

    def dropout_backward(self, dy: Array, mask: Array, rate: float) -> Array:
        return self._do("dropout.backward", (dy, mask), (rate,))[0]

    def softmax(self, x: Array) -> Array:
        return self._do("softmax", (x,), ())[0]

    def softmax_backward(self, dy: Array, y: Array) -> Array:
        return self._do("softmax.backward", (dy, y), ())[0]

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, *, reduction: Literal["mean", "sum"] = "mean"
    ) -> tuple[Array, Array]:
        loss, dlogits = self._do("softmax_cross_entropy", (logits, labels), (reduction,))
        return loss, dlogits
