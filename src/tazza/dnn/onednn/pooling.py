"""Pooling, forward and backward."""

from __future__ import annotations

from typing import Any

from tazza.dnn.library import Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.binding import dims
from tazza.dnn.onednn.recipe import Recipe, Slot, Strategy

__all__ = ["max_pool2d", "max_pool2d_backward", "strategies"]


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do it, best first. The input is copied where it does not lie as the result does."""
    return Strategy(), Strategy(skip=1)


def max_pool2d(recipe: Recipe) -> None:
    """Add the steps of ``max_pool2d``."""
    y = recipe.array(1)
    x = recipe.like(0, 1)
    descriptor = _forward(recipe, binding.FORWARD_INFERENCE, x, y.layout)
    recipe.add(descriptor, {binding.SRC: x, binding.DST: y})


def max_pool2d_backward(recipe: Recipe) -> None:
    """Add the steps of ``max_pool2d.backward``: the largest elements are looked for again, as nothing is kept."""
    x, dx = recipe.like(1, 3), recipe.array(3)
    dy = recipe.like(0, 3)
    forward = _forward(recipe, binding.FORWARD_TRAINING, x, dy.layout)
    places = recipe.scratch(recipe.layout(forward, binding.WORKSPACE))
    recipe.add(
        forward, {binding.SRC: x, binding.DST: recipe.scratch(dy.layout), binding.WORKSPACE: places}, names=False
    )
    descriptor = recipe.choose(
        "dnnl_pooling_backward_primitive_desc_create",
        binding.MAX_POOLING,
        dx.layout,
        dy.layout,
        *_windows(recipe),
        forward,
        recipe.attributes(),
    )
    recipe.add(descriptor, {binding.DIFF_DST: dy, binding.WORKSPACE: places, binding.DIFF_SRC: dx})


def _forward(recipe: Recipe, kind: int, x: Slot, y: int) -> int:
    return recipe.choose(
        "dnnl_pooling_forward_primitive_desc_create",
        kind,
        binding.MAX_POOLING,
        x.layout,
        y,
        *_windows(recipe),
        recipe.attributes(),
    )


def _windows(recipe: Recipe) -> tuple[Any, ...]:
    size, stride, padding = recipe.operation.options
    return dims(stride), dims(size), dims((0, 0)), dims(padding), dims(padding)
