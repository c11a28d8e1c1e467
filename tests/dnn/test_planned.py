"""`ctx.dnn`: plans made once, less scratch where memory is short, and the reference only where the user allows it."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import pytest

import tazza as tz
from tazza.dnn import Choice, Lease, Library, Operation, Plan, PlannedDnn, ReferenceLibrary
from tazza.dnn.plans import PlanCache
from tazza.errors import ArgumentError, ClosedError, OutOfMemoryError, UnsupportedError, UsageError
from tests.dnn.pattern import TIMEOUT

MIB = 1 << 20


@final
class Hungry(Library):
    """The reference, with plans that say they need scratch: what is asked for, or as much as they may have."""

    version = "1"

    def __init__(self, name: str, nbytes: int, least: int = 0) -> None:
        self.name, self.nbytes, self.least = name, nbytes, least
        self.compiled: list[tuple[str, Choice]] = []
        self.executed: list[int] = []

    def supports(self, feature: str, *, dtype: str = "float32") -> bool:
        return dtype == "float32" and feature != "softmax"

    def compile(self, operation: Operation, choice: Choice) -> Plan:
        self.compiled.append((operation.name, choice))
        nbytes = self.nbytes if choice.max_workspace is None else min(self.nbytes, choice.max_workspace)
        if nbytes < self.least:
            raise UnsupportedError(f"needs {self.least} bytes")
        return HungryPlan(self, operation, nbytes)

    def open(self) -> Any:
        return object()

    def close(self, handle: Any) -> None:
        """Nothing is kept."""


@final
class HungryPlan(Plan):
    algorithm = "hungry"

    def __init__(self, library: Hungry, operation: Operation, nbytes: int) -> None:
        self.operation, self.workspace_bytes, self.library = operation, nbytes, library
        self.plan = ReferenceLibrary().compile(operation, Choice())

    def execute(self, state: Any, arrays: Sequence[Any], lease: Lease | None) -> None:
        state.scratch(lease, self.workspace_bytes)
        self.library.executed.append(self.workspace_bytes)
        self.plan.execute(state, arrays, None)


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", seed=1, dnn="reference") as ctx:
        yield ctx


def images(ctx: tz.Context, *shape: int, dtype: str = "float32") -> Any:
    return ctx.random.standard_normal(shape, dtype=dtype)


# Plans -------------------------------------------------------------------------------------------------------------


def test_a_plan_is_made_once_for_arrays_and_options_of_a_kind(ctx: tz.Context, request: pytest.FixtureRequest) -> None:
    library = Hungry(request.node.name, 1000)
    dnn = PlannedDnn(ctx, library)
    x, w = images(ctx, 2, 3, 6, 6), images(ctx, 4, 3, 3, 3)
    first = dnn.conv2d(x, w)
    for _ in range(3):
        assert (dnn.conv2d(x + 0, w + 0) == first).all()
    assert len(library.compiled) == 1
    with tz.open("cpu", seed=2) as other:
        PlannedDnn(other, library).conv2d(other.asarray(x), other.asarray(w))
    assert len(library.compiled) == 1, "plans are the device's"
    dnn.conv2d(x, w, padding=1)
    dnn.conv2d(x[:1], w)
    dnn.conv2d(x.transpose(0, 1, 3, 2), w)
    with tz.limit_threads(1):
        dnn.conv2d(x, w)
    dnn.configured(algorithm="deterministic").conv2d(x, w)
    assert len(library.compiled) == 6 - (len(ctx.device.cores) == 1)
    info = dnn.plans()
    assert (info.hits, info.misses, info.size) == (4, len(library.compiled), len(library.compiled))


def test_a_choice_reaches_the_library(ctx: tz.Context, request: pytest.FixtureRequest) -> None:
    library = Hungry(request.node.name, 1000)
    dnn = PlannedDnn(ctx, library).configured(algorithm="measure", max_workspace="512B", seconds=0.25)
    dnn = dnn.configured(state=3)
    x, w = images(ctx, 2, 3, 6, 6), images(ctx, 4, 3, 3, 3)
    plan = dnn.plan("conv2d", x, w, None, stride=1, padding=0, dilation=1, groups=1, activation=None)
    assert plan.workspace_bytes == 512
    assert library.compiled == [("conv2d", Choice("measure", 512, 0.25))]
    assert plan.operation.options == ((1, 1), (0, 0), (1, 1), 1, None)
    dnn.conv2d(x, w)
    assert library.executed == [512]
    with tz.open("cpu", deterministic=True, dnn="reference") as exact:
        assert exact.dnn._choice == Choice("deterministic")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda dnn: dnn.configured(algorithm="fastest"), "algorithm: got 'fastest'"),
        (lambda dnn: dnn.configured(max_workspace="much"), "max_workspace: got 'much'"),
        (lambda dnn: dnn.configured(max_workspace=-1), "max_workspace"),
        (lambda dnn: dnn.plan("conv3d"), "name: got 'conv3d'"),
        (lambda dnn: dnn.plan("activate", 1, 2), "activate takes x"),
        (lambda dnn: dnn.conv2d([[1.0]], 2), "x: got list, expected an array of numpy"),
        (lambda dnn: dnn.conv2d(np.ones((1, 1, 2, 2), "f4"), 2), "w: got int, expected an array of numpy"),
        (lambda dnn: dnn.weights("w"), "w: got str"),
        (lambda dnn: dnn.configured(seconds="a"), "seconds: got 'a'"),
        (lambda dnn: dnn.configured(seconds=math.nan), "seconds: got nan"),
        (lambda dnn: dnn.configured(state=-1), "index: got -1"),
        (lambda dnn: dnn.softmax_cross_entropy(np.ones((2, 3), "f4"), None), "labels: got None"),
        (lambda dnn: dnn.relu(np.ma.masked_array([1.0, 2.0])), "x: got MaskedArray"),
        (lambda dnn: dnn.relu(np.zeros(4, [("a", "<f4"), ("b", "u1")])["a"]), r"x.strides: got \(5,\)"),
        (lambda dnn: dnn.conv2d(np.ones((1, 1, 2, 2), "f4"), np.ones((1, 1, 1, 1), "f4"), stride=[1, 1]), "stride"),
        (lambda dnn: dnn.relu(np.ones(2, "i4")), r"x: got dtype\('int32'\)"),
        (lambda dnn: dnn.matmul(np.ones((2, 1, 1), "f4"), np.ones((3, 1, 1), "f4")), "b: got .*broadcast"),
    ],
)
def test_bad_arguments_are_named(ctx: tz.Context, call: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        call(ctx.dnn)


@pytest.mark.parametrize("options", [{"groups": True}, {"stride": 1.0}, {"stride": (1, True)}, {"padding": False}])
def test_options_that_only_equal_good_ones_are_refused_also_when_the_plan_is_there(
    ctx: tz.Context, options: dict[str, Any]
) -> None:
    x, w = images(ctx, 1, 1, 4, 4), images(ctx, 1, 1, 1, 1)
    ctx.dnn.conv2d(x, w)
    with pytest.raises(ArgumentError, match=next(iter(options))):
        ctx.dnn.conv2d(x, w, **options)


def test_other_classes_of_arrays_are_taken_as_what_they_are(ctx: tz.Context) -> None:
    x = np.array([[1.0, -2.0]], "f4").view(np.recarray)  # as np.memmap, whose file this test does not need
    y = ctx.dnn.relu(x)
    assert type(y) is np.ndarray
    assert y.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("library", ["auto", "reference"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint64"])
def test_labels_of_short_dtypes_are_told_apart(library: str, dtype: str) -> None:
    with tz.open("cpu", seed=3, dnn=library) as ctx:
        logits = ctx.random.standard_normal((3, 300), dtype="float32")
        labels = np.array([1, 44, 100])
        expected = ctx.dnn.softmax_cross_entropy(logits, labels)
        found = ctx.dnn.softmax_cross_entropy(logits, labels.astype(dtype))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_an_unknown_library_is_named() -> None:
    with tz.open("cpu", dnn="abacus") as ctx, pytest.raises(ArgumentError, match="dnn: got 'abacus'.*expected 'auto'"):
        ctx.dnn  # noqa: B018


def test_results_lie_in_memory_as_their_input_does(ctx: tz.Context) -> None:
    x, w = images(ctx, 2, 3, 6, 6), images(ctx, 4, 3, 3, 3)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y, z = ctx.dnn.conv2d(x, w), ctx.dnn.conv2d(last, w)
    assert y.flags.c_contiguous
    assert z.transpose(0, 2, 3, 1).flags.c_contiguous
    np.testing.assert_array_equal(y, z)
    assert ctx.memory.stats().live >= y.nbytes + z.nbytes, "results are in the context's memory"


def test_eager_calls_are_refused_where_they_would_not_queue(ctx: tz.Context) -> None:
    x = images(ctx, 4)
    with ctx.on(ctx.new_stream()), pytest.raises(UsageError, match="launch"):
        ctx.dnn.relu(x)
    with tz.open("sim") as sim, pytest.raises(UsageError, match="launch"):
        sim.dnn.relu(x)


def test_operations_do_not_outlive_their_context() -> None:
    with tz.open("cpu", dnn="reference") as ctx:
        dnn = ctx.dnn
    del ctx
    with pytest.raises(ClosedError, match="is gone"):
        dnn.relu(np.ones(3, "f4"))


def test_threads_call_it_at_once(ctx: tz.Context) -> None:
    x, w = images(ctx, 2, 3, 6, 6), images(ctx, 4, 3, 3, 3)
    expected, wrong = ctx.dnn.conv2d(x, w), list[int]()

    def work(number: int) -> None:
        for _ in range(20):
            with ctx:
                if not np.array_equal(ctx.dnn.conv2d(x, w), expected):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert not wrong


# What the library lacks --------------------------------------------------------------------------------------------


def test_the_reference_helps_only_where_it_may_and_says_so(
    ctx: tz.Context, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    library = Hungry(request.node.name, 0)
    dnn = PlannedDnn(ctx, library)
    with pytest.raises(UnsupportedError, match=r"has no softmax for float32; .*configured\(fallback=True\)"):
        dnn.softmax(images(ctx, 4))
    x, w = images(ctx, 1, 1, 4, 4, dtype="float64"), images(ctx, 1, 1, 2, 2, dtype="float64")
    with pytest.raises(UnsupportedError, match="conv2d for float64"):
        dnn.conv2d(x, w)
    helped = dnn.configured(fallback=True)
    with caplog.at_level(logging.INFO, logger="tazza.dnn"):
        for _ in range(2):
            assert helped.conv2d(x, w).dtype == np.float64
            helped.softmax(images(ctx, 4))
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} is done by the reference: {library.name} lacks it"
        for name in ("conv2d for float64", "softmax for float32")
    ]
    assert library.compiled == []


# Where memory is short ---------------------------------------------------------------------------------------------


def small_workspace(ctx: tz.Context, library: Hungry, cap: int) -> PlannedDnn:
    dnn = PlannedDnn(ctx, library, state=0)
    with dnn._states.at(0).held() as state:
        state.workspace.cap = cap
    return dnn


def test_where_a_state_is_held_nothing_is_measured(ctx: tz.Context, request: pytest.FixtureRequest) -> None:
    """A search takes its time, and whoever wants the state would wait for it."""
    library = Hungry(request.node.name, 1000)
    dnn = small_workspace(ctx, library, 300).configured(algorithm="measure")
    dnn.conv2d(images(ctx, 1, 1, 4, 4), images(ctx, 1, 1, 2, 2))
    assert library.executed == [250]
    chosen = [(choice.algorithm, choice.max_workspace) for _, choice in library.compiled]
    assert chosen == [("measure", None), ("heuristic", 500), ("heuristic", 250)]


def test_a_plan_that_needs_less_is_asked_for(ctx: tz.Context, request: pytest.FixtureRequest) -> None:
    library = Hungry(request.node.name, 8 * MIB)
    dnn = small_workspace(ctx, library, MIB)
    x, w = images(ctx, 2, 3, 6, 6), images(ctx, 4, 3, 3, 3)
    for _ in range(2):
        dnn.conv2d(x, w)
    assert library.executed == [MIB, MIB]
    assert [choice.max_workspace for _, choice in library.compiled] == [None, 4 * MIB, 2 * MIB, MIB]


def test_what_needs_more_than_there_is_fails_with_the_reason(ctx: tz.Context, request: pytest.FixtureRequest) -> None:
    library = Hungry(request.node.name, 8 * MIB, least=3 * MIB)
    dnn = small_workspace(ctx, library, MIB)
    with pytest.raises(OutOfMemoryError, match="its cap of 1048576"):
        dnn.conv2d(images(ctx, 2, 3, 6, 6), images(ctx, 4, 3, 3, 3))
    assert library.executed == []


# The cache ---------------------------------------------------------------------------------------------------------


def test_whoever_wants_the_same_plan_waits_for_it_and_others_do_not() -> None:
    cache, begun, go_on = PlanCache[int](8), threading.Event(), threading.Event()
    made: list[int] = []

    def slow() -> int:
        begun.set()
        assert go_on.wait(TIMEOUT)
        made.append(1)
        return 1

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get("a", slow))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(TIMEOUT)
    assert cache.get("b", lambda: 2) == 2, "another plan waits for nobody"
    go_on.set()
    for thread in threads:
        thread.join(TIMEOUT)
    assert (found, made) == ([1] * 4, [1])


def test_a_failure_is_its_callers_alone() -> None:
    cache = PlanCache[int](8)

    def fail() -> int:
        raise UnsupportedError("none")

    for _ in range(2):
        with pytest.raises(UnsupportedError):
            cache.get("a", fail)
    assert cache.get("a", lambda: 3) == 3
    cache.clear()
    assert cache.info()[2:] == (0, 8, 1)
    with pytest.raises(ArgumentError, match="limit"):
        PlanCache(0)
