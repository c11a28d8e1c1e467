"""Softmax cross-entropy: oneDNN's softmax, and the few sums over it in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from tazza.dnn.library import Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.recipe import Recipe, Strategy

__all__ = ["log_softmax", "strategies", "to_loss"]


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do it, best first."""
    return Strategy(), Strategy(skip=1)


def log_softmax(recipe: Recipe) -> None:
    """Add the steps of the logarithm of softmax, written where the gradient will be."""
    made = recipe.array(3)
    logits = recipe.like(0, 3)
    descriptor = recipe.choose(
        "dnnl_softmax_forward_primitive_desc_create",
        binding.FORWARD_INFERENCE,
        binding.LOG_SOFTMAX,
        logits.layout,
        made.layout,
        1,
        recipe.attributes(),
    )
    recipe.add(descriptor, {binding.SRC: logits, binding.DST: made})


def to_loss(options: tuple[Any, ...], arrays: Any) -> None:
    """Turn the logarithms of probabilities to the loss and its gradient, in place."""
    _, labels, loss, gradient = arrays
    chosen = labels.astype(np.int64, copy=False)[:, None] == np.arange(gradient.shape[1])
    scale = gradient.dtype.type(1.0 if options[0] == "sum" else 1.0 / gradient.shape[0])
    loss[...] = -np.sum(gradient, where=chosen) * scale
    np.exp(gradient, out=gradient)
    np.subtract(gradient, chosen, out=gradient)
    if options[0] == "mean":
        np.multiply(gradient, scale, out=gradient)
