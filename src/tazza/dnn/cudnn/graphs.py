"""From an `Operation` to the graph that the planner's process builds: tensors, calls of the front end, outputs.

A graph is plain data, so that the process needs nothing of this package. Each array of it has a number, its place
among the operation's inputs and outputs, from 1: what executes a plan names arrays by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tazza.dnn.checks import Window
from tazza.dnn.library import Layout, Operation
from tazza.errors import ArgumentError, UnsupportedError

__all__ = ["DTYPES", "OPERATIONS", "Graph", "graph_of"]

Graph = dict[str, Any]

DTYPES = ("float16", "bfloat16", "float32")

# Names of inputs and outputs, those that may be None with a question mark.
OPERATIONS: dict[str, tuple[str, str, str]] = {
    "conv2d": ("x w bias?", "y", "stride padding dilation groups activation"),
    "conv2d.backward": ("dy x w y?", "dx? dw? dbias?", "stride padding dilation groups activation"),
    "linear": ("x w bias?", "y", "activation"),
    "linear.backward": ("dy x w y?", "dx? dw? dbias?", "activation"),
    "matmul": ("a b", "y", ""),
    "matmul.backward": ("dy a b", "da? db?", ""),
    "attention": ("q k v", "y stats?", "causal scale"),
    "attention.backward": ("dy q k v y stats", "dq dk dv", "causal scale"),
}


class _Drawing:
    """A graph as it grows."""

    def __init__(self, io: str, names: list[str]) -> None:
        self.graph: Graph = {"io": io, "tensors": {}, "nodes": [], "outputs": {}}
        self._numbers = {name: number for number, name in enumerate(names, 1)}

    def tensor(self, name: str, layout: Layout) -> str:
        self.graph["tensors"][name] = {"uid": self._numbers[name], **_written(layout)}
        return name

    def call(self, function: str, inputs: dict[str, str], *made: str, **options: Any) -> str:
        """Add a node; returns the name of the first of what it makes."""
        self.graph["nodes"].append({"call": function, "inputs": inputs, "options": options, "made": made})
        return made[0]

    def output(self, made: str, name: str, layout: Layout) -> None:
        """Have what a node makes be an output of the operation."""
        self.graph["outputs"][made] = {"uid": self._numbers[name], **_written(layout)}

    def epilogue(self, y: str, bias: Layout | None, activation: str | None) -> str:
        if bias is not None:
            y = self.call("bias", {"input": y, "bias": self.tensor("bias", bias)}, "biased")
        return y if activation is None else self.call("relu", {"input": y}, "active")

    def upstream(self, dy: Layout, y: Layout | None, activation: str | None) -> str:
        """What comes back from above, through the activation."""
        name = self.tensor("dy", dy)
        if activation is None:
            return name
        if y is None:
            raise ArgumentError.of("y", y, "the layout of the forward result, as there was an activation")
        _expect("y", y, dy.shape)
        return self.call("relu_backward", {"loss": name, "input": self.tensor("y", y)}, "through")


def graph_of(operation: Operation) -> Graph:
    """Return the graph of an operation that makes sense.

    Raises:
        ArgumentError: its parts have wrong names, counts, dtypes, shapes or strides; names the part.
        UnsupportedError: cuDNN's plans never do that.
    """
    if not isinstance(operation, Operation):
        raise ArgumentError.of("operation", operation, "an Operation, for example of tazza.dnn.cudnn.describe")
    if operation.name not in OPERATIONS:
        raise UnsupportedError(f"{operation.name}: planned are {', '.join(OPERATIONS)}")
    inputs, outputs, options = (names.split() for names in OPERATIONS[operation.name])
    given = _named("inputs", inputs, operation.inputs) | _named("outputs", outputs, operation.outputs)
    if len(operation.options) != len(options):
        raise ArgumentError.of("options", operation.options, f"{len(options)} of them: {', '.join(options) or 'none'}")
    kept = dict(zip(options, operation.options, strict=True))
    if kept.get("activation") not in (None, "relu"):
        raise ArgumentError.of("activation", kept["activation"], "None or 'relu'")
    io = _io(given, "stats")
    drawing = _Drawing(io, list(given))
    _DRAW[operation.name](drawing, given, kept)
    return drawing.graph


def _named(what: str, names: list[str], layouts: tuple[Layout | None, ...]) -> dict[str, Layout | None]:
    if not isinstance(layouts, tuple) or len(layouts) != len(names):
        raise ArgumentError.of(what, layouts, f"a tuple of {len(names)}: {', '.join(names)}")
    found: dict[str, Layout | None] = {}
    for name, layout in zip(names, layouts, strict=True):
        bare = name.rstrip("?")
        if layout is not None or bare == name:
            _check_layout(bare, layout)
        found[bare] = layout
    return found


def _check_layout(name: str, layout: object) -> None:
    if not isinstance(layout, Layout):
        raise ArgumentError.of(name, layout, "a Layout")
    for what, values in (("shape", layout.shape), ("strides", layout.strides)):
        if not isinstance(values, tuple) or not values or not all(type(n) is int and n >= 1 for n in values):
            raise ArgumentError.of(f"{name}.{what}", values, "positive integers, at least one")
    if len(layout.shape) != len(layout.strides):
        raise ArgumentError.of(f"{name}.strides", layout.strides, f"{len(layout.shape)} of them, as axes")
    if math.prod(layout.shape) >= 2**63 or max(layout.strides) >= 2**63:
        raise ArgumentError.of(f"{name}.shape", layout.shape, "fewer than 2**63 elements")


def _io(given: dict[str, Layout | None], sums: str) -> str:
    """The one dtype of all arrays but the sums of attention, which are float32."""
    layouts = {name: layout for name, layout in given.items() if layout is not None}
    first, io = next((name, layout.dtype) for name, layout in layouts.items())
    if io not in DTYPES:
        raise ArgumentError.of(f"{first}.dtype", io, " or ".join(DTYPES))
    for name, layout in layouts.items():
        wanted = "float32" if name == sums else io
        if layout.dtype != wanted:
            raise ArgumentError.of(f"{name}.dtype", layout.dtype, f"{wanted}, as {first} is {io}")
    return io


def _expect(name: str, layout: Layout, shape: tuple[int, ...]) -> None:
    if layout.shape != shape:
        raise ArgumentError.of(f"{name}.shape", layout.shape, f"{shape}, by the other arguments")


def _rank(name: str, layout: Layout, rank: int) -> None:
    if len(layout.shape) != rank:
        raise ArgumentError.of(f"{name}.shape", layout.shape, f"{rank} axes")


def _written(layout: Layout) -> dict[str, Any]:
    return {"dtype": layout.dtype, "shape": list(layout.shape), "strides": list(layout.strides)}


def _one_of(given: dict[str, Layout | None], *names: str) -> str:
    """The only gradient that is wanted."""
    wanted = [name for name in names if given[name] is not None]
    if len(wanted) != 1:
        raise ArgumentError.of("outputs", wanted, f"one of {', '.join(names)}: a plan computes one gradient")
    if wanted == ["dbias"]:
        raise UnsupportedError("dbias: cuDNN has no plan for the sum over images; compute it as an array operation")
    return wanted[0]


# Convolutions.


def _window(given: dict[str, Any], options: dict[str, Any], y: str) -> dict[str, Any]:
    """Check a convolution's arguments; returns the front end's options."""
    x, w = given["x"], given["w"]
    _rank("x", x, 4)
    _rank("w", w, 4)
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = options[name]
        if not isinstance(value, tuple) or len(value) != 2 or not all(type(n) is int and n >= least for n in value):
            raise ArgumentError.of(name, value, f"a pair (height, width) of integers of {least} or more")
    groups = options["groups"]
    if type(groups) is not int or groups < 1 or x.shape[1] % groups or w.shape[0] % groups:
        raise ArgumentError.of("groups", groups, f"a divisor of {x.shape[1]} channels and {w.shape[0]} filters")
    if w.shape[1] * groups != x.shape[1]:
        raise ArgumentError.of("w.shape", w.shape, f"{x.shape[1] // groups} channels in each filter")
    window = Window(w.shape[2:], options["stride"], options["padding"], options["dilation"])
    _expect(y, given[y], (x.shape[0], w.shape[0], *window.output(x.shape[2:])))
    return {name: list(options[name]) for name in ("padding", "stride", "dilation")}


def _conv2d(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    window = _window(given, options, "y")
    names = {"image": drawing.tensor("x", given["x"]), "weight": drawing.tensor("w", given["w"])}
    y = drawing.call("conv_fprop", names, "convolved", **window)
    bias = given["bias"]
    if bias is not None:
        count = given["w"].shape[0]
        _expect("bias", bias, (count,))
        bias = Layout(bias.dtype, (1, count, 1, 1), (count, 1, count, count))
    drawing.output(drawing.epilogue(y, bias, options["activation"]), "y", given["y"])


def _conv2d_backward(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    window = _window(given, options, "dy")
    wanted = _one_of(given, "dx", "dw", "dbias")
    dy = drawing.upstream(given["dy"], given["y"], options["activation"])
    if wanted == "dx":
        _expect("dx", given["dx"], given["x"].shape)
        made = drawing.call("conv_dgrad", {"loss": dy, "filter": drawing.tensor("w", given["w"])}, "dx", **window)
    else:
        _expect("dw", given["dw"], given["w"].shape)
        made = drawing.call("conv_wgrad", {"image": drawing.tensor("x", given["x"]), "loss": dy}, "dw", **window)
    drawing.output(made, wanted, given[wanted])


# Products of matrices. cuDNN wants a leading axis; a transposed matrix is one with its strides exchanged.


def _stack(layout: Layout, *, transposed: bool = False) -> Layout:
    shape, strides = layout.shape, layout.strides
    if len(shape) == 2:
        step = max(extent * stride for extent, stride in zip(shape, strides, strict=True))
        shape, strides = (1, *shape), (step, *strides)
    if transposed:
        shape, strides = (*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2])
    return Layout(layout.dtype, shape, strides)


def _product(drawing: _Drawing, a: str, b: str) -> str:
    return drawing.call("matmul", {"A": a, "B": b}, "product")


def _check_linear(given: dict[str, Any], y: str) -> None:
    x, w = given["x"], given["w"]
    _rank("x", x, 2)
    _rank("w", w, 2)
    _expect("w", w, (w.shape[0], x.shape[1]))
    _expect(y, given[y], (x.shape[0], w.shape[0]))


def _linear(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    _check_linear(given, "y")
    x = drawing.tensor("x", _stack(given["x"]))
    y = _product(drawing, x, drawing.tensor("w", _stack(given["w"], transposed=True)))
    bias = given["bias"]
    if bias is not None:
        count = given["w"].shape[0]
        _expect("bias", bias, (count,))
        bias = Layout(bias.dtype, (1, 1, count), (count, count, 1))
    drawing.output(drawing.epilogue(y, bias, options["activation"]), "y", _stack(given["y"]))


def _linear_backward(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    _check_linear(given, "dy")
    wanted = _one_of(given, "dx", "dw", "dbias")
    _expect(wanted, given[wanted], given[wanted[1:]].shape)
    y = None if given["y"] is None else _stack(given["y"])
    if wanted == "dx":
        dy = drawing.upstream(_stack(given["dy"]), y, options["activation"])
        made = _product(drawing, dy, drawing.tensor("w", _stack(given["w"])))
    else:
        y = None if given["y"] is None else _stack(given["y"], transposed=True)
        dy = drawing.upstream(_stack(given["dy"], transposed=True), y, options["activation"])
        made = _product(drawing, dy, drawing.tensor("x", _stack(given["x"])))
    drawing.output(made, wanted, _stack(given[wanted]))


def _check_matmul(given: dict[str, Any], y: str) -> None:
    a, b = given["a"], given["b"]
    if len(a.shape) < 2:
        raise ArgumentError.of("a.shape", a.shape, "a matrix or a stack of matrices")
    _rank("b", b, len(a.shape))
    _expect("b", b, (*a.shape[:-2], a.shape[-1], b.shape[-1]))
    _expect(y, given[y], (*a.shape[:-1], b.shape[-1]))


def _matmul(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    _check_matmul(given, "y")
    y = _product(drawing, drawing.tensor("a", _stack(given["a"])), drawing.tensor("b", _stack(given["b"])))
    drawing.output(y, "y", _stack(given["y"]))


def _matmul_backward(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    _check_matmul(given, "dy")
    wanted = _one_of(given, "da", "db")
    _expect(wanted, given[wanted], given[wanted[1:]].shape)
    dy = drawing.tensor("dy", _stack(given["dy"]))
    if wanted == "da":
        made = _product(drawing, dy, drawing.tensor("b", _stack(given["b"], transposed=True)))
    else:
        made = _product(drawing, drawing.tensor("a", _stack(given["a"], transposed=True)), dy)
    drawing.output(made, wanted, _stack(given[wanted]))


# Attention.


def _check_attention(given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    q, k, v = given["q"], given["k"], given["v"]
    for name, layout in (("q", q), ("k", k), ("v", v)):
        _rank(name, layout, 4)
    _expect("k", k, (q.shape[0], k.shape[1], k.shape[2], q.shape[3]))
    _expect("v", v, (*k.shape[:3], v.shape[3]))
    if q.shape[1] % k.shape[1]:
        raise ArgumentError.of("q.shape", q.shape, f"a multiple of the {k.shape[1]} heads of k")
    _expect("y", given["y"], (*q.shape[:3], v.shape[3]))
    if given["stats"] is not None:
        _expect("stats", given["stats"], (*q.shape[:3], 1))
    causal, scale = options["causal"], options["scale"]
    if type(causal) is not bool:
        raise ArgumentError.of("causal", causal, "True or False")
    if scale is not None and (type(scale) not in (int, float) or not math.isfinite(scale)):
        raise ArgumentError.of("scale", scale, "a finite number, or None for width ** -0.5")
    return {"attn_scale": q.shape[3] ** -0.5 if scale is None else float(scale), "use_causal_mask": causal}


def _attention(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    kept = _check_attention(given, options)
    names = {name: drawing.tensor(name, given[name]) for name in ("q", "k", "v")}
    drawing.call("sdpa", names, "y", "stats", generate_stats=given["stats"] is not None, **kept)
    for name in ("y", "stats"):
        if given[name] is not None:
            drawing.output(name, name, given[name])


def _attention_backward(drawing: _Drawing, given: dict[str, Any], options: dict[str, Any]) -> None:
    kept = _check_attention(given, options)
    _expect("dy", given["dy"], given["y"].shape)
    parts = {"q": "q", "k": "k", "v": "v", "o": "y", "dO": "dy", "stats": "stats"}
    names = {part: drawing.tensor(name, given[name]) for part, name in parts.items()}
    drawing.call("sdpa_backward", names, "dq", "dk", "dv", **kept)
    for name in ("dq", "dk", "dv"):
        _expect(name, given[name], given[name[1:]].shape)
        drawing.output(name, name, given[name])


_DRAW: dict[str, Callable[[_Drawing, dict[str, Any], dict[str, Any]], None]] = {
    "conv2d": _conv2d,
    "conv2d.backward": _conv2d_backward,
    "linear": _linear,
    "linear.backward": _linear_backward,
    "matmul": _matmul,
    "matmul.backward": _matmul_backward,
    "attention": _attention,
    "attention.backward": _attention_backward,
}
