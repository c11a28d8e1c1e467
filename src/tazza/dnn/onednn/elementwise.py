"""ReLU, forward and backward."""

from __future__ import annotations

import math

from tazza.dnn.library import Layout, Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.recipe import Recipe, Slot, Strategy

__all__ = ["relu_backward", "strategies", "through_relu"]


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """There is one way."""
    return (Strategy(),)


def relu_backward(recipe: Recipe) -> None:
    """Add the steps of ``relu.backward``."""
    dy, y, dx = _lines(recipe, 0, 1, 2)
    _backward(recipe, recipe.into(dy, dx.layout), recipe.into(y, dx.layout), dx)


def through_relu(recipe: Recipe, dy: Slot, y: Slot) -> Slot:
    """Take a gradient back through a fused ReLU, in the layout of its result."""
    made = recipe.scratch(y.layout)
    _backward(recipe, recipe.into(dy, y.layout), y, made)
    return made


def _backward(recipe: Recipe, dy: Slot, y: Slot, dx: Slot) -> None:
    hint = recipe.choose(
        "dnnl_eltwise_forward_primitive_desc_create",
        binding.FORWARD_TRAINING,
        binding.RELU_FROM_RESULT,
        y.layout,
        y.layout,
        0.0,
        0.0,
        recipe.attributes(),
        skip=0,
    )
    descriptor = recipe.choose(
        "dnnl_eltwise_backward_primitive_desc_create",
        binding.RELU_FROM_RESULT,
        dx.layout,
        dy.layout,
        y.layout,
        0.0,
        0.0,
        hint,
        recipe.attributes(),
        skip=0,
    )
    recipe.add(descriptor, {binding.DST: y, binding.DIFF_DST: dy, binding.DIFF_SRC: dx})


def _lines(recipe: Recipe, *numbers: int) -> list[Slot]:
    """The arrays as lines of elements where all lie alike and without gaps, else as they are."""
    given = [recipe.given(number) for number in numbers]
    if all(_order(one) == _order(given[0]) is not None for one in given):
        size = math.prod(given[0].shape)
        return [recipe.array(number, (size,), (1,)) for number in numbers]
    return [recipe.array(number) for number in numbers]


def _order(layout: Layout) -> tuple[int, ...] | None:
    """The axes from outermost to innermost, of those that have extent; None where there are gaps or overlaps."""
    axes = [axis for axis, extent in enumerate(layout.shape) if extent > 1]
    axes.sort(key=lambda axis: -layout.strides[axis])
    step = 1
    for axis in reversed(axes):
        if layout.strides[axis] != step:
            return None
        step *= layout.shape[axis]
    return tuple(axes)
