"""Convolutions, forward and backward."""

from __future__ import annotations

from typing import Any, Final

from tazza.dnn.library import Layout, Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.binding import dims
from tazza.dnn.onednn.elementwise import activate_in_place, before_activation
from tazza.dnn.onednn.recipe import LAST, Recipe, Slot, Strategy, dense, grouped

__all__ = ["conv2d", "conv2d_backward", "strategies"]

_BLOCK: Final = 8
_PIXELS: Final = 64
_PRODUCT: Final = "x64:gemm"
"""Convolutions as matrix products, on AVX2 with one plain loop for all that is fused: four to ten times the time."""


def strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do it, best first.

    Measured on AVX2 with one thread: images with channels innermost are best left so. Else turning them pays for itself
    (0.2 to 0.75 of the time of the library's plain NCHW), forward to channels innermost; backward to the library's
    blocks, except for a few channels, which do not fill one. Filters of 1 x 1 are matrix products, for which plain NCHW
    is as good, and turning costs 0.1 to 1.2 of the time more; except for few pixels, fewer than `_PIXELS`.
    """
    backward = operation.name.endswith("backward")
    x = operation.inputs[1 if backward else 0]
    assert x is not None
    if _is_last(x):
        order = ("given", "any", "last")
    elif backward and x.shape[1] >= _BLOCK:
        order = ("any", "last", "given")
    elif not backward and _is_pointwise(operation) and _pixels(operation) >= _PIXELS:
        order = ("given", "last", "any")
    else:
        order = ("last", "any", "given")
    return *(Strategy(one) for one in order), *(Strategy(one, 1) for one in order), Strategy("bare")


def conv2d(recipe: Recipe) -> None:
    """Add the steps of ``conv2d``."""
    _, _, _, groups, activation = recipe.operation.options
    w, y = _filters(recipe, 1, groups), recipe.array(3)
    bias = None if recipe.operation.inputs[2] is None else recipe.line(2)
    x, wanted, windows = _sampled(recipe) or (recipe.array(0), _image(recipe, 0), _windows(recipe))
    asked = [
        "dnnl_convolution_forward_primitive_desc_create",
        binding.FORWARD_INFERENCE,
        binding.DIRECT,
        wanted,
        _free(recipe, 1, groups),
        None if bias is None else bias.layout,
        _image(recipe, 3),
        *windows,
    ]
    descriptor, after = recipe.choose(*asked, recipe.attributes(activation)), None
    if activation is not None and recipe.dnnl.name(descriptor).startswith(_PRODUCT):
        descriptor, after = recipe.choose(*asked, recipe.attributes()), activation
    arguments = {
        binding.SRC: recipe.into(x, recipe.layout(descriptor, binding.SRC)),
        binding.WEIGHTS: recipe.weights(1, w, recipe.layout(descriptor, binding.WEIGHTS)),
    }
    if bias is not None:
        arguments[binding.BIAS] = bias

    def fill(slot: Slot) -> None:
        recipe.add(descriptor, {**arguments, binding.DST: slot})
        if after is not None:
            activate_in_place(recipe, after, slot)

    recipe.onto(recipe.layout(descriptor, binding.DST), y, fill)


def conv2d_backward(recipe: Recipe) -> None:
    """Add the steps of ``conv2d.backward``."""
    _, _, _, groups, activation = recipe.operation.options
    x, w, dw, dbias = recipe.array(1), _filters(recipe, 2, groups), _filters(recipe, 5, groups), recipe.array(6)
    dy = recipe.array(0)
    if activation is not None:
        dy = before_activation(recipe, activation, dy, recipe.array(3))
    windows = _windows(recipe)
    hint = recipe.choose(
        "dnnl_convolution_forward_primitive_desc_create",
        binding.FORWARD_TRAINING,
        binding.DIRECT,
        _image(recipe, 1),
        _free(recipe, 2, groups),
        None,
        _image(recipe, 0),
        *windows,
        recipe.attributes(),
        skip=0,
    )
    weights = recipe.choose(
        "dnnl_convolution_backward_weights_primitive_desc_create",
        binding.DIRECT,
        _image(recipe, 1),
        _free(recipe, 2, groups),
        dbias.layout,
        _image(recipe, 0),
        *windows,
        hint,
        recipe.attributes(),
    )
    upstream = recipe.into(dy, recipe.layout(weights, binding.DIFF_DST))
    source = recipe.into(x, recipe.layout(weights, binding.SRC))
    recipe.onto(
        recipe.layout(weights, binding.DIFF_WEIGHTS),
        dw,
        lambda slot: recipe.add(
            weights,
            {
                binding.SRC: source,
                binding.DIFF_DST: upstream,
                binding.DIFF_WEIGHTS: slot,
                binding.DIFF_BIAS: dbias,
            },
        ),
    )
    if recipe.operation.outputs[0] is not None:
        _data(recipe, (dy, upstream), w, groups, (*windows, hint))


def _data(recipe: Recipe, upstreams: tuple[Slot, Slot], w: Slot, groups: int, rest: tuple[Any, ...]) -> None:
    data = recipe.choose(
        "dnnl_convolution_backward_data_primitive_desc_create",
        binding.DIRECT,
        _image(recipe, 4),
        _free(recipe, 2, groups),
        _image(recipe, 0),
        *rest,
        recipe.attributes(),
    )
    wanted = recipe.layout(data, binding.DIFF_DST)
    upstream = next((one for one in upstreams if recipe.dnnl.equal(one.layout, wanted)), None)
    arguments = {
        binding.DIFF_DST: recipe.into(upstreams[0], wanted) if upstream is None else upstream,
        binding.WEIGHTS: recipe.weights(2, w, recipe.layout(data, binding.WEIGHTS)),
    }
    recipe.onto(
        recipe.layout(data, binding.DIFF_SRC),
        recipe.array(4),
        lambda slot: recipe.add(data, {**arguments, binding.DIFF_SRC: slot}),
    )


def _sampled(recipe: Recipe) -> tuple[Slot, int, tuple[Any, ...]] | None:
    """The images without the pixels that filters of 1 x 1 step over, the layout to ask for, and a window that does not.

    They have to be copied for that, which where images are turned anyway is less to turn. None where it does not apply:
    also where sizes are no multiples of the strides, as the library then takes rows or channels to overlap.
    """
    given, ((down, right), *_) = recipe.given(0), recipe.operation.options
    if down * right == 1 or _is_last(given) or not _is_pointwise(recipe.operation):
        return None
    if given.shape[2] % down or given.shape[3] % right:
        return None
    shape = (*given.shape[:2], *recipe.given(3).shape[2:])
    strides = (*given.strides[:2], given.strides[2] * down, given.strides[3] * right)
    if recipe.strategy.layout == "any":
        wanted = recipe.free_choice(given.dtype, shape)
    else:
        wanted = recipe.strided(given.dtype, shape, dense(shape, LAST if recipe.strategy.layout == "last" else None))
    return recipe.array(0, shape, strides), wanted, (dims((1, 1)), dims((0, 0)), dims((0, 0)), dims((0, 0)))


def _image(recipe: Recipe, number: int) -> int:
    """The layout to ask for, for an array of images."""
    given = recipe.given(number)
    if recipe.strategy.layout == "any":
        return recipe.free_choice(given.dtype, given.shape)
    if recipe.strategy.layout == "last":
        return recipe.strided(given.dtype, given.shape, dense(given.shape, LAST))
    return recipe.strided(given.dtype, given.shape, given.strides)


def _filters(recipe: Recipe, number: int, groups: int) -> Slot:
    """Filters as they lie, with an axis of their own for groups."""
    given = recipe.given(number)
    shape = _grouped(given, groups)
    return recipe.array(number, shape, grouped(given, shape))


def _free(recipe: Recipe, number: int, groups: int) -> int:
    given = recipe.given(number)
    shape = _grouped(given, groups)
    if recipe.strategy.layout == "bare":
        return recipe.strided(given.dtype, shape, grouped(given, shape))
    return recipe.free_choice(given.dtype, shape)


def _grouped(given: Layout, groups: int) -> tuple[int, ...]:
    filters, *rest = given.shape
    return given.shape if groups == 1 else (groups, filters // groups, *rest)


def _windows(recipe: Recipe) -> tuple[Any, ...]:
    stride, padding, dilation, _, _ = recipe.operation.options
    return dims(stride), dims([one - 1 for one in dilation]), dims(padding), dims(padding)


def _is_pointwise(operation: Operation) -> bool:
    """Tell whether each pixel of a forward convolution's result comes of one pixel."""
    w, (_, padding, *_) = operation.inputs[1], operation.options
    return w is not None and w.shape[2:] == (1, 1) and padding == (0, 0)


def _pixels(operation: Operation) -> int:
    y = operation.outputs[0]
    assert y is not None, "a forward convolution has a result"
    return y.shape[2] * y.shape[3]


def _is_last(layout: Layout) -> bool:
    return layout.strides[1] == 1 and layout.shape[1] > 1 and layout.strides != dense(layout.shape)
