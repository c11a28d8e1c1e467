"""Pooling, forward and backward."""

from __future__ import annotations

from typing import Any

from tazza.dnn.library import Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.binding import dims
from tazza.dnn.onednn.recipe import LAST, Recipe, Slot, Strategy, dense

__all__ = ["avg_pool2d", "avg_pool2d_backward", "max_pool2d", "max_pool2d_backward", "strategies"]


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do it, best first. The library's fast code wants channels innermost, and is worth turning twice."""
    return Strategy("last"), Strategy("given"), Strategy("last", 1), Strategy("given", 1)


def max_pool2d(recipe: Recipe) -> None:
    """Add the steps of ``max_pool2d``."""
    _pool(recipe, binding.MAX_POOLING)


def avg_pool2d(recipe: Recipe) -> None:
    """Add the steps of ``avg_pool2d``."""
    _pool(recipe, _average(recipe))


def max_pool2d_backward(recipe: Recipe) -> None:
    """Add the steps of ``max_pool2d.backward``: the largest elements are looked for again, as nothing is kept."""
    x = recipe.into(recipe.array(1), _image(recipe, 1, 3))
    dy = recipe.into(recipe.array(0), _image(recipe, 0, 3))
    forward = _forward(recipe, binding.FORWARD_TRAINING, binding.MAX_POOLING, x.layout, dy.layout)
    places = recipe.scratch(recipe.layout(forward, binding.WORKSPACE))
    recipe.add(forward, {binding.SRC: x, binding.DST: recipe.scratch(dy.layout), binding.WORKSPACE: places})
    _backward(recipe, binding.MAX_POOLING, dy, 3, x.layout, forward, {binding.WORKSPACE: places})


def avg_pool2d_backward(recipe: Recipe) -> None:
    """Add the steps of ``avg_pool2d.backward``."""
    kind, dx = _average(recipe), _image(recipe, 2, 2)
    dy = recipe.into(recipe.array(0), _image(recipe, 0, 2))
    forward = _forward(recipe, binding.FORWARD_TRAINING, kind, dx, dy.layout)
    _backward(recipe, kind, dy, 2, dx, forward, {})


def _pool(recipe: Recipe, kind: int) -> None:
    x, y = recipe.into(recipe.array(0), _image(recipe, 0, 1)), _image(recipe, 1, 1)
    descriptor = _forward(recipe, binding.FORWARD_INFERENCE, kind, x.layout, y)
    recipe.onto(y, recipe.array(1), lambda slot: recipe.add(descriptor, {binding.SRC: x, binding.DST: slot}))


def _average(recipe: Recipe) -> int:
    return binding.AVERAGE_WITH_PADDING if recipe.operation.options[3] else binding.AVERAGE_WITHOUT_PADDING


def _backward(
    recipe: Recipe, kind: int, dy: Slot, result: int, dx: int, forward: int, further: dict[int, Slot]
) -> None:
    descriptor = recipe.choose(
        "dnnl_pooling_backward_primitive_desc_create",
        kind,
        dx,
        dy.layout,
        *_windows(recipe),
        forward,
        recipe.attributes(),
    )
    recipe.onto(
        dx,
        recipe.array(result),
        lambda slot: recipe.add(descriptor, {**further, binding.DIFF_DST: dy, binding.DIFF_SRC: slot}),
    )


def _image(recipe: Recipe, number: int, result: int) -> int:
    """The layout in which images are pooled: channels innermost, or in the result's order."""
    given = recipe.given(number)
    order = LAST if recipe.strategy.layout == "last" else recipe.order(result)
    return recipe.strided(given.dtype, given.shape, dense(given.shape, order))


def _forward(recipe: Recipe, direction: int, kind: int, x: int, y: int) -> int:
    return recipe.choose(
        "dnnl_pooling_forward_primitive_desc_create",
        direction,
        kind,
        x,
        y,
        *_windows(recipe),
        recipe.attributes(),
    )


def _windows(recipe: Recipe) -> tuple[Any, ...]:
    size, stride, padding = recipe.operation.options[:3]
    return dims(stride), dims(size), dims((0, 0)), dims(padding), dims(padding)
