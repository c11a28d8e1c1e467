"""How oneDNN is used: what is refused before it is called, threads, forks, the choice among its ways."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.dnn import DnnState, DnnWrapper, Plan, PlannedDnn
from tazza.dnn.choosing import library_named
from tazza.dnn.library import Choice, Layout, Operation
from tazza.dnn.onednn import OnednnLibrary
from tazza.dnn.onednn import library as onednn_library
from tazza.dnn.onednn.binding import load
from tazza.errors import (
    BackendError,
    BackendUnavailableError,
    ClosedError,
    ForkedError,
    UnsupportedError,
    UsageError,
)
from tazza.hot import _primitives
from tests.dnn.pattern import TIMEOUT

try:
    library_named("onednn")
except BackendUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

CONV: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "activation": "relu"}


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu", dnn="onednn", seed=1) as ctx:
        yield ctx


def image(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


class Crash:
    """Stands where the library is called."""

    def run(self, *_: Any) -> None:
        raise AssertionError("the library was called")


@pytest.fixture
def guarded(ctx: tz.Context) -> tuple[Plan, list[Any]]:
    """A plan that fails the test if it gets as far as the library, with its arrays."""
    x, w = image(2, 8, 9, 9), image(8, 8, 3, 3)
    operation = ctx.dnn.plan("conv2d", x, w, None, **CONV).operation
    plan: Any = ctx.dnn.library.compile(operation, Choice())
    plan._runner = Crash()
    return plan, [x, w, None, np.empty((2, 8, 9, 9), np.float32)]


def in_thread(function: Any) -> Any:
    """Call it in another thread and return what it returned or raised."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(function())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(TIMEOUT)
    return found[0]


def test_misuse_is_refused_before_any_call(ctx: tz.Context, guarded: tuple[Plan, list[Any]]) -> None:
    plan, arrays = guarded
    wrapper = DnnWrapper(ctx)
    nbytes = plan.workspace_bytes
    assert nbytes > 64

    def misuse(state: DnnState) -> None:
        with pytest.raises(UsageError, match="needs a lease"):
            plan.execute(state, arrays, None)
        with state.workspace.get(nbytes - 1) as small, pytest.raises(UsageError, match="too small"):
            plan.execute(state, arrays, small)
        with state.workspace.get(nbytes) as over:
            pass
        with pytest.raises(ClosedError, match="over"):
            plan.execute(state, arrays, over)
        with pytest.raises(UsageError, match="expected what"):
            plan.execute(state, arrays, 4096)  # type: ignore[arg-type]
        with state.workspace.get(nbytes) as lease:
            assert isinstance(in_thread(lambda: plan.execute(state, arrays, lease)), UsageError)
            with pytest.raises(AssertionError, match="was called"):
                plan.execute(state, arrays, lease)
        escaped.append((state, state.workspace.get(nbytes)))

    escaped: list[Any] = []
    wrapper.with_state(0, misuse)
    state, lease = escaped[0]
    with pytest.raises(UsageError, match="not held"):
        plan.execute(state, arrays, lease)
    with pytest.raises(UsageError, match="another state"):
        wrapper.with_state(1, lambda other: plan.execute(other, arrays, lease))
    lease.release()


