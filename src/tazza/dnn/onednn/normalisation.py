"""Batch and layer normalisation, forward and backward."""

from __future__ import annotations

import math
from typing import Final

from tazza.dnn.library import Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.recipe import Recipe, Slot, Strategy, dense

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "layer_norm",
    "layer_norm_backward",
    "strategies",
]

_GLOBAL_STATISTICS: Final = 1
_SCALE_AND_SHIFT: Final = 2 | 4


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do it, best first."""
    return Strategy(), Strategy(skip=1)


def batch_norm(recipe: Recipe) -> None:
    """Add the steps of ``batch_norm``: mean and variance are results."""
    x, y = recipe.like(0, 3), recipe.array(3)
    descriptor = _batch(recipe, binding.FORWARD_TRAINING, x, y, 0)
    arguments = {binding.MEAN: recipe.array(4), binding.VARIANCE: recipe.array(5)}
    recipe.add(descriptor, {binding.SRC: x, binding.DST: y, **_affine(recipe, 1, 2), **arguments})


def batch_norm_inference(recipe: Recipe) -> None:
    """Add the steps of ``batch_norm_inference``: mean and variance are given."""
    x, y = recipe.like(0, 5), recipe.array(5)
    descriptor = _batch(recipe, binding.FORWARD_INFERENCE, x, y, _GLOBAL_STATISTICS)
    recipe.add(descriptor, {binding.SRC: x, binding.DST: y, **_affine(recipe, 1, 2), **_statistics(recipe)})


def batch_norm_backward(recipe: Recipe) -> None:
    """Add the steps of ``batch_norm.backward``."""
    _batch_backward(recipe, 0)


def batch_norm_inference_backward(recipe: Recipe) -> None:
    """Add the steps of ``batch_norm_inference.backward``."""
    _batch_backward(recipe, _GLOBAL_STATISTICS)


def _batch(recipe: Recipe, direction: int, x: Slot, y: Slot, flags: int, skip: int | None = None) -> int:
    return recipe.choose(
        "dnnl_batch_normalization_forward_primitive_desc_create",
        direction,
        x.layout,
        y.layout,
        float(recipe.operation.options[0]),
        flags | _SCALE_AND_SHIFT,
        recipe.attributes(),
        skip=skip,
    )


def _batch_backward(recipe: Recipe, flags: int) -> None:
    dy, x, dx = recipe.like(0, 5), recipe.like(1, 5), recipe.array(5)
    descriptor = recipe.choose(
        "dnnl_batch_normalization_backward_primitive_desc_create",
        binding.BACKWARD,
        dx.layout,
        dy.layout,
        x.layout,
        float(recipe.operation.options[0]),
        flags | _SCALE_AND_SHIFT,
        _batch(recipe, binding.FORWARD_TRAINING, x, x, flags, skip=0),
        recipe.attributes(),
    )
    arguments = {binding.SRC: x, binding.DIFF_DST: dy, binding.DIFF_SRC: dx, binding.SCALE: recipe.line(2)}
    arguments |= {binding.DIFF_SCALE: recipe.array(6), binding.DIFF_SHIFT: recipe.array(7)}
    recipe.add(descriptor, {**arguments, **_statistics(recipe)})


def layer_norm(recipe: Recipe) -> None:
    """Add the steps of ``layer_norm``: what is normalised together is seen as one axis."""
    rows, width = _rows(recipe, 0, 1)
    x = _matrix(recipe, 0, rows, width)
    descriptor = _layer(recipe, rows, x)
    arguments = {
        binding.SRC: x,
        binding.MEAN: recipe.array(4, (rows,), (1,)),
        binding.VARIANCE: recipe.array(5, (rows,), (1,)),
        binding.SCALE: _matrix(recipe, 1, 1, width, line=True),
        binding.SHIFT: _matrix(recipe, 2, 1, width, line=True),
    }
    _give(recipe, 3, x.layout, descriptor, arguments, binding.DST)


def layer_norm_backward(recipe: Recipe) -> None:
    """Add the steps of ``layer_norm.backward``."""
    rows, width = _rows(recipe, 1, 2)
    dy, x = _matrix(recipe, 0, rows, width), _matrix(recipe, 1, rows, width)
    gamma = _matrix(recipe, 2, 1, width, line=True)
    descriptor = recipe.choose(
        "dnnl_layer_normalization_backward_primitive_desc_create",
        binding.BACKWARD,
        x.layout,
        dy.layout,
        x.layout,
        recipe.strided(recipe.given(1).dtype, (rows,), (1,)),
        float(recipe.operation.options[0]),
        _SCALE_AND_SHIFT,
        _layer(recipe, rows, x, skip=0),
        recipe.attributes(),
    )
    arguments = {
        binding.SRC: x,
        binding.DIFF_DST: dy,
        binding.SCALE: gamma,
        binding.SHIFT: gamma,  # is asked for, and not looked at
        binding.MEAN: _matrix(recipe, 3, 1, rows, line=True),
        binding.VARIANCE: _matrix(recipe, 4, 1, rows, line=True),
        binding.DIFF_SCALE: recipe.array(6, (width,), (1,)),
        binding.DIFF_SHIFT: recipe.array(7, (width,), (1,)),
    }
    _give(recipe, 5, x.layout, descriptor, arguments, binding.DIFF_SRC)


def _layer(recipe: Recipe, rows: int, x: Slot, skip: int | None = None) -> int:
    return recipe.choose(
        "dnnl_layer_normalization_forward_primitive_desc_create",
        binding.FORWARD_TRAINING,
        x.layout,
        x.layout,
        recipe.strided(recipe.given(0).dtype, (rows,), (1,)),
        float(recipe.operation.options[0]),
        _SCALE_AND_SHIFT,
        recipe.attributes(),
        skip=skip,
    )


def _give(recipe: Recipe, number: int, matrix: int, descriptor: int, arguments: dict[int, Slot], name: int) -> None:
    """Add a primitive that makes array `number` as a matrix, and copy that where the array's axes lie otherwise."""
    given = recipe.given(number)
    recipe.onto(
        recipe.strided(given.dtype, given.shape, dense(given.shape)),
        recipe.array(number),
        lambda slot: recipe.add(descriptor, {**arguments, name: slot._replace(layout=matrix)}),
    )


def _rows(recipe: Recipe, x: int, gamma: int) -> tuple[int, int]:
    """How many elements have statistics of their own, and how many share them."""
    shape, width = recipe.given(x).shape, math.prod(recipe.given(gamma).shape)
    return math.prod(shape) // width, width


def _matrix(recipe: Recipe, number: int, rows: int, width: int, *, line: bool = False) -> Slot:
    """An array in the order of its axes, copied if need be, seen as a matrix or as a line."""
    given = recipe.given(number)
    slot = recipe.into(recipe.array(number), recipe.strided(given.dtype, given.shape, dense(given.shape)))
    shape = (width,) if line else (rows, width)
    return slot._replace(layout=recipe.strided(given.dtype, shape, dense(shape)))


def _affine(recipe: Recipe, scale: int, shift: int) -> dict[int, Slot]:
    return {binding.SCALE: recipe.line(scale), binding.SHIFT: recipe.line(shift)}


def _statistics(recipe: Recipe) -> dict[int, Slot]:
    return {binding.MEAN: recipe.line(3), binding.VARIANCE: recipe.line(4)}
