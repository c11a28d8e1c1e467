"""Frames and scopes: threads, nesting, asyncio, generators, forks."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from tazza.errors import NoCurrentContextError, UsageError
from tazza.hot import Frame, Scope, current, frame_of, generation, run_in, set_default, top


class Named(Scope):
    """A scope whose context is itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name

    def _frame(self, parent: Frame | None) -> Frame:
        return Frame(self, self, f"stream of {self.name}", None, None, parent)


def test_nothing_is_current_at_first() -> None:
    assert top() is None
    with pytest.raises(NoCurrentContextError, match=r"with ctx.*tz\.use\(ctx\).*tz\.carry\(fn\)"):
        current()


def test_nested_and_reentrant_scopes_restore_what_was_there() -> None:
    a, b = Named("a"), Named("b")
    with a, b, a:
        frame = top()
        assert current() is a
        assert frame is not None
        assert frame.parent is not None
        assert frame.parent.owner is b
        assert frame_of(b) is frame.parent
        assert frame_of(Named("c")) is None
    assert top() is None


def test_enter_returns_the_scope_and_exit_swallows_nothing() -> None:
    a = Named("a")
    with pytest.raises(ZeroDivisionError):
        with a as entered:
            assert entered is a
            raise ZeroDivisionError
    assert top() is None


def test_leaving_out_of_order_names_the_scope_on_top() -> None:
    a, b = Named("a"), Named("b")
    with a:
        with b:
            with pytest.raises(UsageError, match=r"a is not the innermost active scope \(that is b\).*reverse order"):
                a.__exit__(None, None, None)
            assert current() is b
    with pytest.raises(UsageError, match="no scope is active here"):
        a.__exit__(None, None, None)


def test_leaving_in_a_copied_context_is_refused() -> None:
    a = Named("a")
    with a:
        with pytest.raises(UsageError, match="another thread or asyncio context"):
            contextvars.copy_context().run(a.__exit__, None, None, None)
        assert current() is a


def test_leaving_in_another_thread_is_refused() -> None:
    a, errors = Named("a"), []

    def leave() -> None:
        try:
            a.__exit__(None, None, None)
        except UsageError as error:
            errors.append(error)

    with a:
        thread = threading.Thread(target=leave)
        thread.start()
        thread.join(10)
    assert len(errors) == 1


def test_one_scope_in_many_threads_at_once() -> None:
    a, seen, barrier = Named("a"), [], threading.Barrier(8, timeout=10)

    def enter() -> None:
        with a:
            barrier.wait()
            seen.append(current() is a)
            barrier.wait()
        seen.append(top() is None)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [True] * 16


def test_asyncio_tasks_on_one_thread_keep_separate_contexts() -> None:
    async def work(scope: Named, entered: asyncio.Event, other: asyncio.Event) -> bool:
        with scope:
            entered.set()
            await asyncio.wait_for(other.wait(), 10)
            return current() is scope

    async def main() -> list[bool]:
        first, second = asyncio.Event(), asyncio.Event()
        return [*await asyncio.gather(work(Named("a"), first, second), work(Named("b"), second, first))]

    assert asyncio.run(main()) == [True, True]


def test_well_nested_generators_work_and_leaks_are_refused_at_the_exit() -> None:
    def inside(scope: Named) -> Iterator[object]:
        with scope:
            yield current()

    a, b = Named("a"), Named("b")
    steps = inside(a)
    assert next(steps) is a
    with pytest.raises(StopIteration):
        next(steps)
    leaky = inside(a)
    next(leaky)
    with b:
        with pytest.raises(UsageError, match="not the innermost"):
            next(leaky)
    a.__exit__(None, None, None)
    assert top() is None


def test_default_frame_counts_where_nothing_is_entered() -> None:
    a, b = Named("a"), Named("b")
    fallback = Frame(None, b, None, None, None, None)
    set_default(fallback)
    try:
        assert current() is b
        with a:
            assert current() is a
            assert frame_of(b) is fallback
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(current()))
        thread.start()
        thread.join(10)
        assert found == [b]
    finally:
        set_default(None)
    assert top() is None


def test_run_in_restores_also_after_an_error_and_nests() -> None:
    a, b = Named("a"), Named("b")
    inner, outer = Frame(None, a, None, None, None, None), Frame(None, b, None, None, None, None)

    def fail() -> None:
        assert current() is a
        raise KeyError("x")

    def nest() -> object:
        with pytest.raises(KeyError):
            run_in(inner, fail, (), {})
        return current()

    assert run_in(outer, nest, (), {}) is b
    assert run_in(outer, lambda x, *, y: (x, y), (1,), {"y": 2}) == (1, 2)
    with a:
        assert run_in(None, top, (), {}) is None
        assert current() is a


def test_frames_are_freed_without_the_garbage_collector() -> None:
    import gc
    import weakref

    a = Named("a")
    gc.disable()
    try:
        with a:
            frame = top()
            assert frame is not None
            reference = weakref.ref(frame)
            del frame
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_sees_no_frame_and_its_exits_do_nothing() -> None:
    a, before = Named("a"), generation()
    with a:
        child = os.fork()
        if child == 0:
            try:
                good = top() is None and generation() == before + 1
                with Named("new"):
                    good = good and current().name == "new"
                a.__exit__(None, None, None)
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert current() is a
    assert generation() == before
    assert sys.getrefcount(a) < 10
