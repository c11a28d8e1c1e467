"""The part of the reference that needs neither windows nor products: activations, normalisation, softmax, dropout."""

from __future__ import annotations

import math
from typing import Any, Literal

from tazza.core.generator import Generator
from tazza.dnn.checks import (
    check_activate,
    check_activate_backward,
    check_batch_norm,
    check_cross_entropy,
    check_dropout,
    check_dropout_by,
    check_float,
    check_gradient,
    check_layer_norm,
    check_softmax,
)
from tazza.dnn.error_function import erfc
from tazza.dnn.interface import ActivationKind, Array, Dnn

__all__ = ["ReferenceLayers", "kept_from"]

_GELU_END = 40.0
_SILU_END = 800.0
"""From here on the functions and their derivatives are at their limits, so that infinite elements may stand at it."""


def kept_from(rate: float) -> float:
    """Return the least draw of dropout that is kept: `rate`, rounded up to what float32 draws can be.

    They are multiples of 2**-24, and so is this, so that a comparison has one answer whatever dtype it is made in.

    >>> kept_from(0.1) * 2**24
    1677722.0
    """
    return math.ceil(rate * 2**24) / 2**24


class ReferenceLayers(Dnn):
    """What `ReferenceDnn` inherits; it says what the namespace is."""

    _xp: Any

    # Activations ---------------------------------------------------------------------------------------------------

    def activate(self, x: Array, kind: ActivationKind) -> Array:
        check_activate(kind)
        check_float("x", x, self._xp)
        if kind == "relu":
            return self._xp.maximum(x, self._xp.zeros((), dtype=x.dtype))
        if kind == "tanh":
            return self._xp.tanh(x)
        if kind == "sigmoid":
            return self._sigmoid(x)
        if kind == "silu":
            return self._xp.clip(x, -_SILU_END, None) * self._sigmoid(x)
        return self._xp.clip(x, -_GELU_END, None) * self._normal_share(x)

    def activate_backward(
        self, dy: Array, kind: ActivationKind, *, x: Array | None = None, y: Array | None = None
    ) -> Array:
        xp = self._xp
        if check_activate_backward(xp, dy, kind, x, y) == "y":
            assert y is not None
            if kind == "relu":
                return xp.where(y > 0, dy, xp.zeros((), dtype=y.dtype))
            return dy * (1.0 - y * y if kind == "tanh" else y * (1.0 - y))
        assert x is not None
        if kind == "silu":
            share, bounded = self._sigmoid(x), xp.clip(x, -_SILU_END, _SILU_END)
            return dy * share * (1.0 + bounded * (1.0 - share))
        bounded = xp.clip(x, -_GELU_END, _GELU_END)
        density = xp.exp(-0.5 * bounded * bounded) * (1.0 / math.sqrt(2.0 * math.pi))
        return dy * (self._normal_share(x) + bounded * density)

    def _sigmoid(self, x: Array) -> Array:
        """Return the logistic function, from powers that cannot overflow."""
        power = self._xp.exp(-self._xp.abs(x))
        return self._xp.where(x < 0, power, self._xp.ones((), dtype=x.dtype)) / (1.0 + power)

    def _normal_share(self, x: Array) -> Array:
        """Return how much of a normal distribution lies below: ``(1 + erf(x / sqrt(2))) / 2`` without cancellation."""
        return 0.5 * erfc(self._xp, x * -math.sqrt(0.5))

    # Normalisation -------------------------------------------------------------------------------------------------

    def batch_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
        epsilon = check_batch_norm(self._xp, x, epsilon, statistics=True, gamma=gamma, beta=beta)
        axes, spread = _channels(x)
        mean, variance = self._statistics(x, axes)
        y = self._normalised(x, mean, variance, epsilon, spread) * self._xp.reshape(gamma, spread)
        return y + self._xp.reshape(beta, spread), mean, variance

    def batch_norm_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        xp = self._xp
        channels = {"gamma": gamma, "mean": mean, "variance": variance}
        epsilon = check_batch_norm(xp, x, epsilon, statistics=True, **channels)
        check_gradient(dy, x, tuple(x.shape))
        axes, spread = _channels(x)
        normal = self._normalised(x, mean, variance, epsilon, spread)
        dgamma, dbeta = xp.sum(dy * normal, axis=axes), xp.sum(dy, axis=axes)
        count = math.prod(x.shape[axis] for axis in axes)
        centred = dy - xp.reshape(dbeta / count, spread) - normal * xp.reshape(dgamma / count, spread)
        return centred * xp.reshape(gamma / xp.sqrt(variance + epsilon), spread), dgamma, dbeta

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> Array:
        channels = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
        epsilon = check_batch_norm(self._xp, x, epsilon, statistics=False, **channels)
        _, spread = _channels(x)
        y = self._normalised(x, mean, variance, epsilon, spread) * self._xp.reshape(gamma, spread)
        return y + self._xp.reshape(beta, spread)

    def batch_norm_inference_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        xp = self._xp
        channels = {"gamma": gamma, "mean": mean, "variance": variance}
        epsilon = check_batch_norm(xp, x, epsilon, statistics=False, **channels)
        check_gradient(dy, x, tuple(x.shape))
        axes, spread = _channels(x)
        normal = self._normalised(x, mean, variance, epsilon, spread)
        dx = dy * xp.reshape(gamma / xp.sqrt(variance + epsilon), spread)
        return dx, xp.sum(dy * normal, axis=axes), xp.sum(dy, axis=axes)

    def layer_norm(self, x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array, Array]:
        epsilon = check_layer_norm(self._xp, x, gamma, epsilon, beta=beta)
        axes, spread = _last(x, gamma)
        mean, variance = self._statistics(x, axes)
        return self._normalised(x, mean, variance, epsilon, spread) * gamma + beta, mean, variance

    def layer_norm_backward(
        self, dy: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
    ) -> tuple[Array, Array, Array]:
        xp = self._xp
        epsilon = check_layer_norm(xp, x, gamma, epsilon, mean=mean, variance=variance)
        check_gradient(dy, x, tuple(x.shape))
        axes, spread = _last(x, gamma)
        normal = self._normalised(x, mean, variance, epsilon, spread)
        before = tuple(range(x.ndim - gamma.ndim))
        scaled = dy * gamma
        centred = scaled - xp.mean(scaled, axis=axes, keepdims=True)
        centred = centred - normal * xp.mean(scaled * normal, axis=axes, keepdims=True)
        dx = centred / xp.reshape(xp.sqrt(variance + epsilon), spread)
        return dx, xp.sum(dy * normal, axis=before), xp.sum(dy, axis=before)

    def _statistics(self, x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return mean and variance: two passes, as the difference of mean squares would cancel."""
        mean = self._xp.mean(x, axis=axes, keepdims=True)
        centred = x - mean
        return self._xp.squeeze(mean, axis=axes), self._xp.mean(centred * centred, axis=axes)

    def _normalised(self, x: Array, mean: Array, variance: Array, epsilon: float, spread: tuple[int, ...]) -> Array:
        xp = self._xp
        return (x - xp.reshape(mean, spread)) / xp.reshape(xp.sqrt(variance + epsilon), spread)

    # Dropout -------------------------------------------------------------------------------------------------------

    def dropout(self, x: Array, rate: float, random: Generator) -> tuple[Array, Array]:
        rate = check_dropout(self._xp, x, rate, random)
        draws = self._xp.asarray(random.random(math.prod(x.shape), dtype="float32"))
        mask = self._xp.reshape(draws >= kept_from(rate), tuple(x.shape))
        return self._kept(x, mask, rate), mask

    def dropout_by(self, x: Array, mask: Array, rate: float) -> Array:
        """Return the `y` of `dropout` for a mask that was drawn already."""
        rate = check_dropout_by(self._xp, "x", x, mask, rate)
        return self._kept(x, mask, rate)

    def dropout_backward(self, dy: Array, mask: Array, rate: float) -> Array:
        rate = check_dropout_by(self._xp, "dy", dy, mask, rate)
        return self._kept(dy, mask, rate)

    def _kept(self, x: Array, mask: Array, rate: float) -> Array:
        return self._xp.where(mask, x * (1.0 / (1.0 - rate)), self._xp.zeros((), dtype=x.dtype))

    # Softmax -------------------------------------------------------------------------------------------------------

    def softmax(self, x: Array) -> Array:
        xp = self._xp
        check_softmax(xp, "x", x)
        exponentials = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)

    def softmax_backward(self, dy: Array, y: Array) -> Array:
        check_softmax(self._xp, "y", y)
        check_gradient(dy, y, tuple(y.shape))
        return y * (dy - self._xp.sum(dy * y, axis=-1, keepdims=True))

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, *, reduction: Literal["mean", "sum"] = "mean"
    ) -> tuple[Array, Array]:
        xp = self._xp
        check_cross_entropy(xp, logits, labels, reduction)
        shifted = logits - xp.max(logits, axis=1, keepdims=True)
        exponentials = xp.exp(shifted)
        total = xp.sum(exponentials, axis=1, keepdims=True)
        labels = xp.astype(labels, xp.int64, copy=False)  # a short dtype may not count as far as there are classes
        classes = xp.arange(logits.shape[1], dtype=xp.int64)
        chosen = xp.astype(xp.expand_dims(labels, axis=1) == classes, logits.dtype)
        loss = xp.sum(xp.log(total)) - xp.sum(shifted * chosen)
        gradient = exponentials / total - chosen
        scale = 1.0 if reduction == "sum" else 1.0 / max(logits.shape[0], 1)
        return loss * scale, gradient * scale


def _channels(x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of a channel's statistics, and the shape in which they spread over `x`."""
    return ((0,), (1, -1)) if x.ndim == 2 else ((0, 2, 3), (1, -1, 1, 1))


def _last(x: Array, gamma: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes that a layer normalisation covers, and the shape in which its statistics spread over `x`."""
    before = x.ndim - gamma.ndim
    return tuple(range(before, x.ndim)), (*x.shape[:before], *(1,) * gamma.ndim)
