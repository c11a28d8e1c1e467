"""Library states on every device: the five steps, one caller at a time, and the tests that Caffe2 never had."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.dnn import DnnState, DnnWrapper
from tazza.errors import (
    ArgumentError,
    BackendError,
    ClosedError,
    DeadlockError,
    DeviceLostError,
    ForkedError,
    UsageError,
    WaitTimeoutError,
)
from tazza.testing import simulate
from tests.dnn.forms import CUDA, DEVICES, OTHER, convolve, doomed, library_of, pattern_plan, wrapper_of
from tests.dnn.pattern import TIMEOUT, PatternLibrary, PatternPlan, settle
from tests.process.children import in_fork


@pytest.fixture(params=DEVICES)
def ctx(request: pytest.FixtureRequest) -> Iterator[tz.Context]:
    with simulate(devices=2), tz.open(request.param) as ctx:
        yield ctx


@pytest.fixture
def library(ctx: tz.Context, request: pytest.FixtureRequest) -> Iterator[Any]:
    library = library_of(ctx, request.node.name)  # states are kept by the library's name
    yield library
    wrapper_of(ctx, library).close(TIMEOUT)
    assert library.opened == library.closed


@pytest.fixture
def wrapper(ctx: tz.Context, library: Any) -> DnnWrapper:
    return wrapper_of(ctx, library)


def together(*functions: Callable[[], object]) -> None:
    """Run functions in threads of their own; raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


# The five steps ----------------------------------------------------------------------------------------------------


