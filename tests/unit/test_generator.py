"""The generator's draws: NumPy's bits, any cut, any thread count, sinks, shards and whole arrays."""

from __future__ import annotations

import doctest
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tazza.core import generator as generator_module
from tazza.core.generator import Generator
from tazza.rng import arguments, cursor, philox, snapshot

FULL = os.environ.get("TAZZA_FULL") == "1"
SEEDS = [*range(40), 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, 2**127, 2**128 - 1, 2**128, 10**50, 3**500]


def numpys(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_are_numpys(seed: int) -> None:
    ours, theirs = Generator(seed, threads=2), numpys(seed)
    large = 10_000_019 if FULL else 200_003
    assert np.array_equal(ours.random_raw(1001), theirs.bit_generator.random_raw(1001))
    for dtype in (np.float32, np.float64, np.float32):
        for size in (None, 7, large, (3, 5), 0):
            assert np.array_equal(ours.random(size, dtype=dtype), theirs.random(size, dtype=dtype)), (dtype, size)
    for length in (123, 0, 4, 1):
        assert ours.bytes(length) == theirs.bytes(length), length
    assert ours.seed == seed


kinds = st.sampled_from(["random", "single", "raw", "bytes", "uniform", "out"])


@given(
    seed=st.integers(0, 2**64),
    draws=st.lists(st.tuples(kinds, st.integers(0, 30) | st.sampled_from([4096, 4097])), max_size=10),
    threads=st.integers(1, 4),
)
def test_any_sequence_of_draws_is_numpys(seed: int, draws: list[tuple[str, int]], threads: int) -> None:
    ours, theirs = Generator(seed, threads=threads), numpys(seed)
    for kind, count in draws:
        got: Any
        expected: Any
        if kind == "raw":
            got, expected = ours.random_raw(count), theirs.bit_generator.random_raw(count)
        elif kind == "bytes":
            got, expected = ours.bytes(count), theirs.bytes(count)
        elif kind == "uniform":
            got, expected = ours.uniform(-1.5, 4.0, count), -1.5 + 5.5 * theirs.random(count)
        elif kind == "out":
            got, expected = np.empty(count), theirs.random(count)
            assert ours.random(out=got) is got
        else:
            dtype = np.float32 if kind == "single" else np.float64
            got, expected = ours.random(count, dtype=dtype), theirs.random(count, dtype=dtype)
        assert np.array_equal(got, expected), (kind, count)


def test_shapes_and_scalars() -> None:
    generator = Generator(1)
    assert isinstance(generator.random(), float)
    for value in (generator.standard_normal(), generator.uniform(), generator.random(dtype="float32")):
        assert isinstance(value, np.floating)
    assert isinstance(generator.integers(5), np.int64)
    assert isinstance(generator.choice(5), np.int64)
    assert generator.choice(np.eye(3)).shape == (3,)
    assert generator.normal(size=(2, 0, 3)).shape == (2, 0, 3)
    assert generator.random(np.int64(3)).shape == (3,)
    assert generator.random(np.array([2, 3])).shape == (2, 3)
    assert generator.random(np.array(3)).shape == (3,)
    assert generator.standard_exponential([2, 3], dtype="float32").dtype == np.float32
    assert generator.standard_exponential(method="inv") >= 0
    assert generator.uniform(3.0, 3.0) == 3.0
    assert generator.normal(2.0, 0.0) == 2.0


def test_scaled_draws_are_two_rounded_operations() -> None:
    for dtype in (np.float32, np.float64):
        standard, scaled = Generator(9), Generator(9)
        z = standard.standard_normal(9000, dtype=dtype)
        assert np.array_equal(scaled.normal(3.1, 0.7, 9000, dtype=dtype), z * dtype(0.7) + dtype(3.1))
        e = standard.standard_exponential(9000, dtype=dtype)
        assert np.array_equal(scaled.exponential(0.7, 9000, dtype=dtype), e * dtype(0.7))
        u = standard.random(9001, dtype=dtype)
        assert np.array_equal(scaled.uniform(-0.3, 0.4, 9001, dtype=dtype), u * dtype(0.4 + 0.3) + dtype(-0.3))


Draw = Callable[[Generator, Any], Any]
ARRAY = np.arange(26).reshape(13, 2)
DRAWS: dict[str, Draw] = {
    "random": lambda g, shard: g.random((13, 3), shard=shard),
    "random float32": lambda g, shard: g.random((13, 3), dtype="float32", shard=shard),
    "random large": lambda g, shard: g.random(200_001, dtype="float32", shard=shard),
    "raw": lambda g, shard: g.random_raw((13, 2, 2), shard=shard),
    "uniform": lambda g, shard: g.uniform(1, 2, 13, dtype="float32", shard=shard),
    "normal": lambda g, shard: g.normal(1, 2, 13, shard=shard),
    "standard_normal": lambda g, shard: g.standard_normal((2, 3), dtype="float32", shard=shard),
    "exponential": lambda g, shard: g.exponential(2, 13, shard=shard),
    "standard_exponential": lambda g, shard: g.standard_exponential((13, 1), shard=shard),
    "integers": lambda g, shard: g.integers(-5, 2**63 - 5, (13, 2), shard=shard),
    "permutation": lambda g, shard: g.permutation(13, shard=shard),
    "permutation of an array": lambda g, shard: g.permutation(ARRAY, shard=shard),
    "choice": lambda g, shard: g.choice(9, (13, 2), shard=shard),
    "choice from an array": lambda g, shard: g.choice(ARRAY, (5, 2), shard=shard),
    "sparse choice": lambda g, shard: g.choice(400, (13, 1), replace=False, shard=shard),
    "dense choice": lambda g, shard: g.choice(ARRAY, 13, replace=False, shard=shard),
    "empty": lambda g, shard: g.standard_normal((0, 3), shard=shard),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 16])
