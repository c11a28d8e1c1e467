"""Bad input to generators: typed, says what came, and moves nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tazza.core.generator import Generator
from tazza.errors import ArgumentError, UnsupportedError

frozen = np.empty(3)
frozen.flags.writeable = False

ARGUMENTS: list[tuple[str, Callable[[Any], object]]] = [
    ("seed", lambda g: Generator(-1)),
    ("seed", lambda g: Generator(1.5)),  # type: ignore[arg-type]
    ("seed", lambda g: Generator("7")),  # type: ignore[arg-type]
    ("seed", lambda g: Generator(True)),
    ("seed", lambda g: Generator(np.array([1, 2]))),  # type: ignore[arg-type]
    ("threads", lambda g: Generator(1, threads=0)),
    ("threads", lambda g: Generator(1, threads=1.5)),  # type: ignore[arg-type]
    ("size", lambda g: g.random(-1)),
    ("size", lambda g: g.random((3, -1))),
    ("size", lambda g: g.random(2.0)),
    ("size", lambda g: g.random("3")),
    ("size", lambda g: g.random(True)),
    ("size", lambda g: g.random(2**62)),
    ("size", lambda g: g.standard_normal((2**40, 2**40))),
    ("length", lambda g: g.bytes(-1)),
    ("size", lambda g: g.bytes(2**64)),
    ("dtype", lambda g: g.random(3, dtype="float3")),
    ("dtype", lambda g: g.random(3, dtype=">f8")),
    ("dtype", lambda g: g.random(3, dtype=None)),
    ("dtype", lambda g: g.random(3, dtype=object())),
    ("out", lambda g: g.random(out=[1.0])),
    ("out", lambda g: g.random(out=np.empty(3, np.float32))),
    ("out", lambda g: g.random(out=frozen)),
    ("out", lambda g: g.random(4, out=np.empty(3))),
    ("out", lambda g: g.random(3, out=np.empty(3), shard=(0, 2))),
    ("shard", lambda g: g.random(3, shard=(2, 2))),
    ("shard", lambda g: g.random(3, shard=(-1, 2))),
    ("shard", lambda g: g.random(3, shard=(0, 0))),
    ("shard", lambda g: g.random(3, shard=2)),
    ("shard", lambda g: g.random(3, shard=(0, 1, 2))),
    ("shard", lambda g: g.random(shard=(0, 2))),
    ("low", lambda g: g.integers(1.5)),
    ("low", lambda g: g.integers(5, 5)),
    ("low", lambda g: g.integers(0)),
    ("low", lambda g: g.integers(0, 256, dtype="int8")),
    ("low", lambda g: g.integers(-1, 5, dtype="uint8")),
    ("low", lambda g: g.integers(0, 3, dtype="bool")),
    ("low", lambda g: g.integers(0, 2**64)),
    ("dtype", lambda g: g.integers(5, dtype="int65")),
    ("high - low", lambda g: g.uniform(2, 1)),
    ("high - low", lambda g: g.uniform(-1.7e308, 1.7e308)),
    ("low", lambda g: g.uniform(float("nan"))),
    ("high", lambda g: g.uniform(0, float("inf"))),
    ("high", lambda g: g.uniform(0, 1e39, dtype="float32")),
    ("scale", lambda g: g.normal(0, -1)),
    ("scale", lambda g: g.exponential(-0.1)),
    ("loc", lambda g: g.normal("0")),
    ("loc", lambda g: g.normal(1j)),
    ("loc", lambda g: g.normal(10**400)),
    ("x", lambda g: g.permutation(-1)),
    ("x", lambda g: g.permutation(2.5)),
    ("x", lambda g: g.permutation("abc")),
    ("x", lambda g: g.permutation([[1, 2], [3]])),
    ("x", lambda g: g.permutation(type("Opaque", (), {"shape": (3,)})())),
    ("axis", lambda g: g.permutation(np.eye(3), axis=2)),
    ("axis", lambda g: g.permutation(np.eye(3), axis=1, shard=(0, 2))),
    ("x", lambda g: g.shuffle((1, 2))),
    ("x", lambda g: g.shuffle(3)),
    ("a", lambda g: g.choice(0)),
    ("a", lambda g: g.choice([])),
    ("a", lambda g: g.choice(3, 4, replace=False)),
    ("a", lambda g: g.choice(1.5)),
    ("n", lambda g: g.split(-1)),
    ("name", lambda g: g.for_purpose("")),
    ("name", lambda g: g.for_purpose(3)),
    ("key", lambda g: g.child()),
    ("key", lambda g: g.child("a")),
]

UNSUPPORTED: list[tuple[str, Callable[[Any], object]]] = [
    ("float32", lambda g: g.random(3, dtype="float16")),
    ("float64", lambda g: g.random(3, dtype="complex128")),
    ("float64", lambda g: g.standard_normal(3, dtype="int32")),
    ("float64", lambda g: g.standard_normal(3, dtype=np.longdouble)),
    ("int64", lambda g: g.integers(5, dtype="float64")),
    ("once for each", lambda g: g.integers([1, 2])),
    ("once for each", lambda g: g.integers(0, np.array([1, 2]))),
    ("standard_normal", lambda g: g.normal(np.zeros(3))),
    ("standard_normal", lambda g: g.exponential([1.0, 2.0])),
    ("inv", lambda g: g.standard_exponential(3, method="zig")),
    ("cumulative", lambda g: g.choice(3, p=[0.5, 0.25, 0.25])),
]


@pytest.mark.parametrize("case", range(len(ARGUMENTS)))
def test_bad_arguments(case: int) -> None:
    name, call = ARGUMENTS[case]
    generator = Generator(7)
    before = generator.state()
    with pytest.raises(ArgumentError, match=f"^{name}.*(expected)"):
        call(generator)
    assert generator.state() == before


@pytest.mark.parametrize("case", range(len(UNSUPPORTED)))
def test_what_is_not_there(case: int) -> None:
    instead, call = UNSUPPORTED[case]
    generator = Generator(7)
    before = generator.state()
    with pytest.raises(UnsupportedError, match=instead):
        call(generator)
    assert generator.state() == before


def test_nothing_can_be_drawn_from_nothing() -> None:
    generator = Generator(7)
    assert generator.choice(0, 0).size == 0
    assert generator.choice([], 0, replace=False).size == 0
    assert generator.integers(3, size=0).size == 0
    assert generator.random((0, 2**40)).shape == (0, 2**40)