def test_work_in_a_state_lies_between_what_came_before_and_after(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    seen: list[str] = []
    gate, stream = tz.HostEvent(), ctx.new_stream()
    stream.wait(gate)
    with ctx.on(stream):
        before = ctx.launch(seen.append, "before")
        inside = wrapper.with_state(0, lambda state: ctx.launch(seen.append, "inside"))
        after = ctx.launch(seen.append, "after")
    assert not any(task.is_done for task in (before, inside, after)), "with_state waited in the host"
    gate.succeed()
    stream.synchronize(TIMEOUT)
    assert seen == ["before", "inside", "after"]
    assert inside.is_done


def test_the_caller_is_ordered_after_what_a_failing_function_queued(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    """Caffe2 skipped the last two steps: queued work on the state's stream raced with what the caller did next."""
    seen: list[str] = []
    gate, stream = tz.HostEvent(), ctx.new_stream()

    def failing(state: DnnState) -> None:
        state.stream.wait(gate)
        ctx.launch(seen.append, "inside")
        raise KeyError("mine")

    with ctx.on(stream):
        with pytest.raises(KeyError, match="mine"):
            wrapper.with_state(0, failing)
        after = ctx.launch(seen.append, "after")
    assert not after.is_done
    gate.succeed()
    after.result(timeout=TIMEOUT)
    assert seen == ["inside", "after"]
    assert wrapper.with_state(0, lambda state: state.index) == 0, "the state was left unusable"


def test_work_in_a_state_counts_in_the_callers_context_and_budget(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    with ctx.on(ctx.new_stream()), ctx.memory.budget("1MiB") as budget:
        buffer = wrapper.with_state(0, lambda state: (state.stream.context is ctx, ctx.allocate(4096)))
    assert buffer[0]
    assert budget.live == 4096


def test_a_failed_task_in_a_state_is_the_contexts(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    with ctx.on(ctx.new_stream()):
        task = wrapper.with_state(0, lambda state: ctx.launch(lambda: 1 // 0))
        with pytest.raises(ZeroDivisionError):
            task.result(timeout=TIMEOUT)


def test_an_event_of_another_device_comes_first(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    seen: list[str] = []
    gate = tz.HostEvent()
    with tz.open(OTHER) as other, ctx.on(ctx.new_stream()) as _:
        other.own_stream.wait(gate)
        far = other.launch(seen.append, "far")
        ctx.stream.wait(other.own_stream)
        near = wrapper.with_state(0, lambda state: ctx.launch(seen.append, "near"))
        assert not near.is_done
        gate.succeed()
        near.result(timeout=TIMEOUT)
        assert far.is_done
    assert seen == ["far", "near"]


def test_a_task_on_the_states_queue_is_in_that_state(ctx: tz.Context) -> None:
    """It is at its turn: it neither waits for the state that it holds up nor takes another one."""
    wrapper = wrapper_of(ctx)
    x, w = (ctx.asarray(np.ones(shape, "f4")) for shape in ((1, 1, 4, 4), (2, 1, 3, 3)))
    calls = {info.number: info.calls for info in wrapper.states()}
    with ctx.on(ctx.new_stream()):
        task = wrapper.with_state(5, lambda state: ctx.launch(partial(convolve, wrapper), x, w))
        y = ctx.to_numpy(task.result(timeout=TIMEOUT))
    assert y[0, 0, 0].tolist() == [4, 6, 6, 4]
    now = {info.number: info.calls for info in wrapper.states()}
    assert now[5] - calls.get(5, 0) == 2
    assert {number: count for number, count in now.items() if number != 5} == {
        number: count for number, count in calls.items() if number != 5
    }


def test_closing_the_context_waits_for_its_work_in_states(library: Any, ctx: tz.Context) -> None:
    gate = tz.HostEvent()
    second = tz.context(ctx.device)
    wrapper = wrapper_of(second, library)
    with second.on(second.new_stream()):
        second.stream.wait(gate)
        task = wrapper.with_state(0, lambda state: second.launch(int, 1))
    with pytest.raises(WaitTimeoutError):
        second.close(0.01)
    gate.succeed()
    second.close(TIMEOUT)
    assert task.is_done
    assert wrapper_of(ctx, library).with_state(0, lambda state: state.index) == 0, "it is the device's, and goes on"


# One at a time -----------------------------------------------------------------------------------------------------


def test_a_nested_call_is_refused_at_once(wrapper: DnnWrapper) -> None:
    def nested(state: DnnState) -> None:
        with pytest.raises(DeadlockError, match="held by this thread already"):
            wrapper.with_state(0, lambda inner: None)
        with pytest.raises(DeadlockError, match="in use by this very call"):
            state.execute(state.stream, lambda inner: None)
        assert wrapper.with_state(1, lambda inner: inner.index) == 1
        with pytest.raises(DeadlockError):
            wrapper.close()

    wrapper.with_state(0, nested)


def test_eight_threads_are_never_inside_together(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    inside, most, rounds = 0, 0, 40

    def fn(state: DnnState) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        ctx.launch(int, 1)
        inside -= 1

    def work() -> None:
        with ctx.on(ctx.new_stream()):
            for _ in range(rounds):
                wrapper.with_state(0, fn, TIMEOUT)
            ctx.stream.synchronize(TIMEOUT)

    together(*[work] * 8)
    assert most == 1
    assert wrapper.states()[0].calls == 8 * rounds


def test_states_run_beside_each_other(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    both = threading.Barrier(4)
    together(*[lambda index=index: wrapper.with_state(index, lambda state: both.wait(TIMEOUT)) for index in range(4)])
    assert [info.number for info in wrapper.states()] == [0, 1, 2, 3]


def test_waiting_for_a_state_ends_by_its_timeout(wrapper: DnnWrapper) -> None:
    inside, over = threading.Event(), threading.Event()

    def hold(state: DnnState) -> None:
        inside.set()
        assert over.wait(TIMEOUT)

    def wait() -> None:
        assert inside.wait(TIMEOUT)
        try:
            with pytest.raises(WaitTimeoutError, match="held by another thread for 0.01 s"):
                wrapper.with_state(0, lambda state: None, 0.01)
            with wrapper.lease() as state:
                assert state.index == 1, "an idle one is taken"
        finally:
            over.set()

    together(lambda: wrapper.with_state(0, hold), wait)


def test_a_state_is_used_by_its_holder_alone(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    escaped: list[DnnState] = []

    def fn(state: DnnState) -> None:
        escaped.append(state)

        def elsewhere() -> None:
            with pytest.raises(UsageError, match="not held by this thread"):
                state.stream  # noqa: B018
            with pytest.raises(UsageError, match="not held by this thread"):
                state.scratch(state.workspace.get(64), 64)

        together(elsewhere)

    wrapper.with_state(0, fn)
    with pytest.raises(UsageError, match="not held by this thread"):
        escaped[0].stream  # noqa: B018


def test_a_lease_is_a_state_of_ones_own(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    lease = wrapper.lease()
    with lease:
        with pytest.raises(UsageError, match="for one use"), lease:
            pass
        assert len(wrapper.states()) == 1
    with wrapper.lease() as one, wrapper.lease() as other:
        assert one is not other
        assert (one.stream.context, other.stream.context) == (ctx, ctx)
    with pytest.raises(KeyError), wrapper.lease() as state:
        raise KeyError(state.index)

    def first() -> int:
        with wrapper.lease() as state:
            return state.index

    settle(lambda: first() == 0, "the first state is never idle again")


# Life --------------------------------------------------------------------------------------------------------------


def test_states_are_made_when_they_are_used_and_again_after_close(
    wrapper: DnnWrapper, library: Any, ctx: tz.Context
) -> None:
    assert wrapper.states() == ()
    wrapper.with_state(1000, lambda state: None)
    assert (library.opened, [info.number for info in wrapper.states()]) == (1, [1000])
    wrapper_of(tz.context(ctx.device), library).with_state(1000, lambda state: None)
    assert library.opened == 1, "contexts of a device share its states"
    wrapper.close()
    wrapper.close()
    assert (library.closed, wrapper.states()) == (1, ())
    assert wrapper.with_state(1000, lambda state: state.handle)
    assert library.opened == 2


def test_a_handle_that_cannot_be_made_leaves_nothing(wrapper: DnnWrapper, library: Any) -> None:
    library.failing = 1
    with pytest.raises(OSError, match="no handle"):
        wrapper.with_state(0, lambda state: None)
    assert wrapper.states() == ()
    assert wrapper.with_state(0, lambda state: state.handle)
    assert library.opened == 1


def test_handles_outside_of_states_are_the_threads_own(wrapper: DnnWrapper, library: Any) -> None:
    seen = [wrapper.handle, wrapper.handle]
    together(lambda: seen.append(wrapper.handle))
    assert seen[0] == seen[1] != seen[2]
    library.closed = library.opened  # they end with their threads


@pytest.mark.parametrize("index", [-1, 1.0, "0", None])
def test_what_is_no_index_is_refused(wrapper: DnnWrapper, index: Any) -> None:
    with pytest.raises(ArgumentError, match="index: got"):
        wrapper.with_state(index, lambda state: None)


def test_what_is_no_context_is_refused(library: Any) -> None:
    with pytest.raises(ArgumentError, match="ctx: got"):
        DnnWrapper("cpu", library)  # type: ignore[arg-type]


def test_a_state_survives_the_thread_that_made_it(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    def work() -> None:
        with ctx.on(ctx.new_stream()):
            wrapper.with_state(0, lambda state: ctx.launch(int, 1)).result(timeout=TIMEOUT)

    together(work)
    with ctx.on(ctx.new_stream()):
        assert wrapper.with_state(0, lambda state: ctx.launch(int, 2)).result(timeout=TIMEOUT) == 2


def test_a_forked_child_has_states_of_its_own(ctx: tz.Context, wrapper: DnnWrapper, library: Any) -> None:
    inherited: list[DnnState] = []
    wrapper.with_state(0, inherited.append)
    lease = inherited[0].workspace.get(64)

    def child() -> None:
        with pytest.raises(ForkedError):
            wrapper.with_state(0, lambda state: None)
        with pytest.raises(ForkedError):
            inherited[0].check_held()
        with pytest.raises(ForkedError):
            lease.address  # noqa: B018
        inherited[0].close()
        with tz.open("cpu") as fresh:
            own = PatternLibrary("in the child") if CUDA else library
            assert DnnWrapper(fresh, own).with_state(0, lambda state: state.handle) == f"handle {own.opened}"

    in_fork(child)
    lease.release()


def test_a_lost_device_loses_its_states() -> None:
    with doomed() as (ctx, lose):
        library = library_of(ctx, "lost")
        wrapper = wrapper_of(ctx, library)
        with ctx.on(ctx.new_stream()):
            wrapper.with_state(0, lambda state: ctx.launch(int, 1)).result(timeout=TIMEOUT)
        lose()
        with pytest.raises(BackendError):  # where nobody has noticed yet, it is the call that fails
            wrapper.with_state(0, lambda state: None)
            ctx.synchronize(TIMEOUT)
        with pytest.raises(DeviceLostError):
            wrapper.with_state(0, lambda state: None)
        wrapper.close(TIMEOUT)
        assert library.closed == 1


def test_a_states_stream_is_not_the_users_to_close(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    def fn(state: DnnState) -> None:
        if state.stream is not stream:
            with pytest.raises(UsageError, match="library state's"):
                state.stream.close()

    stream = ctx.new_stream()
    with ctx.on(stream):
        wrapper.with_state(0, fn)
        wrapper.with_state(0, lambda state: ctx.launch(int, 1)).result(timeout=TIMEOUT)


def test_a_stream_whose_context_is_gone_is_refused(wrapper: DnnWrapper) -> None:
    with wrapper.lease() as state:
        pass
    orphan = tz.context("cpu").own_stream
    with pytest.raises(ClosedError, match="is gone"):
        state.execute(orphan, lambda state: None)


# Plans in states ---------------------------------------------------------------------------------------------------


def test_scratch_memory_of_eight_threads_is_never_shared(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    library = wrapper.library
    plans = [pattern_plan(library, nbytes) for nbytes in (64, 1000, 70_000, 300_000)]

    def inside(seed: int) -> None:
        for plan in plans[seed % 4 :] + plans[: seed % 4]:
            with wrapper.lease(TIMEOUT) as state, state.workspace.get(plan.workspace_bytes) as lease:
                plan.execute(state, (), lease)

    def work(seed: int) -> None:
        for _ in range(10):
            ctx.launch(inside, seed, stream=streams[seed]).result(timeout=TIMEOUT)

    streams = [ctx.new_stream() for _ in range(8)]
    together(*[lambda seed=seed: work(seed) for seed in range(8)])
    assert [plan.overwritten for plan in plans] == [0] * 4
    assert sum(plan.calls for plan in plans) == 320
    assert all(info.leased_bytes == 0 for info in wrapper.states())


def test_misuse_of_scratch_is_refused_before_anything_is_called(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    library = wrapper.library
    plan = pattern_plan(library, 1000)
    other = wrapper.with_state(1, lambda state: state)
    over = other.workspace.get(1000)
    over.release()

    def misuse() -> list[str]:
        found = []
        with wrapper.lease() as state:
            small, fine = state.workspace.get(500), state.workspace.get(1000)
            fine.nbytes = 2000  # says more than it has: that is nobody's to decide
            leases = [None, "scratch", over, other.workspace.get(1000), small]
            for lease in leases:
                with pytest.raises((UsageError, ClosedError)) as caught:
                    plan.execute(state, (), lease)
                found.append(str(caught.value))
            with pytest.raises(UsageError, match="not aligned to the 1048576"):
                state.scratch(state.workspace.get(1 << 17), 64, alignment=1 << 20)
        with pytest.raises(UsageError, match="not held"):
            plan.execute(state, (), fine)
        return found

    found = ctx.launch(misuse).result(timeout=TIMEOUT)
    expected = ["needs a lease of 1000", "expected what state.workspace.get", "is over", "another state's", "too small"]
    assert all(words in message for words, message in zip(expected, found, strict=True)), found
    assert plan.calls == 0


@pytest.mark.skipif(CUDA, reason="needs memory that the host sees inside functions, which a CUDA device has not")
def test_scratch_on_a_device_is_seen_inside_its_functions_only() -> None:
    library = PatternLibrary("domain")
    plan = PatternPlan(library, 1000)
    with simulate(), tz.open("sim:0") as ctx:
        wrapper = DnnWrapper(ctx, library)

        def execute(state: DnnState) -> None:
            with state.workspace.get(1000) as lease:
                plan.execute(state, (), lease)

        with pytest.raises(UsageError, match="only inside a function launched"):
            wrapper.with_state(0, execute)
        assert plan.calls == 0
        ctx.launch(lambda: wrapper.with_state(0, execute)).result(timeout=TIMEOUT)
        assert plan.calls == 1
        wrapper.close()


def test_states_say_what_they_hold_and_trim_it(ctx: tz.Context, wrapper: DnnWrapper) -> None:
    lease = wrapper.with_state(2, lambda state: state.workspace.get(100_000))
    [info] = wrapper.states()
    assert (info.number, info.calls) == (2, 1)
    assert 100_000 <= info.leased_bytes == info.workspace_bytes == info.workspace_peak <= 125_000
    assert wrapper.trim() == 0, "what is leased stays"
    held = info.workspace_bytes
    lease.release()
    settle(lambda: wrapper.trim() == held, "nothing was trimmed")
    assert wrapper.states()[0].workspace_bytes == 0
