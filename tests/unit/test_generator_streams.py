"""Children, state, pickling, threads and fork."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tazza.core.generator import Generator
from tazza.errors import CheckpointError, ForkedError, UsageError


def first(generator: Generator) -> int:
    return int(generator.random_raw())


def test_split_never_repeats_and_leaves_the_stream() -> None:
    root, twin = Generator(7), Generator(7)
    streams = [*root.split(3), *root.split(2), *root.split(0), *root.split(1)]
    assert len(streams) == 6
    assert len({first(stream) for stream in streams} | {first(Generator(7))}) == 7
    assert first(root) == first(twin)
    assert [first(s) for s in Generator(7).split(6)] == [first(s) for s in twin.split(6)]


def test_named_and_keyed_children() -> None:
    root = Generator(7)
    dropout = root.for_purpose("dropout")
    values = dropout.random(5)
    root.random(11)
    root.split(2)
    assert np.array_equal(root.for_purpose("dropout").random(5), values)
    assert np.array_equal(Generator(7, threads=3).for_purpose("dropout").random(5), values)
    others = [
        root.for_purpose("init"),
        root.child(0),
        root.child(1),
        root.child(0, 0),
        root.child(-1),
        root.split(1)[0],
    ]
    others += [root.child(0).child(0), root.child(2**70), Generator(8).for_purpose("dropout"), dropout.child(0)]
    assert len({first(child) for child in (*others, root.for_purpose("dropout"))}) == 11
    assert dropout.seed == 7
    assert "seed=7" in repr(dropout)


draws = st.lists(st.tuples(st.sampled_from(["random", "single", "normal", "split"]), st.integers(0, 9)), max_size=8)


def play(generator: Generator, program: list[tuple[str, int]]) -> list[Any]:
    results: list[Any] = []
    for kind, count in program:
        if kind == "split":
            results += [first(stream) for stream in generator.split(count)]
        elif kind == "normal":
            results += generator.standard_normal(count).tolist()
        else:
            results += generator.random(count, dtype=np.float32 if kind == "single" else np.float64).tolist()
    return results


@given(seed=st.integers(0, 2**200), before=draws, after=draws)
def test_state_round_trip(seed: int, before: list[tuple[str, int]], after: list[tuple[str, int]]) -> None:
    generator = Generator(seed).child(1)
    play(generator, before)
    state = json.loads(json.dumps(generator.state()))
    copies = [Generator(1), pickle.loads(pickle.dumps(generator)), copy.deepcopy(generator)]
    copies[0].random(5, dtype="float32")
    copies[0].restore(state)
    expected = play(generator, after)
    for other in copies:
        assert other.state() == state
        assert play(other, after) == expected
        assert other.seed == seed


def damaged(state: dict[str, Any]) -> list[Any]:
    """Return everything that a bad file could hold instead of a state."""
    changes: list[dict[str, Any]] = [
        {"format": "numpy"}, {"seed": 8}, {"key": state["key"] ^ 1}, {"position": state["position"] + 1},
        {"position": float(state["position"])}, {"half": None}, {"half": "3"}, {"children": True}, {"check": "0"},
        {"check": None}, {"more": 1},
    ]  # fmt: skip
    without = [{name: value for name, value in state.items() if name != gone} for gone in state]
    numpys = np.random.Philox(1).state
    return [state | change for change in changes] + without + [numpys, {}, None, 3, [state], json.dumps(state)]


def test_bad_states_change_nothing() -> None:
    generator = Generator(7)
    generator.random(3, dtype="float32")
    state = generator.state()
    assert state["half"] is not None
    for bad in damaged(state):
        with pytest.raises(CheckpointError, match="state"):
            generator.restore(bad)
        assert generator.state() == state, bad


class Sink:
    def place(self, shape: Any, dtype: Any, fill: Any) -> Any:
        raise NotImplementedError


def test_generators_of_contexts_do_not_travel() -> None:
    generator = Generator(1, sink=Sink())
    with pytest.raises(UsageError, match="state"):
        pickle.dumps(generator)
    with pytest.raises(UsageError, match="state"):
        copy.copy(generator)


def test_concurrent_draws_get_disjoint_ranges() -> None:
    generator, crew, rounds = Generator(3), 8, 150
    seen: list[list[int]] = [[] for _ in range(crew)]
    errors: list[BaseException] = []
    start = threading.Barrier(crew)

    def work(number: int) -> None:
        try:
            start.wait(30)
            for turn in range(rounds):
                count = (number * 7 + turn) % 11
                if turn % 2:
                    seen[number] += (generator.random(count) * 2.0**53).astype(np.uint64).tolist()
                else:
                    seen[number] += (generator.random_raw(count) >> np.uint64(11)).tolist()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(crew)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not errors
    together = sorted(word for words in seen for word in words)
    expected = np.random.Philox(3).random_raw(len(together)) >> np.uint64(11)
    assert together == np.sort(expected).tolist()
    assert generator.state()["position"] == len(together)


def in_child(generator: Generator, answers: Any) -> None:
    """Use an inherited generator in every way, and report which uses were refused."""
    uses: dict[str, Callable[[], object]] = {
        "fast": lambda: generator.random(3),
        "draw": lambda: generator.standard_normal(3),
        "bytes": lambda: generator.bytes(3),
        "split": lambda: generator.split(1),
        "child": lambda: generator.child(1),
        "state": generator.state,
        "restore": lambda: generator.restore({}),
    }
    refused = []
    for name, use in uses.items():
        try:
            use()
        except ForkedError:
            refused.append(name)
    own = Generator(generator.seed).child(1).random(3).tolist()
    answers.send((refused == list(uses), repr(generator), own))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_cannot_repeat_its_parents_numbers() -> None:
    generator = Generator(5)
    generator.random(1)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(generator, send))
    child.start()
    assert receive.poll(30), "the child did not answer"
    all_refused, text, own = receive.recv()
    child.join(30)
    assert child.exitcode == 0
    assert all_refused
    assert text == repr(generator)
    assert own == Generator(5).child(1).random(3).tolist()
    assert np.array_equal(generator.random(2), np.random.Generator(np.random.Philox(5)).random(3)[1:])


def test_fresh_seeds() -> None:
    generator = Generator()
    assert generator.seed >= 0
    assert Generator().seed != generator.seed
    assert np.array_equal(Generator(generator.seed).random(4), generator.random(4))
