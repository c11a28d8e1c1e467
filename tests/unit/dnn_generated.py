"""Hypothesis strategies that make calls of DNN operations, of any shapes, options and memory layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import array_api_compat.numpy as xp
import numpy as np
from hypothesis import strategies as st

import tazza as tz
from tazza.dnn import Dnn, ReferenceDnn
from tazza.dnn.operations import OPERATIONS
from tests.unit.dnn_cases import Array, draw_array

__all__ = ["LAYOUTS", "Call", "calls", "compare", "laid_out"]

_REFERENCE = ReferenceDnn(xp)
_SMALL = st.integers(1, 4)
_FUSED = st.sampled_from([None, "relu", "sigmoid", "tanh"])
_KINDS = st.sampled_from(["relu", "sigmoid", "tanh", "gelu", "silu"])

LAYOUTS = ("rows", "channels last", "columns", "gaps", "backwards", "inside")


class Call(NamedTuple):
    """A call of an operation: its inputs, float64 or integers or bool, in some layouts, and its options."""

    name: str
    arrays: dict[str, Array | None]
    options: dict[str, Any]
    layouts: tuple[str, ...]

    def of(self, dnn: Dnn, dtype: str, convert: Callable[[Array], Any] = lambda array: array) -> list[Any]:
        """Do it with an implementation, floats being `dtype`, each array converted; returns the outputs."""
        given: dict[str, Any] = {}
        for (name, array), layout in zip(self.arrays.items(), self.layouts, strict=True):
            if array is not None:
                typed = np.asarray(array.astype(dtype) if array.dtype.kind == "f" else array)
                given[name] = convert(laid_out(typed, layout))
        if self.name == "dropout":  # which draws the mask itself
            given["random"] = tz.Generator(5)
        found = getattr(dnn, self.name.replace(".", "_"))(**given, **self.options)
        return list(found) if isinstance(found, tuple) else [found]


def laid_out(array: Array, layout: str) -> Array:
    """The same values in another memory layout; where it makes no sense for the array, in row-major order."""
    if array.ndim == 0:
        return array
    if layout == "channels last" and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if layout == "columns":
        return np.asfortranarray(array)
    if layout == "gaps":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "backwards":
        return np.ascontiguousarray(array[::-1])[::-1]
    if layout == "inside":
        inner = np.pad(array, 1)
        return inner[(slice(1, -1),) * array.ndim]
    return np.ascontiguousarray(array)


@st.composite
def calls(draw: st.DrawFn, names: tuple[str, ...] = tuple(OPERATIONS), layouts: tuple[str, ...] = LAYOUTS) -> Call:
    """A call of one of these operations."""
    name = draw(st.sampled_from(names))
    forward, _, backward = name.partition(".")
    make = _MAKERS[forward]
    arrays, options = make(draw, draw(st.integers(0, 2**16)), bool(backward))
    inputs = ("x",) if name == "dropout" else OPERATIONS[name].inputs
    ordered = {one: arrays.get(one) for one in inputs}
    return Call(name, ordered, options, tuple(draw(st.sampled_from(layouts)) for _ in ordered))


Made = tuple[dict[str, Array | None], dict[str, Any]]


def _with_gradient(made: Made, backward: bool, seed: int, forward: Callable[..., Any]) -> Made:
    """Add `dy` and what the forward call returned, for a backward call."""
    arrays, options = made
    if not backward:
        return made
    found = forward(**{name: one for name, one in arrays.items() if one is not None}, **options)
    y, *others = found if isinstance(found, tuple) else (found,)
    arrays |= {"y": y, "dy": draw_array(seed + 9, *y.shape)}
    if others:
        arrays |= {"mean": others[0], "variance": others[1]}
    return made


def _conv2d(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    groups = draw(st.integers(1, 2))
    inner, outer = groups * draw(_SMALL), groups * draw(_SMALL)
    size, dilation, padding = (draw(st.tuples(st.integers(low, high), st.integers(low, high))) for low, high in _BOUNDS)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(size, dilation, padding, strict=True)]
    image = [one + draw(st.integers(0, 4)) for one in least]
    options = {
        "stride": draw(st.integers(1, 3)),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "activation": draw(_FUSED),
    }
    arrays: dict[str, Array | None] = {
        "x": draw_array(seed, draw(_SMALL), inner, *image),
        "w": draw_array(seed + 1, outer, inner // groups, *size),
        "bias": draw_array(seed + 2, outer) if draw(st.booleans()) else None,
    }
    return _with_gradient((arrays, options), backward, seed, _REFERENCE.conv2d)


_BOUNDS = (1, 3), (1, 2), (0, 2)


def _linear(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    rows, inner, outer = draw(_SMALL), draw(_SMALL), draw(_SMALL)
    arrays: dict[str, Array | None] = {
        "x": draw_array(seed, rows, inner),
        "w": draw_array(seed + 1, outer, inner),
        "bias": draw_array(seed + 2, outer) if draw(st.booleans()) else None,
    }
    return _with_gradient((arrays, {"activation": draw(_FUSED)}), backward, seed, _REFERENCE.linear)


def _matmul(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    stack = draw(st.lists(_SMALL, max_size=2))
    rows, inner, columns = draw(_SMALL), draw(_SMALL), draw(_SMALL)
    other = stack if backward or draw(st.booleans()) else [1 for _ in stack]
    arrays: dict[str, Array | None] = {
        "a": draw_array(seed, *stack, rows, inner),
        "b": draw_array(seed + 1, *other, inner, columns),
        "bias": draw_array(seed + 2, columns) if draw(st.booleans()) else None,
    }
    return _with_gradient((arrays, {"activation": draw(_FUSED)}), backward, seed, _REFERENCE.matmul)


def _activate(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    arrays: dict[str, Array | None] = {"x": 3 * draw_array(seed, *draw(st.lists(_SMALL, max_size=4)))}
    return _with_gradient((arrays, {"kind": draw(_KINDS)}), backward, seed, _REFERENCE.activate)


def _pool(draw: st.DrawFn, seed: int) -> Made:
    window = draw(st.tuples(_SMALL, _SMALL))
    image = [one + draw(st.integers(0, 4)) for one in window]
    options = {
        "window": window,
        "stride": draw(st.none() | st.integers(1, 3)),
        "padding": tuple(draw(st.integers(0, one // 2)) for one in window),
    }
    x = draw_array(seed, draw(_SMALL), draw(_SMALL), *image)
    return {"x": np.round(x, 1)}, options  # with ties


def _max_pool2d(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    return _with_gradient(_pool(draw, seed), backward, seed, _REFERENCE.max_pool2d)


def _avg_pool2d(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    arrays, options = _pool(draw, seed)
    options["count_padding"] = draw(st.booleans())
    return _with_gradient((arrays, options), backward, seed, _REFERENCE.avg_pool2d)


def _batch(draw: st.DrawFn, seed: int) -> Made:
    channels = draw(_SMALL)
    shape = (draw(st.integers(3, 5)), channels, *draw(st.just([]) | st.lists(_SMALL, min_size=2, max_size=2)))
    arrays: dict[str, Array | None] = {"x": 1 + draw_array(seed, *shape)}
    arrays |= {name: draw_array(seed + n, channels) for n, name in enumerate(("gamma", "beta"), 1)}
    return arrays, {"epsilon": draw(st.sampled_from([1e-3, 0.1]))}


def _batch_norm(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    return _with_gradient(_batch(draw, seed), backward, seed, _REFERENCE.batch_norm)


def _batch_norm_inference(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    arrays, options = _batch(draw, seed)
    gamma = arrays["gamma"]
    assert gamma is not None
    arrays |= {"mean": draw_array(seed + 3, *gamma.shape), "variance": 0.5 + draw_array(seed + 4, *gamma.shape) ** 2}
    return _with_gradient((arrays, options), backward, seed, _REFERENCE.batch_norm_inference)


def _layer_norm(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    before, after = draw(st.lists(_SMALL, max_size=2)), draw(st.lists(st.integers(2, 5), min_size=1, max_size=2))
    arrays: dict[str, Array | None] = {"x": 1 + draw_array(seed, *before, *after)}
    arrays |= {name: draw_array(seed + n, *after) for n, name in enumerate(("gamma", "beta"), 1)}
    options = {"epsilon": draw(st.sampled_from([1e-3, 0.1]))}
    return _with_gradient((arrays, options), backward, seed, _REFERENCE.layer_norm)


def _dropout(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    shape = draw(st.lists(_SMALL, max_size=4))
    mask = np.asarray(np.random.default_rng(seed).random(shape) < 0.5)
    arrays: dict[str, Array | None] = {"x": draw_array(seed, *shape), "dy": draw_array(seed + 1, *shape), "mask": mask}
    return arrays, {"rate": draw(st.sampled_from([0.0, 0.25, 0.9]))}


def _softmax(draw: st.DrawFn, seed: int, backward: bool) -> Made:
    arrays: dict[str, Array | None] = {"x": 3 * draw_array(seed, *draw(st.lists(_SMALL, min_size=1, max_size=3)))}
    return _with_gradient((arrays, {}), backward, seed, _REFERENCE.softmax)


def _softmax_cross_entropy(draw: st.DrawFn, seed: int, _: bool) -> Made:
    rows, classes = draw(_SMALL), draw(_SMALL)
    labels = np.random.default_rng(seed).integers(0, classes, rows, dtype=draw(st.sampled_from(["int32", "int64"])))
    arrays: dict[str, Array | None] = {"logits": 3 * draw_array(seed, rows, classes), "labels": labels}
    return arrays, {"reduction": draw(st.sampled_from(["mean", "sum"]))}


_MAKERS: dict[str, Callable[[st.DrawFn, int, bool], Made]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "matmul": _matmul,
    "activate": _activate,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "batch_norm_inference": _batch_norm_inference,
    "layer_norm": _layer_norm,
    "dropout": _dropout,
    "softmax": _softmax,
    "softmax_cross_entropy": _softmax_cross_entropy,
}

TOLERANCE = {"float32": 2e-4, "float64": 1e-11}
"""Of an output's largest element, and 1: sums of up to some hundred products, and normalisation by small variances."""


def compare(call: Call, dnn: Dnn, dtype: str, convert: Callable[[Array], Any] = lambda array: array) -> None:
    """Hold a call by some implementation against the reference in float64 on arrays in row-major order."""
    plain = call._replace(layouts=("rows",) * len(call.layouts))
    if dtype == "float32":  # what float32 arguments are, so that ties and masks stay
        rounded = {
            name: one.astype("float32").astype("float64") if one is not None and one.dtype.kind == "f" else one
            for name, one in plain.arrays.items()
        }
        plain = plain._replace(arrays=rounded)
    for number, (one, expected) in enumerate(
        zip(call.of(dnn, dtype, convert), plain.of(_REFERENCE, "float64"), strict=True)
    ):
        found = np.asarray(one)
        assert found.shape == expected.shape
        assert found.dtype == (dtype if expected.dtype == "float64" else expected.dtype)
        least = TOLERANCE[dtype] * max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype], atol=least, err_msg=f"output {number}")