@pytest.mark.parametrize("compiled", [True, False])
def test_arrays_that_lie_otherwise_are_refused(
    ctx: tz.Context, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(onednn_library, "PrimitiveSequence", _primitives._PrimitiveSequence)
    x, w, y = image(2, 8, 9, 9), image(8, 8, 3, 3), np.empty((2, 8, 9, 9), np.float32)
    plan = ctx.dnn.library.compile(ctx.dnn.plan("conv2d", x, w, None, **CONV).operation, Choice())

    def run(state: DnnState, *arrays: Any) -> None:
        with state.workspace.get(plan.workspace_bytes) as lease:
            plan.execute(state, arrays, lease)

    def use(state: DnnState) -> None:
        run(state, x, w, None, y)
        for wrong in (x[:1], x.astype(np.float64), x.transpose(0, 1, 3, 2), x[:, ::-1], x[0], None, [[1.0]]):
            with pytest.raises(UsageError, match="array 0: got"):
                run(state, wrong, w, None, y)
        with pytest.raises(UsageError, match="got 3 arrays, expected 4"):
            run(state, x, w, None)

    DnnWrapper(ctx).with_state(0, use)
    assert np.array_equal(y, ctx.dnn.conv2d(x, w, padding=1, activation="relu"))


def test_inputs_that_are_copied_are_checked_as_well(ctx: tz.Context) -> None:
    x, w = image(4, 6)[::-1], image(3, 6)
    plan = ctx.dnn.plan("linear", x, w, None, activation=None)

    def use(state: DnnState) -> None:
        with state.workspace.get(plan.workspace_bytes) as lease, pytest.raises(UsageError, match="array 0"):
            plan.execute(state, [x[:2], w, None, np.empty((4, 3), np.float32)], lease)

    DnnWrapper(ctx).with_state(0, use)


@pytest.mark.parametrize("compiled", [True, False])
def test_threads_share_a_plan(ctx: tz.Context, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(onednn_library, "PrimitiveSequence", _primitives._PrimitiveSequence)
    x, w, dy = image(4, 16, 12, 12), image(16, 16, 3, 3), image(4, 16, 12, 12)
    x[:, ::3] = 0
    y = ctx.dnn.conv2d(x, w, padding=1, activation="relu")
    forward = ctx.dnn.library.compile(ctx.dnn.plan("conv2d", x, w, None, **CONV).operation, Choice())
    backward = ctx.dnn.library.compile(ctx.dnn.plan("conv2d.backward", dy, x, w, y, **CONV).operation, Choice())
    wrapper, gate = DnnWrapper(ctx), threading.Barrier(8)
    wrong: list[Any] = []
    errors: list[Exception] = []

    def once(state: DnnState) -> list[Any]:
        made = [np.empty_like(one) for one in (y, x, w, w[:, 0, 0, 0])]
        with state.workspace.get(forward.workspace_bytes) as lease:
            forward.execute(state, [x, w, None, made[0]], lease)
        with state.workspace.get(backward.workspace_bytes) as lease:
            backward.execute(state, [dy, x, w, made[0], *made[1:]], lease)
        return made

    expected = wrapper.with_state(0, once)

    def work(number: int) -> None:
        try:
            gate.wait(TIMEOUT)
            for _ in range(20):
                found = wrapper.with_state(number, once)
                wrong.extend(one for one, other in zip(found, expected, strict=True) if not np.array_equal(one, other))
        except Exception as error:  # shown below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert (errors, len(wrong)) == ([], 0)


def test_as_many_threads_as_are_allowed_and_the_setting_of_others_is_kept(ctx: tz.Context) -> None:
    dnnl = load()
    x, w = image(2, 16, 12, 12), image(16, 16, 3, 3)

    def counts() -> tuple[int, int, int]:
        dnnl.set_threads(3)
        ctx.dnn.conv2d(x, w)
        return ctx.dnn.plan("conv2d", x, w, None, **CONV).operation.threads, dnnl.get_threads(), 3

    with tz.limit_threads(1):
        assert in_thread(counts) == (1, 3, 3)
    with tz.limit_threads(2):
        assert in_thread(counts) == (2, 3, 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_deterministic_plans_give_the_same_bits(ctx: tz.Context, threads: int) -> None:
    dnn: PlannedDnn = ctx.dnn.configured(algorithm="deterministic")
    x, w, dy = image(3, 12, 17, 17), image(24, 12, 3, 3), image(3, 24, 17, 17)
    a, b = image(130, 200), image(200, 70)
    with tz.limit_threads(threads):
        first = [dnn.conv2d(x, w, padding=1), *dnn.conv2d_backward(dy, x, w, padding=1), dnn.matmul(a, b)]
        for _ in range(20):
            again = [dnn.conv2d(x, w, padding=1), *dnn.conv2d_backward(dy, x, w, padding=1), dnn.matmul(a, b)]
            assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_cap_changes_the_plan_and_not_the_result(ctx: tz.Context) -> None:
    x, w = image(1, 16, 20, 20), image(16, 16, 3, 3)
    free = ctx.dnn.plan("conv2d", x, w, None, **CONV)
    expected = ctx.dnn.conv2d(x, w, padding=1, activation="relu")
    seen = set()
    for most in (free.workspace_bytes - 1, free.workspace_bytes // 2, 0):
        dnn = ctx.dnn.configured(max_workspace=most)
        plan = dnn.plan("conv2d", x, w, None, **CONV)
        assert plan.workspace_bytes <= most
        seen.add(plan.algorithm)
        np.testing.assert_allclose(dnn.conv2d(x, w, padding=1, activation="relu"), expected, rtol=1e-4, atol=1e-4)
    assert free.algorithm not in seen


def test_a_cap_that_nothing_meets_is_refused(ctx: tz.Context) -> None:
    x = image(4, 6)[::-1]  # has to be copied
    with pytest.raises(UnsupportedError, match=r"needs at least \d+ bytes of workspace .* max_workspace is 0"):
        ctx.dnn.configured(max_workspace=0).linear(x, image(3, 6))


def test_measuring_gives_a_plan_with_the_same_result(ctx: tz.Context) -> None:
    x, w = image(2, 8, 9, 9), image(8, 8, 3, 3)
    dnn = ctx.dnn.configured(algorithm="measure", seconds=0.05)
    found = dnn.conv2d(x, w, padding=1, activation="relu")
    np.testing.assert_allclose(found, ctx.dnn.conv2d(x, w, padding=1, activation="relu"), rtol=1e-4, atol=1e-4)
    dnn.linear(image(4, 6)[::-1], image(3, 6))


def test_what_it_has_and_has_not(ctx: tz.Context) -> None:
    library = ctx.dnn.library
    assert library.supports("conv2d")
    assert library.supports("conv2d.backward")
    assert not library.supports("conv2d", dtype="float64")
    assert not library.supports("nonsense")
    assert isinstance(library.supports("conv2d", dtype="bfloat16"), bool)
    with pytest.raises(UnsupportedError, match=r"has no conv2d for float64.*fallback=True"):
        ctx.dnn.conv2d(np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3)))
    with pytest.raises(UnsupportedError, match="has no nonsense"):
        library.compile(Operation("nonsense", (), ()), Choice())
    too_much = Layout("float32", (1,) * 13, (1,) * 13)
    with pytest.raises(UnsupportedError):
        library.compile(Operation("softmax", (too_much,), (too_much,), (), 1), Choice())


def test_what_the_library_refuses_is_said(ctx: tz.Context) -> None:
    dnnl = load()
    with pytest.raises(BackendError, match=r"onednn\.dnnl_engine_create.*dnnl_invalid_arguments"):
        dnnl.make("dnnl_engine_create", 1, 7)


def test_plans_that_nobody_uses_give_their_objects_back() -> None:
    library = OnednnLibrary()
    layout = Layout("float32", (4, 4), (4, 1))
    plan = library.compile(Operation("matmul", (layout, layout, None), (layout,), (None,), 1), Choice())
    assert plan.algorithm
    del plan
    assert len(library._graveyard) >= 1
    library.close(library.open())
    assert not library._graveyard


def test_auto_takes_it_and_the_reference_for_what_it_lacks() -> None:
    with tz.open("cpu") as ctx:
        assert ctx.dnn.name == "onednn"
        assert ctx.dnn.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))).item() == 9.0


