"""Dense layers and matrix products, forward and backward."""

from __future__ import annotations

from tazza.dnn.library import Layout, Operation
from tazza.dnn.onednn import binding
from tazza.dnn.onednn.elementwise import before_activation
from tazza.dnn.onednn.recipe import Recipe, Slot, Strategy, dense

__all__ = ["linear", "linear_backward", "linear_strategies", "matmul", "matmul_backward", "matmul_strategies"]


def linear_strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do ``linear`` and its backward, best first."""
    return Strategy("given"), Strategy("any"), Strategy("given", 1), Strategy("bare")


def matmul_strategies(operation: Operation) -> tuple[Strategy, ...]:
    """Ways to do ``matmul`` and its backward, best first: matrices with gaps or turned axes are copied if need be."""
    return Strategy("given"), Strategy("dense"), Strategy("any"), Strategy("given", 1), Strategy("dense", 1)


def linear(recipe: Recipe) -> None:
    """Add the steps of ``linear``."""
    x, w, y = recipe.array(0), recipe.array(1), recipe.array(3)
    bias = None if recipe.operation.inputs[2] is None else recipe.line(2)
    descriptor = recipe.choose(
        "dnnl_inner_product_forward_primitive_desc_create",
        binding.FORWARD_INFERENCE,
        _wanted(recipe, 0),
        _free(recipe, 1),
        None if bias is None else bias.layout,
        _wanted(recipe, 3),
        recipe.attributes(recipe.operation.options[0]),
    )
    arguments = {
        binding.SRC: recipe.into(x, recipe.layout(descriptor, binding.SRC)),
        binding.WEIGHTS: recipe.weights(1, w, recipe.layout(descriptor, binding.WEIGHTS)),
    }
    if bias is not None:
        arguments[binding.BIAS] = bias
    recipe.onto(
        recipe.layout(descriptor, binding.DST),
        y,
        lambda slot: recipe.add(descriptor, {**arguments, binding.DST: slot}),
    )


def linear_backward(recipe: Recipe) -> None:
    """Add the steps of ``linear.backward``."""
    dy, x, dw, dbias = recipe.array(0), recipe.array(1), recipe.array(5), recipe.array(6)
    [activation] = recipe.operation.options
    if activation is not None:
        dy = before_activation(recipe, activation, dy, recipe.array(3))
    hint = recipe.choose(
        "dnnl_inner_product_forward_primitive_desc_create",
        binding.FORWARD_TRAINING,
        _wanted(recipe, 1),
        _free(recipe, 2),
        None,
        _wanted(recipe, 0),
        recipe.attributes(),
        skip=0,
    )
    weights = recipe.choose(
        "dnnl_inner_product_backward_weights_primitive_desc_create",
        _wanted(recipe, 1),
        _free(recipe, 2),
        dbias.layout,
        _wanted(recipe, 0),
        hint,
        recipe.attributes(),
    )
    arguments = {
        binding.SRC: recipe.into(x, recipe.layout(weights, binding.SRC)),
        binding.DIFF_DST: recipe.into(dy, recipe.layout(weights, binding.DIFF_DST)),
        binding.DIFF_BIAS: dbias,
    }
    recipe.onto(
        recipe.layout(weights, binding.DIFF_WEIGHTS),
        dw,
        lambda slot: recipe.add(weights, {**arguments, binding.DIFF_WEIGHTS: slot}),
    )
    if recipe.operation.outputs[0] is not None:
        _linear_data(recipe, dy, hint)


def _linear_data(recipe: Recipe, dy: Slot, hint: int) -> None:
    data = recipe.choose(
        "dnnl_inner_product_backward_data_primitive_desc_create",
        _wanted(recipe, 4),
        _free(recipe, 2),
        _wanted(recipe, 0),
        hint,
        recipe.attributes(),
    )
    arguments = {
        binding.DIFF_DST: recipe.into(dy, recipe.layout(data, binding.DIFF_DST)),
        binding.WEIGHTS: recipe.weights(2, recipe.array(2), recipe.layout(data, binding.WEIGHTS)),
    }
    recipe.onto(
        recipe.layout(data, binding.DIFF_SRC),
        recipe.array(4),
        lambda slot: recipe.add(data, {**arguments, binding.DIFF_SRC: slot}),
    )


def matmul(recipe: Recipe) -> None:
    """Add the steps of ``matmul``: leading axes broadcast, bias and activation are fused."""
    y = recipe.given(3)
    count = len(y.shape)
    bias = None
    if recipe.operation.inputs[2] is not None:
        row = *(1,) * (count - 1), y.shape[-1]
        bias = recipe.line(2)._replace(layout=recipe.strided(y.dtype, row, dense(row)))
    a, b = _matrices(recipe, 0, count), _matrices(recipe, 1, count)
    _product(recipe, a, b, recipe.array(3), bias, recipe.operation.options[0])


def matmul_backward(recipe: Recipe) -> None:
    """Add the steps of ``matmul.backward``."""
    given = recipe.given(0)
    count, columns = len(given.shape), given.shape[-1]
    dy = recipe.array(0)
    [activation] = recipe.operation.options
    if activation is not None:
        dy = before_activation(recipe, activation, dy, recipe.array(3))
    _product(recipe, dy, _matrices(recipe, 2, count, turned=True), recipe.array(4))
    _product(recipe, _matrices(recipe, 1, count, turned=True), dy, recipe.array(5))
    row = *(1,) * (count - 1), columns
    dbias = recipe.array(6, row, dense(row))
    if given.shape == row:
        recipe.copy(dy, dbias)
        return
    descriptor = recipe.choose(
        "dnnl_reduction_primitive_desc_create",
        binding.SUM,
        dy.layout,
        dbias.layout,
        0.0,
        0.0,
        recipe.attributes(),
        skip=0,
    )
    # The library has plain loops alone for this; next to two products they do not matter.
    recipe.add(descriptor, {binding.SRC: dy, binding.DST: dbias}, names=False)


def _product(
    recipe: Recipe, a: Slot, b: Slot, y: Slot, bias: Slot | None = None, activation: str | None = None
) -> None:
    descriptor = recipe.choose(
        "dnnl_matmul_primitive_desc_create",
        _asked(recipe, a),
        _asked(recipe, b),
        None if bias is None else bias.layout,
        y.layout,
        recipe.attributes(activation),
    )
    arguments = {
        binding.SRC: recipe.into(a, recipe.layout(descriptor, binding.SRC)),
        binding.WEIGHTS: recipe.into(b, recipe.layout(descriptor, binding.WEIGHTS)),
        binding.DST: y,
    }
    if bias is not None:
        arguments[binding.BIAS] = bias
    recipe.add(descriptor, arguments)


def _matrices(recipe: Recipe, number: int, count: int, *, turned: bool = False) -> Slot:
    """A stack of matrices with `count` axes, the last two exchanged where they are to be."""
    given = recipe.given(number)
    shape = [1] * (count - len(given.shape)) + list(given.shape)
    strides = [_span(given)] * (count - len(given.shape)) + list(given.strides)
    if turned:
        shape[-2:], strides[-2:] = shape[:-3:-1], strides[:-3:-1]
    return recipe.array(number, shape, strides)


def _asked(recipe: Recipe, slot: Slot) -> int:
    dtype = recipe.given(0).dtype
    if recipe.strategy.layout == "given":
        return slot.layout
    shape = recipe.dnnl.shape(slot.layout)
    if recipe.strategy.layout == "any":
        return recipe.free_choice(dtype, shape)
    return recipe.strided(dtype, shape, dense(shape))


def _wanted(recipe: Recipe, number: int) -> int:
    given = recipe.given(number)
    if recipe.strategy.layout == "any":
        return recipe.free_choice(given.dtype, given.shape)
    return recipe.strided(given.dtype, given.shape, dense(given.shape))


def _free(recipe: Recipe, number: int) -> int:
    given = recipe.given(number)
    if recipe.strategy.layout == "bare":
        return recipe.strided(given.dtype, given.shape, given.strides)
    return recipe.free_choice(given.dtype, given.shape)


def _span(layout: Layout) -> int:
    """A stride for a leading axis of one: it must not be taken for an overlap."""
    return max((extent * stride for extent, stride in zip(layout.shape, layout.strides, strict=True)), default=1)
