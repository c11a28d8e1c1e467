"""Wrong arguments: each check's message, the same from the reference and from plans, before anything is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

import tazza as tz
from tazza.dnn import ReferenceDnn
from tazza.errors import ArgumentError
from tests.unit.dnn_cases import Array


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return np.zeros(shape, dtype)


X, C, ROWS = zeros(2, 3, 4, 5), zeros(3), zeros(4, 6)
A, B = zeros(2, 3, 4), zeros(2, 4, 5)
WIDE, HALF = zeros(3, dtype="float64"), zeros(4, 6, dtype="float16")
MASK = zeros(4, 6, dtype="bool")
NAN, INFINITE = float("nan"), float("inf")

FLOATS = "expected float32 or float64; convert it with ctx.xp.astype"
FIRST = "expected float32, the dtype of the first argument"
FUSED = "expected None, 'relu', 'sigmoid' or 'tanh'"
KINDS = "expected one of relu, sigmoid, tanh, gelu, silu"
EPSILON = "expected a positive number, which keeps the root of a variance from zero"
SHARE = "expected a number of [0, 1): the share of elements to drop"

WRONG: list[tuple[str, str, Callable[[Any], object]]] = [
    # Products with an epilogue
    ("a", "expected a matrix or a stack of matrices", lambda dnn: dnn.matmul(zeros(3), zeros(3, 2))),
    ("b", "expected a matrix with as many rows as (2, 3, 4) has columns", lambda dnn: dnn.matmul(A, zeros(3, 5))),
    ("b", "expected a matrix with as many rows as", lambda dnn: dnn.matmul(A, zeros(4))),
    ("b", "expected leading axes that broadcast with those of", lambda dnn: dnn.matmul(A, zeros(3, 4, 5))),
    ("b", FIRST, lambda dnn: dnn.matmul(A, B.astype("float64"))),
    ("bias", "expected shape (5)", lambda dnn: dnn.matmul(A, B, zeros(4))),
    ("bias", FIRST, lambda dnn: dnn.matmul(A, B, zeros(5, dtype="float64"))),
    ("activation", FUSED, lambda dnn: dnn.matmul(A, B, activation="softplus")),
    ("activation", "gelu is not fused, as its gradient needs", lambda dnn: dnn.matmul(A, B, activation="gelu")),
    ("activation", "silu is not fused", lambda dnn: dnn.linear(ROWS, ROWS, activation="silu")),
    ("activation", FUSED, lambda dnn: dnn.linear(ROWS, ROWS, activation=["relu"])),
    ("dy", "expected shape (2, 3, 5)", lambda dnn: dnn.matmul_backward(zeros(2, 3, 4), A, B)),
    ("b", "expected shape (2, 4, any)", lambda dnn: dnn.matmul_backward(zeros(2, 3, 5), A, zeros(4, 5))),
    ("y", "as there was an activation", lambda dnn: dnn.matmul_backward(zeros(2, 3, 5), A, B, activation="tanh")),
    (
        "y",
        "expected shape (2, 3, 5)",
        lambda dnn: dnn.matmul_backward(zeros(2, 3, 5), A, B, y=zeros(2, 3, 4), activation="tanh"),
    ),
    (
        "y",
        FIRST,
        lambda dnn: dnn.linear_backward(ROWS, ROWS, zeros(6, 6), y=ROWS.astype("float64"), activation="relu"),
    ),
    # Activations
    ("kind", KINDS, lambda dnn: dnn.activate(ROWS, "elu")),
    ("kind", KINDS, lambda dnn: dnn.activate(ROWS, None)),
    ("kind", KINDS, lambda dnn: dnn.activate(ROWS, ["relu"])),
    ("kind", KINDS, lambda dnn: dnn.activate_backward(ROWS, "elu", x=ROWS, y=ROWS)),
    ("x", FLOATS, lambda dnn: dnn.activate(HALF, "gelu")),
    ("x", "what activate was given, as the gradient of gelu", lambda dnn: dnn.activate_backward(ROWS, "gelu", y=ROWS)),
    ("x", "as the gradient of silu follows from it", lambda dnn: dnn.activate_backward(ROWS, "silu", y=ROWS)),
    ("y", "what activate returned, as the gradient of tanh", lambda dnn: dnn.activate_backward(ROWS, "tanh", x=ROWS)),
    ("dy", "expected shape (4, 6)", lambda dnn: dnn.activate_backward(zeros(4), "silu", x=ROWS)),
    ("dy", FIRST, lambda dnn: dnn.activate_backward(WIDE, "relu", y=C)),
    # Pooling
    (
        "x",
        "expected images of one row and one column or more",
        lambda dnn: dnn.max_pool2d(zeros(1, 1, 0, 4), 2, padding=1),
    ),
    ("x", "expected shape (any, any, any, any)", lambda dnn: dnn.avg_pool2d(ROWS, 2)),
    ("x", "are smaller than windows of 5 x 5", lambda dnn: dnn.avg_pool2d(X, 5)),
    ("padding", "expected at most half of the window (2, 2)", lambda dnn: dnn.avg_pool2d(X, 2, padding=2)),
    ("count_padding", "whether zeros at the borders count", lambda dnn: dnn.avg_pool2d(X, 2, padding=1)),
    ("count_padding", "expected True or False", lambda dnn: dnn.avg_pool2d(X, 2, count_padding="no")),
    ("dy", "expected shape (2, 3, 2, 2)", lambda dnn: dnn.avg_pool2d_backward(X, X, 2)),
    # Batch normalisation
    ("x", "expected shape (any, any) or (any, any, any, any)", lambda dnn: dnn.batch_norm(A, C, C)),
    ("x", "expected one element or more for each channel", lambda dnn: dnn.batch_norm(zeros(0, 3), C, C)),
    ("x", "expected one element or more for each channel", lambda dnn: dnn.batch_norm(zeros(2, 3, 0, 4), C, C)),
    ("x", FLOATS, lambda dnn: dnn.batch_norm(zeros(2, 3, dtype="int32"), C, C)),
    ("gamma", "expected shape (3)", lambda dnn: dnn.batch_norm(X, zeros(4), C)),
    ("beta", FIRST, lambda dnn: dnn.batch_norm(X, C, WIDE)),
    ("mean", "expected shape (3)", lambda dnn: dnn.batch_norm_inference(X, C, C, zeros(3, 1), C)),
    ("variance", FIRST, lambda dnn: dnn.batch_norm_inference_backward(X, X, C, C, WIDE)),
    ("dy", "expected shape (2, 3, 4, 5)", lambda dnn: dnn.batch_norm_backward(zeros(2, 3), X, C, C, C)),
    ("dy", FIRST, lambda dnn: dnn.batch_norm_inference_backward(X.astype("float64"), X, C, C, C)),
    *(
        ("epsilon", EPSILON, lambda dnn, wrong=wrong: dnn.batch_norm(X, C, C, epsilon=wrong))
        for wrong in (0, -1e-5, NAN, INFINITE, True, "small", None, 1j)
    ),
    # Layer normalisation
    ("gamma", "expected the last extents of x, (4, 6)", lambda dnn: dnn.layer_norm(ROWS, zeros(4), zeros(4))),
    ("gamma", "expected the last extents of x", lambda dnn: dnn.layer_norm(ROWS, zeros(), zeros())),
    ("gamma", "expected the last extents of x", lambda dnn: dnn.layer_norm(ROWS, zeros(1, 4, 6), zeros(1, 4, 6))),
    ("gamma", "one or more, none empty", lambda dnn: dnn.layer_norm(zeros(4, 0), zeros(0), zeros(0))),
    ("gamma", FIRST, lambda dnn: dnn.layer_norm(ROWS, zeros(6, dtype="float64"), zeros(6))),
    ("beta", "expected shape (6)", lambda dnn: dnn.layer_norm(ROWS, zeros(6), zeros(1, 6))),
    ("mean", "expected shape (4)", lambda dnn: dnn.layer_norm_backward(ROWS, ROWS, zeros(6), zeros(6), zeros(4))),
    ("variance", "expected shape ()", lambda dnn: dnn.layer_norm_backward(ROWS, ROWS, ROWS, zeros(), zeros(4))),
    ("epsilon", EPSILON, lambda dnn: dnn.layer_norm(ROWS, zeros(6), zeros(6), epsilon=0)),
    ("dy", "expected shape (4, 6)", lambda dnn: dnn.layer_norm_backward(C, ROWS, zeros(6), zeros(4), zeros(4))),
    # Dropout
    ("x", FLOATS, lambda dnn: dnn.dropout(zeros(3, dtype="int64"), 0.5, tz.Generator(0))),
    ("mask", "expected bool, as dropout returns it", lambda dnn: dnn.dropout_backward(ROWS, ROWS, 0.5)),
    ("mask", "expected shape (4, 6)", lambda dnn: dnn.dropout_backward(ROWS, MASK[:2], 0.5)),
    ("dy", FLOATS, lambda dnn: dnn.dropout_backward(HALF, MASK, 0.5)),
    *(
        ("rate", SHARE, lambda dnn, wrong=wrong: dnn.dropout_backward(ROWS, MASK, wrong))
        for wrong in (1, -0.1, NAN, False, "half")
    ),
    # Softmax
    ("x", "expected a last axis of one element or more", lambda dnn: dnn.softmax(zeros())),
    ("x", "expected a last axis of one element or more", lambda dnn: dnn.softmax(zeros(3, 0))),
    ("y", FLOATS, lambda dnn: dnn.softmax_backward(ROWS, HALF)),
    ("dy", "expected shape (4, 6)", lambda dnn: dnn.softmax_backward(C, ROWS)),
    (
        "logits",
        "expected one class or more",
        lambda dnn: dnn.softmax_cross_entropy(zeros(0, 0), zeros(0, dtype="int64")),
    ),
]


@pytest.fixture(params=["reference", "plans"])
def dnn(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "reference":
        yield ReferenceDnn(xp)
        return
    with tz.open("cpu", seed=0, dnn="reference") as ctx:
        yield ctx.dnn


@pytest.mark.parametrize(
    ("argument", "words", "call"), WRONG, ids=[f"{number}-{name}" for number, (name, *_) in enumerate(WRONG)]
)
def test_wrong_arguments_are_named(dnn: Any, argument: str, words: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(ArgumentError, match=rf"^{argument}: .*{re.escape(words)}"):
        call(dnn)


LISTS: list[tuple[str, Callable[[Any], object]]] = [
    ("x", lambda dnn: dnn.activate([1.0], "relu")),
    ("w", lambda dnn: dnn.linear(ROWS, [[1.0]])),
    ("mask", lambda dnn: dnn.dropout_backward(ROWS, [True], 0.5)),
    ("mean", lambda dnn: dnn.batch_norm_inference(X, C, C, 0.0, C)),
]


@pytest.mark.parametrize(("argument", "call"), LISTS, ids=[name for name, _ in LISTS])
def test_what_is_no_array_is_refused(dnn: Any, argument: str, call: Callable[[Any], object]) -> None:
    with pytest.raises(ArgumentError, match=rf"(^{argument}: got .*|^got (list|float)), expected an array"):
        call(dnn)


def test_any_real_number_is_a_rate_and_an_epsilon(dnn: Any) -> None:
    for rate in (0, np.float32(0.5), Fraction(1, 2)):
        assert dnn.dropout_backward(ROWS, MASK, rate).shape == ROWS.shape
    for epsilon in (1, np.float32(0.5), Fraction(1, 2)):
        assert dnn.layer_norm(ROWS, zeros(6), zeros(6), epsilon=epsilon)[0].shape == ROWS.shape