def test_shards_are_slices_of_the_global_draw(name: str, size: int) -> None:
    whole, ranks = Generator(4), [Generator(4) for _ in range(size)]
    for generator in (whole, *ranks):
        generator.random(3, dtype="float32")  # a half word is in reserve
    expected = DRAWS[name](whole, None)
    parts = [DRAWS[name](generator, (rank, size)) for rank, generator in enumerate(ranks)]
    assert np.array_equal(np.concatenate(parts), expected)
    rows = [len(part) for part in parts]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] - rows[-1] <= 1
    assert {str(generator.state()) for generator in ranks} == {str(whole.state())}


class LaterSink:
    """Gives out arrays at once and fills them when asked, in reverse order and another thread."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Callable[[NDArray[Any]], None]) -> NDArray[Any]:
        array = np.empty(shape, dtype)
        self.waiting.append(lambda: fill(array))
        return array

    def run(self) -> None:
        jobs, self.waiting = self.waiting[::-1], []
        thread = threading.Thread(target=lambda: [job() for job in jobs])
        thread.start()
        thread.join(30)
        assert not thread.is_alive()


def test_sinks_may_fill_later() -> None:
    sink = LaterSink()
    now, later = Generator(8), Generator(8, sink=sink, threads=2)
    expected = [draw(now, None) for draw in DRAWS.values()] + [now.random(), now.random(4), now.split(1)[0].random(3)]
    got = [draw(later, None) for draw in DRAWS.values()] + [
        later.random(),
        later.random(4),
        later.split(1)[0].random(3),
    ]
    assert later.state() == now.state(), "ranges are reserved when the draw is called, not when it is filled"
    sink.run()
    for a, b in zip(got, expected, strict=True):
        assert np.array_equal(a, b)
    assert got[-3].shape == ()


def test_on_host_continues_without_the_sink() -> None:
    generator, plain = Generator(8, sink=LaterSink()), Generator(8)
    for each in (generator, plain):
        each.random(3, dtype="float32")
        each.split(2)
    host = generator.on_host()
    assert host.state() == generator.state() == plain.state()
    assert np.array_equal(host.random(5, dtype="float32"), plain.random(5, dtype="float32"))
    assert generator.state() != host.state()


def test_a_later_fill_sees_the_array_of_the_call() -> None:
    sink, array = LaterSink(), np.arange(50)
    got = Generator(2, sink=sink).choice(array, 20)
    array[:] = -1
    sink.run()
    assert np.array_equal(got, Generator(2).choice(np.arange(50), 20))


class Foreign:
    """An array of another library: only what the array API standard gives it."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values, self.shape = values, values.shape

    def __array_namespace__(self) -> type[Foreign]:
        return Foreign

    @staticmethod
    def take(x: Foreign, indices: Any, /, *, axis: int) -> Foreign:
        assert indices.ndim == 1
        return Foreign(np.take(x.values, indices, axis=axis))

    @staticmethod
    def reshape(x: Any, shape: tuple[int, ...]) -> Any:
        return Foreign(x.values.reshape(shape)) if isinstance(x, Foreign) else x.reshape(shape)


def test_arrays_of_other_libraries() -> None:
    array = np.arange(60).reshape(3, 20)
    foreign = Foreign(array)
    for axis in (0, 1, -1):
        assert np.array_equal(
            Generator(1).permutation(foreign, axis=axis).values, Generator(1).permutation(array, axis=axis)
        )
        got, expected = (Generator(1).choice(x, (2, 2), axis=axis) for x in (foreign, array))
        assert np.array_equal(got.values, expected)


def test_permutation_and_shuffle() -> None:
    array = np.arange(24).reshape(4, 6)
    for axis in (0, 1):
        order = Generator(3).permutation(array.shape[axis])
        assert sorted(order.tolist()) == list(range(array.shape[axis]))
        moved = Generator(3).permutation(array, axis=axis)
        assert np.array_equal(moved, np.take(array, order, axis=axis))
        same = array.copy()
        Generator(3).shuffle(same, axis=axis)
        assert np.array_equal(same, moved)
    names = ["a", "b", [1], None, "e", "f"]
    shuffled = names.copy()
    Generator(3).shuffle(shuffled)
    assert shuffled == [names[i] for i in Generator(3).permutation(6)]
    assert Generator(3).permutation([10, 20, 30]).tolist() == [10 * (i + 1) for i in Generator(3).permutation(3)]
    assert Generator(3).permutation(0).size == 0


class Interrupted:
    """A NumPy generator that is interrupted when its numbers are drawn but not yet returned."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def random(self, size: int | None) -> NDArray[Any]:
        self.generator.random(size)
        raise KeyboardInterrupt


def test_an_interrupted_draw_moves_nothing() -> None:
    generator = Generator(6)
    first = generator.random(3)
    live: Any = Interrupted(generator._revived())
    generator._live = live
    with pytest.raises(KeyboardInterrupt):
        generator.random(5)
    assert generator.state()["position"] == 3
    assert np.array_equal(np.concatenate((first, generator.random(7))), numpys(6).random(10))


def test_out() -> None:
    for name in ("random", "standard_normal", "standard_exponential"):
        for dtype in (np.float32, np.float64):
            out = np.zeros((10, 6), dtype)[::2]
            draw: Any = getattr(Generator(1), name)
            assert draw(dtype=dtype, out=out) is out
            assert np.array_equal(out, getattr(Generator(1), name)((5, 6), dtype=dtype))


@pytest.mark.parametrize("module", [generator_module, arguments, cursor, philox, snapshot])
def test_examples(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
