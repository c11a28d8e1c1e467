"""Activations and softmax, forward and backward."""

from __future__ import annotations

import math
from typing import Final

from tazza.dnn.library import Layout, Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.recipe import FUSED, Recipe, Slot, Strategy, dense

__all__ = [
    "activate",
    "activate_backward",
    "activate_in_place",
    "before_activation",
    "softmax",
    "softmax_backward",
    "strategies",
]

_FORWARD: Final = {
    "tanh": (binding.TANH, 0.0),
    "sigmoid": (binding.LOGISTIC, 0.0),
    "silu": (binding.SWISH, 1.0),
    "gelu": (binding.GELU, 0.0),
}
_FROM_X: Final = ("silu", "gelu")
_BACKWARD: Final = {
    "silu": (*_FORWARD["silu"], 0.0),
    "gelu": (*_FORWARD["gelu"], 0.0),
    # Not the library's gradient of ReLU, which passes on where y is NaN: that of clipping y to (0, infinity] does not.
    "relu": (binding.CLIP, 0.0, math.inf),
    "tanh": (binding.TANH_FROM_RESULT, 0.0, 0.0),
    "sigmoid": (binding.LOGISTIC_FROM_RESULT, 0.0, 0.0),
}
_OF_RESULT: Final = (binding.TANH_FROM_RESULT, binding.LOGISTIC_FROM_RESULT)


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do it, best first."""
    return Strategy(), Strategy(skip=1)


def activate(recipe: Recipe) -> None:
    """Add the steps of ``activate``: over the elements in the order of memory where that is the result's too."""
    x, y = _lines(recipe, 0, 1)
    source = recipe.into(x, y.layout)
    kind, alpha = _FORWARD[recipe.operation.options[0]]
    recipe.add(_forward(recipe, kind, alpha, y.layout), {binding.SRC: source, binding.DST: y})


def activate_backward(recipe: Recipe) -> None:
    """Add the steps of ``activate.backward``."""
    [kind] = recipe.operation.options
    number = 1 if kind in _FROM_X else 2
    dy, known, dx = _lines(recipe, 0, number, 3)
    _backward(recipe, kind, recipe.into(dy, dx.layout), recipe.into(known, dx.layout), dx)


def before_activation(recipe: Recipe, kind: str, dy: Slot, y: Slot) -> Slot:
    """Take a gradient back through a fused activation, in the layout of its result without gaps."""
    given = recipe.given(3)
    layout = recipe.strided(given.dtype, given.shape, dense(given.shape, recipe.order(3)))
    made = recipe.scratch(layout)
    _backward(recipe, kind, recipe.into(dy, layout), recipe.into(y, layout), made, skip=0)
    return made


def activate_in_place(recipe: Recipe, kind: str, slot: Slot) -> None:
    """Do what `Recipe.attributes` fuses, in steps of its own."""
    for one, alpha in FUSED[kind]:
        descriptor = _forward(recipe, one, alpha, slot.layout, skip=0)
        recipe.add(descriptor, {binding.SRC: slot, binding.DST: slot}, names=False)


def softmax(recipe: Recipe) -> None:
    """Add the steps of ``softmax``."""
    x, y = recipe.like(0, 1), recipe.array(1)
    recipe.add(_softmax(recipe, x.layout, y.layout), {binding.SRC: x, binding.DST: y})


def softmax_backward(recipe: Recipe) -> None:
    """Add the steps of ``softmax.backward``."""
    dy, y, dx = recipe.like(0, 2), recipe.like(1, 2), recipe.array(2)
    descriptor = recipe.choose(
        "dnnl_softmax_backward_primitive_desc_create",
        binding.SOFTMAX,
        dx.layout,
        dy.layout,
        y.layout,
        len(recipe.given(2).shape) - 1,
        _softmax(recipe, y.layout, y.layout, skip=0),
        recipe.attributes(),
    )
    recipe.add(descriptor, {binding.DST: y, binding.DIFF_DST: dy, binding.DIFF_SRC: dx})


def _softmax(recipe: Recipe, x: int, y: int, skip: int | None = None) -> int:
    return recipe.choose(
        "dnnl_softmax_forward_primitive_desc_create",
        binding.FORWARD_TRAINING,
        binding.SOFTMAX,
        x,
        y,
        len(recipe.given(0).shape) - 1,
        recipe.attributes(),
        skip=skip,
    )


def _forward(
    recipe: Recipe, kind: int, alpha: float, layout: int, *, beta: float = 0.0, skip: int | None = None
) -> int:
    return recipe.choose(
        "dnnl_eltwise_forward_primitive_desc_create",
        binding.FORWARD_TRAINING,
        kind,
        layout,
        layout,
        alpha,
        beta,
        recipe.attributes(),
        skip=skip,
    )


def _backward(recipe: Recipe, name: str, dy: Slot, known: Slot, dx: Slot, skip: int | None = None) -> None:
    """Add the gradient of an activation, of whose argument or result `known` is."""
    kind, alpha, beta = _BACKWARD[name]
    descriptor = recipe.choose(
        "dnnl_eltwise_backward_primitive_desc_create",
        kind,
        dx.layout,
        dy.layout,
        known.layout,
        alpha,
        beta,
        _forward(recipe, kind, alpha, known.layout, beta=beta, skip=0),
        recipe.attributes(),
        skip=skip,
    )
    argument = binding.DST if kind in _OF_RESULT else binding.SRC
    recipe.add(descriptor, {argument: known, binding.DIFF_DST: dy, binding.DIFF_SRC: dx})


def _lines(recipe: Recipe, *numbers: int) -> list[Slot]:
    """The arrays as lines of elements where all lie alike and without gaps, else as they are."""
    given = [recipe.given(number) for number in numbers]
    if all(_order(one) == _order(given[0]) is not None for one in given):
        size = math.prod(given[0].shape)
        return [recipe.array(number, (size,), (1,)) for number in numbers]
    return [recipe.array(number) for number in numbers]


def _order(layout: Layout) -> tuple[int, ...] | None:
    """The axes from outermost to innermost, of those that have extent; None where there are gaps."""
    axes = [axis for axis, extent in enumerate(layout.shape) if extent > 1]
    axes.sort(key=lambda axis: -layout.strides[axis])
    step = 1
    for axis in reversed(axes):
        if layout.strides[axis] != step:
            return None
        step *= layout.shape[axis]
    return tuple(axes)
