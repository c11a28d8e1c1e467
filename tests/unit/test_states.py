"""`ctx.state`: what is saved comes back, and a load that fails anywhere changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tazza.core import statefile
from tazza.core.states import State
from tazza.errors import ArgumentError, CheckpointError, UsageError


class Counter:
    """A generator with the smallest possible state."""

    def __init__(self) -> None:
        self.position = 0

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "key": [2**127, 1]}

    def restore(self, state: dict[str, Any], /) -> None:
        if state["key"] != [2**127, 1]:
            raise CheckpointError("another generator")
        self.position = state["position"]


class Holder:
    """A registered object; refuses to load where it is told to, half way through."""

    def __init__(self, content: Any) -> None:
        self.content, self.refuse = content, False

    def state_dict(self) -> dict[str, Any]:
        return {"content": self.content}

    def load_state_dict(self, state: Any, /) -> None:
        if self.refuse:
            self.refuse = False
            self.content = "half loaded"
            raise ValueError("no, thanks")
        self.content = state["content"]


class DeviceArray:
    """An array that only `to_host` can read."""

    def __init__(self, values: list[float]) -> None:
        self.values = values


def to_host(value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, DeviceArray):
        raise TypeError("not an array of this device")
    return np.asarray(value.values)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and bool(a == b)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([np.float32(1.5), np.int8(-3), np.bool_(True), np.zeros((0, 3)), np.arange(4)[::-1]])
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["a", "a.b", "b", "list", "array", "", 0, -(2**70)]), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(tree=trees, counters=st.tuples(*[st.integers(0, 2**70)] * 3))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, tree: Any, counters: tuple[int, int, int]) -> None:
    path = tmp_path_factory.getbasetemp() / "states"
    generator, holder = Counter(), Holder(tree)
    state = State(generator, to_host)
    state.register("holder", holder)
    state.epoch, state.step, state.launches = counters
    generator.position = 42
    state.save(path)
    holder.content, generator.position, state.epoch = "changed", 0, 1
    state.load(path)
    assert equal(holder.content, tree)
    assert (state.epoch, state.step, state.launches) == counters
    assert generator.position == 42


def test_device_arrays_come_back_as_numpy(tmp_path: Path) -> None:
    state, holder = State(Counter(), to_host), Holder(DeviceArray([1.0, 2.0]))
    state.register("h", holder)
    state.save(tmp_path / "s")
    state.load(tmp_path / "s")
    assert equal(holder.content, np.array([1.0, 2.0]))


def test_arrays_come_back_as_the_context_wants_them(tmp_path: Path) -> None:
    def from_host(array: np.ndarray[Any, Any]) -> DeviceArray:
        return DeviceArray(array.tolist())

    content = {"a": [DeviceArray([1.0]), (2, np.float32(3))], 0: DeviceArray([4.0, 5.0])}
    state, holder = State(Counter(), to_host, from_host), Holder(content)
    state.register("h", holder)
    state.save(tmp_path / "s")
    holder.content = None
    state.load(tmp_path / "s")
    assert holder.content["a"][0].values == [1.0]
    assert holder.content["a"][1] == (2, 3.0)
    assert holder.content[0].values == [4.0, 5.0]
    resumed = State(Counter(), to_host, from_host)
    resumed.resume(tmp_path / "s")
    other = Holder(None)
    resumed.register("h", other)
    assert other.content[0].values == [4.0, 5.0]


def test_saving_copies(tmp_path: Path) -> None:
    """State that an object changes in place after a failed load is the state before it."""
    weights = np.ones(3)

    class InPlace(Holder):
        def load_state_dict(self, state: Any, /) -> None:
            weights[:] = state["content"]

    state, second = State(Counter()), Holder(1)
    state.register("weights", InPlace(weights))
    state.register("second", second)
    state.save(tmp_path / "s")
    weights[:] = 5.0
    second.refuse = True
    with pytest.raises(CheckpointError):
        state.load(tmp_path / "s")
    assert weights.tolist() == [5.0] * 3


@pytest.mark.parametrize("refusing", [0, 1, 2])
def test_a_load_that_fails_anywhere_changes_nothing(tmp_path: Path, refusing: int) -> None:
    generator, holders = Counter(), [Holder(index) for index in range(3)]
    state = State(generator)
    for index, holder in enumerate(holders):
        state.register(f"h{index}", holder)
    state.save(tmp_path / "s")
    state.epoch, state.step, state.launches, generator.position = 9, 8, 7, 6
    for index, holder in enumerate(holders):
        holder.content = -index
    holders[refusing].refuse = True
    with pytest.raises(CheckpointError, match=f"'h{refusing}' refused its state: no, thanks") as caught:
        state.load(tmp_path / "s")
    assert isinstance(caught.value.__cause__, ValueError)
    assert [holder.content for holder in holders] == [0, -1, -2]
    assert (state.epoch, state.step, state.launches, generator.position) == (9, 8, 7, 6)


def test_an_interrupt_rolls_back_too(tmp_path: Path) -> None:
    class Interrupted(Holder):
        def load_state_dict(self, state: Any, /) -> None:
            if state["content"] == "saved":
                raise KeyboardInterrupt
            super().load_state_dict(state)

    state, first, second = State(Counter()), Holder("a"), Interrupted("saved")
    state.register("first", first)
    state.register("second", second)
    state.save(tmp_path / "s")
    first.content, second.content = "b", "now"
    with pytest.raises(KeyboardInterrupt):
        state.load(tmp_path / "s")
    assert (first.content, second.content) == ("b", "now")


def test_a_failure_on_the_way_back_is_noted(tmp_path: Path) -> None:
    class Stubborn(Holder):
        def load_state_dict(self, state: Any, /) -> None:
            raise ValueError(f"not {state['content']}")

    state = State(Counter())
    state.register("h", Stubborn("x"))
    state.save(tmp_path / "s")
    with pytest.raises(CheckpointError, match="refused") as caught:
        state.load(tmp_path / "s")
    assert "going back" in str(getattr(caught.value, "__notes__", ""))


def test_another_seed_is_refused_and_none_agrees(tmp_path: Path) -> None:
    State(Counter(), spec={"seed": 1, "device": "cpu:0"}).save(tmp_path / "s")
    State(Counter(), spec={"seed": 1, "device": "sim:0"}).load(tmp_path / "s")
    State(Counter(), spec={"seed": None}).load(tmp_path / "s")
    with pytest.raises(CheckpointError, match=r"saved with seed=1, this context has seed=2"):
        State(Counter(), spec={"seed": 2}).load(tmp_path / "s")


def test_other_objects_are_refused(tmp_path: Path) -> None:
    state = State(Counter())
    state.register("a", Holder(1))
    state.save(tmp_path / "s")
    other = State(Counter())
    other.register("b", Holder(2))
    with pytest.raises(CheckpointError, match=r"holds the objects \['a'\], registered are \['b'\]"):
        other.load(tmp_path / "s")
    state.unregister("a")
    assert state.registered == ()
    with pytest.raises(CheckpointError, match="register the same names"):
        state.load(tmp_path / "s")


def test_resume_gives_each_object_its_part_when_it_is_registered(tmp_path: Path) -> None:
    generator = Counter()
    state = State(generator)
    state.register("a", Holder([1]))
    state.register("b", Holder([2]))
    state.epoch, generator.position = 3, 4
    state.save(tmp_path / "s")

    fresh_generator = Counter()
    fresh = State(fresh_generator)
    fresh.resume(tmp_path / "s")
    assert (fresh.epoch, fresh_generator.position) == (3, 4)
    a = Holder(None)
    fresh.register("a", a)
    assert a.content == [1]
    fresh.save(tmp_path / "again")  # what waits for its object is not lost
    refusing = Holder(None)
    refusing.refuse = True
    with pytest.raises(CheckpointError, match="'b' refused"):
        fresh.register("b", refusing)
    assert fresh.registered == ("a",)
    b = Holder(None)
    fresh.register("b", b)
    assert b.content == [2]
    fresh.load(tmp_path / "again")
    with pytest.raises(UsageError, match="use load"):
        fresh.resume(tmp_path / "s")


def test_another_generator_is_refused(tmp_path: Path) -> None:
    class Other(Counter):
        def state(self) -> dict[str, Any]:
            return {"position": 1, "key": [0]}

    State(Other()).save(tmp_path / "s")
    with pytest.raises(CheckpointError, match="another generator"):
        State(Counter()).load(tmp_path / "s")


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"spec": {}, "counters": {"epoch": 1}, "generator": None, "objects": {}},
        {"spec": 3, "counters": {}, "generator": None, "objects": {}},
        {"spec": {}, "counters": {"epoch": 0, "step": 0, "launches": 0}, "generator": {"odd": 1}, "objects": {}},
        {"spec": {}, "counters": {"epoch": 0, "step": 0, "launches": 0}, "generator": {"array": "x"}, "objects": {}},
        {"spec": {}, "counters": {"epoch": 0, "step": 0, "launches": 0}, "generator": {}, "objects": {}},
    ],
)
def test_state_files_of_something_else_are_refused(tmp_path: Path, header: dict[str, Any]) -> None:
    statefile.write(tmp_path / "s", header, {})
    with pytest.raises(CheckpointError, match="not the saved state of a context"):
        State(Counter()).load(tmp_path / "s")


@pytest.mark.parametrize("bad", [object(), {1.5: 2}, {True: 2}, DeviceArray([1.0]), {"a": [object()]}, {1, 2}])
def test_what_cannot_be_saved_is_named(tmp_path: Path, bad: Any) -> None:
    state = State(Counter())
    state.register("model", Holder(bad))
    with pytest.raises(ArgumentError, match=r"model\.content"):
        state.save(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_foreign_arrays_are_named(tmp_path: Path) -> None:
    state = State(Counter(), to_host)
    state.register("model", Holder([object()]))
    with pytest.raises(ArgumentError, match=r"model\.content\[0\]: a object cannot be saved \(not an array of this"):
        state.save(tmp_path / "s")


def test_registration_checks() -> None:
    state = State(Counter())
    state.register("a", Holder(1))
    bad: Any
    for bad in ("", 3):
        with pytest.raises(ArgumentError, match="name: got"):
            state.register(bad, Holder(1))
    with pytest.raises(ArgumentError, match="registered already"):
        state.register("a", Holder(1))
    bad = object()
    with pytest.raises(ArgumentError, match="obj: got"):
        state.register("b", bad)
    with pytest.raises(ArgumentError, match="one of the registered names"):
        state.unregister("b")
    assert "objects=['a']" in repr(state)