FORK = """
import os, signal, sys
import numpy as np
import tazza as tz
from tazza.errors import BackendUnavailableError, ForkedError

x, w = np.ones((2, 8, 9, 9), "float32"), np.ones((8, 8, 3, 3), "float32")
with tz.open("cpu", dnn="onednn") as ctx:
    ctx.dnn.conv2d(x, w)
    library = ctx.dnn.library
    plan_of = lambda: library.compile(ctx.dnn.plan("conv2d", x, w, None, stride=1, padding=0, dilation=1, groups=1,
                                                    activation=None).operation, ctx.dnn._choice)
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a hang fails
        status = 1
        try:
            for call in (plan_of, library.open):
                try:
                    call()
                except ForkedError:
                    pass
                else:
                    os._exit(2)
            try:
                with tz.open("cpu", dnn="onednn") as other:
                    other.dnn
            except BackendUnavailableError as error:
                assert "forked" in error.reason and "spawn" in error.hint, error
                with tz.open("cpu") as other:
                    assert other.dnn.name == "reference"
                    assert other.dnn.conv2d(x, w).shape == (2, 8, 7, 7)
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    ctx.dnn.conv2d(x, w)
"""


def test_a_forked_child_is_told_instead_of_hanging() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], timeout=TIMEOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_library_of_another_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = OnednnLibrary()
    monkeypatch.setattr(library, "_generation", -1)
    with pytest.raises(ForkedError, match="spawned"):
        library.open()


def test_where_the_wheel_is_not_there_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from tazza.dnn.onednn import binding

    monkeypatch.setattr(binding, "PACKAGE", "no-such-package")
    with pytest.raises(BackendUnavailableError, match=r"not installed.*pip install 'tazza\[dnn\]'"):
        OnednnLibrary()
    monkeypatch.setattr(binding, "PACKAGE", "numpy")
    with pytest.raises(BackendUnavailableError, match="has no libdnnl"):
        OnednnLibrary()
    monkeypatch.undo()
    monkeypatch.setattr(binding, "MAJOR", 99)
    with pytest.raises(BackendUnavailableError, match=r"found version 3\..*expected 99"):
        OnednnLibrary()
    monkeypatch.setattr(binding, "_find", lambda: __import__("pathlib").Path("/no/such/libdnnl.so"))
    with pytest.raises(BackendUnavailableError, match="cannot be loaded"):
        OnednnLibrary()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(BackendUnavailableError, match="riscv64"):
        OnednnLibrary()
