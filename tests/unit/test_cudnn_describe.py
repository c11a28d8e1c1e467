"""Operations for the planner: shapes follow from the arguments, and what makes no sense never reaches cuDNN."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any, cast

import pytest

from tazza.dnn.cudnn import describe, devices
from tazza.dnn.cudnn.describe import channels_last, contiguous
from tazza.dnn.cudnn.graphs import OPERATIONS, graph_of
from tazza.dnn.library import Layout, Operation
from tazza.errors import ArgumentError, UnsupportedError

X, W = channels_last("float16", 2, 8, 6, 6), channels_last("float16", 4, 8, 3, 3)
A, B = contiguous("float32", 5, 6), contiguous("float32", 6, 7)
M, N = contiguous("bfloat16", 3, 4), contiguous("bfloat16", 5, 4)
Q = contiguous("float16", 2, 4, 10, 16)
K = contiguous("float16", 2, 2, 12, 16)

ALL = {
    "conv2d": describe.conv2d(X, W, padding=1, bias=True, activation="relu"),
    "conv2d.backward": describe.conv2d_backward(X, W, of="w", padding=1),
    "linear": describe.linear(M, N, bias=True, activation="relu"),
    "linear.backward": describe.linear_backward(M, N, of="x"),
    "matmul": describe.matmul(A, B),
    "matmul.backward": describe.matmul_backward(A, B, of="b"),
    "attention": describe.attention(Q, K, K, causal=True),
    "attention.backward": describe.attention_backward(Q, K, K),
}


def calls(operation: Operation) -> list[str]:
    return [node["call"] for node in graph_of(operation)["nodes"]]


def test_every_operation_is_described_and_drawn() -> None:
    assert set(ALL) == set(OPERATIONS)
    assert {name: operation.name for name, operation in ALL.items()} == dict(zip(ALL, ALL, strict=True))
    rows = [line.split("|") for line in (describe.__doc__ or "").splitlines() if line.startswith("| ``")]
    same = {"the same": ""}
    for _, name, inputs, outputs, options, _ in rows:
        ours = OPERATIONS[name.strip().strip("`")]
        assert inputs.strip().replace(",", "") == ours[0]
        assert outputs.strip().replace(",", "") == ours[1]
        assert same.get(options.strip(), options.strip().replace(",", "")) in (ours[2], "")
    assert len(rows) == len(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        (ALL["conv2d"], ["conv_fprop", "bias", "relu"]),
        (describe.conv2d(X, W), ["conv_fprop"]),
        (describe.conv2d_backward(X, W, of="x"), ["conv_dgrad"]),
        (ALL["conv2d.backward"], ["conv_wgrad"]),
        (ALL["linear"], ["matmul", "bias", "relu"]),
        (describe.linear(M, N), ["matmul"]),
        (ALL["linear.backward"], ["matmul"]),
        (describe.linear_backward(M, N, of="w"), ["matmul"]),
        (ALL["matmul"], ["matmul"]),
        (describe.matmul_backward(A, B, of="a"), ["matmul"]),
        (ALL["attention"], ["sdpa"]),
        (ALL["attention.backward"], ["sdpa_backward"]),
    ],
)
def test_an_operation_becomes_these_calls(operation: Operation, expected: list[str]) -> None:
    assert calls(operation) == expected


def test_the_shapes_of_results_follow() -> None:
    assert describe.conv2d(X, W, stride=2, padding=1).outputs[0] == channels_last("float16", 2, 4, 3, 3)
    plain = describe.conv2d(contiguous("float16", 2, 8, 6, 6), W).outputs[0]
    assert plain == contiguous("float16", 2, 4, 4, 4)
    assert ALL["linear"].outputs[0] == contiguous("bfloat16", 3, 5)
    assert ALL["matmul"].outputs[0] == contiguous("float32", 5, 7)
    assert ALL["attention"].outputs == (Q, contiguous("float32", 2, 4, 10, 1))
    assert describe.attention(Q, K, K, stats=False).outputs[1] is None
    assert ALL["attention.backward"].outputs == (Q, K, K)


def test_products_are_stacked_and_transposed_by_strides() -> None:
    tensors = graph_of(ALL["linear"])["tensors"]
    assert tensors["x"] == {"uid": 1, "dtype": "bfloat16", "shape": [1, 3, 4], "strides": [12, 4, 1]}
    assert tensors["w"] == {"uid": 2, "dtype": "bfloat16", "shape": [1, 4, 5], "strides": [20, 1, 4]}
    assert tensors["bias"]["shape"] == [1, 1, 5]
    graph = graph_of(describe.linear_backward(M, N, of="w"))
    assert graph["tensors"]["dy"] == {"uid": 1, "dtype": "bfloat16", "shape": [1, 5, 3], "strides": [15, 1, 5]}
    assert graph["outputs"]["product"]["shape"] == [1, 5, 4]


def test_a_gradient_through_an_activation_asks_for_its_result() -> None:
    y = describe.conv2d(X, W).outputs[0]
    fused = describe.conv2d_backward(X, W, of="x")
    fused = fused._replace(options=(*fused.options[:4], "relu"))
    with pytest.raises(ArgumentError, match="^y: got None"):
        graph_of(fused)
    assert calls(fused._replace(inputs=(*fused.inputs[:3], y))) == ["relu_backward", "conv_dgrad"]
    dy = describe.linear(M, N).outputs[0]
    for of, names in (("x", ["relu_backward", "matmul"]), ("w", ["relu_backward", "matmul"])):
        product = describe.linear_backward(M, N, of=of)  # type: ignore[arg-type]
        assert calls(product._replace(inputs=(*product.inputs[:3], dy), options=("relu",))) == names


def test_attention_scales_by_its_width_unless_told() -> None:
    [node] = graph_of(ALL["attention"])["nodes"]
    assert node["options"] == {"attn_scale": 0.25, "use_causal_mask": True, "generate_stats": True}
    [node] = graph_of(describe.attention(Q, K, K, scale=2, stats=False))["nodes"]
    assert node["options"] == {"attn_scale": 2.0, "use_causal_mask": False, "generate_stats": False}
    assert "stats" not in graph_of(describe.attention(Q, K, K, stats=False))["outputs"]


def put(name: str, part: str, index: int, value: Any) -> Operation:
    """One of the operations with one of its parts replaced."""
    values = list(getattr(ALL[name], part))
    values[index] = value
    return ALL[name]._replace(**dict[str, Any]({part: tuple(values)}))


def lay(*shape: int, dtype: str = "float16") -> Layout:
    return contiguous(dtype, *shape)


BAD: list[tuple[Any, str]] = [
    ("conv2d", "operation: got 'conv2d'"),
    (ALL["conv2d"]._replace(inputs=cast(Any, [X, W, None])), "inputs: got"),
    (ALL["conv2d"]._replace(inputs=(X, W)), "inputs: got .*a tuple of 3: x, w, bias"),
    (ALL["conv2d"]._replace(outputs=()), "outputs: got"),
    (ALL["conv2d"]._replace(options=()), "options: got .*5 of them: stride, padding"),
    (ALL["matmul"]._replace(options=(1,)), "options: got .*none"),
    (put("conv2d", "inputs", 0, None), "x: got None"),
    (put("conv2d", "inputs", 0, "x"), "x: got 'x'"),
    (put("conv2d", "inputs", 0, X._replace(shape=(2, 8, 6, 0))), "x.shape: got"),
    (put("conv2d", "inputs", 0, X._replace(shape=cast(Any, [2, 8, 6, 6]))), "x.shape: got"),
    (put("conv2d", "inputs", 0, X._replace(strides=(1, 1, 1))), "x.strides: got .*4 of them"),
    (put("conv2d", "inputs", 0, X._replace(strides=(1, 1, 1, 0))), "x.strides: got"),
    (put("conv2d", "inputs", 0, lay(1 << 40, 1 << 40)), r"x.shape: got .*fewer than 2\*\*63|x.strides"),
    (put("conv2d", "inputs", 0, X._replace(dtype="float64")), "x.dtype: got 'float64'"),
    (put("conv2d", "inputs", 1, W._replace(dtype="float32")), "w.dtype: got 'float32'.*x is float16"),
    (put("conv2d", "inputs", 0, lay(2, 8)), "x.shape: got .*4 axes"),
    (put("conv2d", "inputs", 1, lay(4, 8)), "w.shape: got .*4 axes"),
    (put("conv2d", "inputs", 1, lay(4, 4, 3, 3)), "w.shape: got .*8 channels in each filter"),
    (put("conv2d", "inputs", 2, lay(5)), "bias.shape: got"),
    (put("conv2d", "outputs", 0, lay(2, 4, 6, 7)), "y.shape: got .*by the other arguments"),
    (put("conv2d", "options", 0, 1), "stride: got 1"),
    (put("conv2d", "options", 0, (0, 1)), r"stride: got \(0, 1\)"),
    (put("conv2d", "options", 1, (-1, 1)), r"padding: got \(-1, 1\)"),
    (put("conv2d", "options", 2, (1, 1, 1)), "dilation: got"),
    (put("conv2d", "options", 3, 3), "groups: got 3"),
    (put("conv2d", "options", 4, "tanh"), "activation: got 'tanh'"),
    (put("conv2d.backward", "outputs", 1, None), "outputs: got .*a plan computes one gradient"),
    (put("conv2d.backward", "outputs", 0, X), "outputs: got .*a plan computes one gradient"),
    (put("conv2d.backward", "outputs", 1, X), "dw.shape: got"),
    (put("linear", "inputs", 0, lay(3, 4, 5, dtype="bfloat16")), "x.shape: got .*2 axes"),
    (put("linear", "inputs", 1, lay(5, 3, dtype="bfloat16")), "w.shape: got"),
    (put("linear", "inputs", 2, lay(4, dtype="bfloat16")), "bias.shape: got"),
    (put("linear", "outputs", 0, M), "y.shape: got"),
    (put("linear.backward", "outputs", 0, N), "dx.shape: got"),
    (put("matmul", "inputs", 0, lay(5, dtype="float32")), "a.shape: got"),
    (put("matmul", "inputs", 1, lay(1, 6, 7, dtype="float32")), "b.shape: got .*2 axes"),
    (put("matmul", "inputs", 1, lay(5, 7, dtype="float32")), "b.shape: got"),
    (put("matmul.backward", "outputs", 1, A), "db.shape: got"),
    (put("attention", "inputs", 0, lay(2, 3, 10, 16)), "q.shape: got .*multiple of the 2 heads|y.shape"),
    (put("attention", "inputs", 1, lay(2, 2, 12, 8)), "k.shape: got"),
    (put("attention", "inputs", 2, lay(2, 2, 11, 16)), "v.shape: got"),
    (put("attention", "inputs", 2, lay(2, 2)), "v.shape: got .*4 axes"),
    (put("attention", "outputs", 1, lay(2, 4, 10, 1)), "stats.dtype: got 'float16'"),
    (put("attention", "outputs", 1, lay(2, 4, 1, dtype="float32")), "stats.shape: got"),
    (put("attention", "options", 0, 1), "causal: got 1"),
    (put("attention", "options", 1, float("nan")), "scale: got nan"),
    (put("attention", "options", 1, "big"), "scale: got 'big'"),
    (put("attention.backward", "inputs", 0, K), "dy.shape: got"),
    (put("attention.backward", "outputs", 1, Q), "dk.shape: got"),
]


@pytest.mark.parametrize(("operation", "message"), BAD, ids=range(len(BAD)))
def test_what_makes_no_sense_is_refused(operation: Operation, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^({message})"):
        graph_of(operation)


def test_what_cudnn_never_plans_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="max_pool2d: planned are conv2d, "):
        graph_of(ALL["conv2d"]._replace(name="max_pool2d"))
    with pytest.raises(UnsupportedError, match="^dbias: "):
        graph_of(ALL["conv2d.backward"]._replace(outputs=(None, None, lay(4))))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: describe.conv2d(lay(2, 8), W), "x: got"),
        (lambda: describe.conv2d(X, "w"), "w: got 'w'"),  # type: ignore[arg-type]
        (lambda: describe.conv2d(X, W, stride=0), "stride: got 0"),
        (lambda: describe.conv2d(lay(2, 8, 2, 2), W), "x: images of 2 x 2"),
        (lambda: describe.conv2d_backward(X, W, of="y"), "of: got 'y'"),  # type: ignore[arg-type]
        (lambda: describe.linear(X, N), "x: got"),
        (lambda: describe.matmul(lay(3), B), "a: got"),
        (lambda: describe.attention(Q, K, N), "v: got"),
    ],
)
def test_builders_name_the_argument(make: Callable[[], Operation], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        make()


def test_the_examples_run() -> None:
    for module in (describe, devices):
        found = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
        assert found.attempted, inspect.getfile(module)
        assert not found.failed
