"""Caffe2's own test of its states: trees of convolutions on states drawn at random give the same bits every time."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.testing import simulate
from tests.dnn.forms import DEVICES, LIBRARIES, added, gradient, node, ones_like, wrapper_of
from tests.dnn.pattern import TIMEOUT

RUNS, DEPTH, CHANNELS = 50, 3, 4
Array = np.ndarray[Any, np.dtype[Any]]


class Tree:
    """A binary tree: each node convolves the sum of its children's results; every leaf sees the image."""

    def __init__(self, ctx: tz.Context, x: Any, weights: list[Any], draws: random.Random, threads: int) -> None:
        self.ctx, self.x, self.weights, self.draws = ctx, x, weights, draws
        self.streams = [ctx.new_stream() for _ in range(3)]
        self.wrapper = wrapper_of(ctx)
        self.lock = threading.Lock()
        self.threads = threads

    def launch(self, function: Any, *args: Any) -> tz.Task:
        """Run a function in a state and behind a stream that are drawn."""
        with self.lock:
            index, stream = self.draws.randrange(4), self.draws.choice(self.streams)

        work = partial(function, self.wrapper)
        with self.ctx.on(stream):
            return self.wrapper.with_state(index, lambda state: self.ctx.launch(work, *args), TIMEOUT)

    def subtree(self, number: int) -> tuple[Any, list[Any]]:
        """The result of a node, and the gradients of the weights below it, for a gradient of ones."""
        if 2 * number + 2 > len(self.weights):
            x = self.x
            below: list[Any] = []
        else:
            (left, one), (right, two) = self.children(number)
            x = self.launch(added, left, right)
            below = one + two
        y = self.launch(node, x, self.weights[number])
        ones = self.launch(ones_like, y)
        found = self.launch(gradient, ones, x, self.weights[number], y)
        return y, [*below, found]

    def children(self, number: int) -> list[tuple[Any, list[Any]]]:
        children = 2 * number + 1, 2 * number + 2
        if number >= self.threads - 1:
            return [self.subtree(child) for child in children]
        found: dict[int, tuple[Any, list[Any]]] = {}

        def work(child: int) -> None:
            found[child] = self.subtree(child)

        threads = [threading.Thread(target=work, args=(child,)) for child in children]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        return [found[child] for child in children]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_gradients_are_bit_identical(device: str, library: str) -> None:
    draws = np.random.default_rng(3)
    image = draws.standard_normal((2, CHANNELS, 6, 6)).astype("f4")
    filters = [draws.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype("f4") / 6 for _ in range(2**DEPTH - 1)]
    seen: set[tuple[bytes, ...]] = set()
    with simulate(devices=1):
        for run in range(RUNS):
            with tz.open(device, dnn=library) as ctx:
                x, weights = ctx.asarray(image, copy=True), [ctx.asarray(one, copy=True) for one in filters]
                tree = Tree(ctx, x, weights, random.Random(run), threads=1 + run % 4)
                y, gradients = tree.subtree(0)
                seen.add(tuple(ctx.to_numpy(one.result(timeout=TIMEOUT)).tobytes() for one in [y, *gradients]))
            assert len(seen) == 1, f"run {run}, with {1 + run % 4} thread(s), gave other bits"
        with tz.open(device, dnn=library) as ctx:
            assert {info.number for info in wrapper_of(ctx).states()} >= {0, 1, 2, 3}


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_reference(device: str) -> None:
    draws = np.random.default_rng(3)
    image = draws.standard_normal((2, CHANNELS, 6, 6)).astype("f4")
    filters = [draws.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype("f4") / 6 for _ in range(2**DEPTH - 1)]

    def found(device: str, library: str = "auto") -> list[Array]:
        with tz.open(device, dnn=library) as ctx:
            x, weights = ctx.asarray(image, copy=True), [ctx.asarray(one, copy=True) for one in filters]
            y, gradients = Tree(ctx, x, weights, random.Random(1), threads=4).subtree(0)
            return [ctx.to_numpy(one.result(timeout=TIMEOUT)) for one in [y, *gradients]]

    with simulate(devices=1):
        pairs = zip(found(device), found("cpu", "reference"), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=1e-3, rtol=1e-3)
