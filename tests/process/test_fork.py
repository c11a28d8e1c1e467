"""After a fork the child's copies of the parent's objects refuse to work, quietly let go, and new ones work."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ForkedError, NoCurrentContextError
from tests.bad_input.health import Hold, assert_process_is_healthy
from tests.process.children import TIMEOUT, in_fork, run_script

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


class Parent:
    """What the parent has made by the time it forks: one of each, with work still in flight."""

    def __init__(self, name: str) -> None:
        self.hold = Hold()
        self.ctx = tz.context(name, seed=1)
        self.stream = self.ctx.new_stream()
        self.buffer = self.ctx.allocate(64, dtype="float64")
        self.event = self.ctx.stream.record()
        self.host_event = tz.HostEvent("parent's")
        self.done = self.ctx.launch(lambda: 5, stream=self.stream)
        self.running = self.ctx.launch(self.hold.block, stream=self.stream)
        self.queued = self.ctx.launch(lambda: 6, stream=self.stream)
        assert self.hold.entered.wait(TIMEOUT)

    def close(self) -> None:
        """End the work in flight: it goes on in the parent whatever the child did."""
        self.hold.release()
        assert (self.done.result(TIMEOUT), self.queued.result(TIMEOUT)) == (5, 6)
        self.ctx.close(TIMEOUT)


@pytest.fixture(params=["cpu", "sim:0"])
def parent(request: pytest.FixtureRequest) -> Iterator[Parent]:
    made = Parent(request.param)
    yield made
    made.close()


_USES: dict[str, Callable[[Parent], Any]] = {
    "with": lambda made: made.ctx.__enter__(),
    "launch": lambda made: made.ctx.launch(lambda: None),
    "allocate": lambda made: made.ctx.allocate(8),
    "fill": lambda made: made.ctx.fill(made.buffer, 0),
    "synchronize": lambda made: made.ctx.synchronize(),
    "new_stream": lambda made: made.ctx.new_stream(),
    "record": lambda made: made.stream.record(),
    "stream wait": lambda made: made.stream.wait(made.event),
    "stream synchronize": lambda made: made.stream.synchronize(),
    "result": lambda made: made.done.result(),
    "result of unfinished": lambda made: made.running.result(),
    "cancel": lambda made: made.queued.cancel(),
    "event": lambda made: made.event.synchronize(),
    "host event": lambda made: made.host_event.succeed(),
    "on_done": lambda made: made.running.on_done(print),
    "slice": lambda made: made.buffer[:1],
    "view": lambda made: made.buffer.view("uint8"),
    "to_numpy": lambda made: made.ctx.to_numpy(made.buffer),
    "random": lambda made: made.ctx.random.random(3),
}


def test_inherited_objects_refuse_work(parent: Parent) -> None:
    def child() -> None:
        for use in _USES.values():
            with pytest.raises(ForkedError, match="made before th.* process was forked.*in the child|new context here"):
                use(parent)

    in_fork(child)


def test_inherited_objects_let_go_without_a_word(parent: Parent) -> None:
    """`__exit__`, `close`, `repr`, finalisers and the collector do nothing, and wait for nothing."""

    def child() -> None:
        texts = [repr(thing) for thing in vars(parent).values()]
        assert all(texts)
        parent.ctx.close()
        parent.ctx.close(abandon=True)
        parent.buffer.close()
        for name in list(vars(parent)):
            delattr(parent, name)
        gc.collect()

    in_fork(child)


def test_scopes_that_the_fork_left_open_are_left_quietly(parent: Parent) -> None:
    def child() -> None:
        parent.ctx.__exit__(None, None, None)

    with parent.ctx, parent.ctx.on(parent.stream):
        in_fork(child)
        assert tz.current() is parent.ctx


def test_nothing_is_current_in_the_child(parent: Parent) -> None:
    def child() -> None:
        for _ in range(2):
            try:
                tz.current()
            except NoCurrentContextError:
                continue
            raise AssertionError("something is current")

    with parent.ctx:
        in_fork(child)
    tz.use(parent.ctx)
    try:
        in_fork(child)
        assert tz.current() is parent.ctx
    finally:
        tz.use(None)


def test_inherited_arrays_stay_readable() -> None:
    with tz.open("cpu") as ctx:
        pooled = ctx.asarray(np.arange(1000.0), copy=True)
        view = np.asarray(ctx.allocate(80, dtype="float64"))
        view[:] = 3.0

        def child() -> None:
            assert pooled.sum() == 499500.0
            assert view.tolist() == [3.0] * 10
            pooled[:] = 0.0  # the child's own copy

        in_fork(child)
        assert pooled.sum() == 499500.0


def test_new_contexts_work_in_the_child(parent: Parent) -> None:
    def child() -> None:
        assert_process_is_healthy()
        with tz.open("cpu") as cpu, tz.open("sim:0") as sim:
            moved = cpu.launch(lambda x: x * 2, sim.launch(lambda: np.arange(4)), stream=cpu.new_stream())
            called = threading.Event()
            moved.on_done(lambda task: called.set())
            assert called.wait(TIMEOUT), "no callback thread in the child"
            assert moved.result(TIMEOUT).tolist() == [0, 2, 4, 6]

            async def main() -> object:
                return await sim.launch(lambda: 7)

            assert asyncio.run(main()) == 7

    in_fork(child)


def test_the_child_of_a_child_works_too(parent: Parent) -> None:
    def child() -> None:
        with tz.open("cpu") as ctx:
            ctx.launch(lambda: 1, stream=ctx.new_stream()).result(TIMEOUT)

            def refuse() -> None:
                with pytest.raises(ForkedError):
                    ctx.allocate(8)

            in_fork(refuse)
            in_fork(assert_process_is_healthy)

    in_fork(child)


def test_forks_while_other_threads_hold_the_locks() -> None:
    """Locks are made anew: whatever a thread held at the moment of the fork, the child can allocate and launch."""
    over = threading.Event()
    with ExitStack() as stack:
        contexts = [stack.enter_context(tz.open(name)) for name in ("cpu", "sim:0")]

        def churn() -> None:
            while not over.is_set():
                for ctx in contexts:
                    ctx.launch(lambda x: None, ctx.allocate(64), stream=ctx.own_stream)

        threads = [threading.Thread(target=churn) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                in_fork(assert_process_is_healthy)
        finally:
            over.set()
            for thread in threads:
                thread.join(TIMEOUT)
        assert not any(thread.is_alive() for thread in threads)


def test_a_forked_child_that_exits_normally_drains_and_reports_nothing_of_its_parent() -> None:
    done = run_script(
        """
        import os, sys, threading, warnings
        import tazza as tz
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork")
        held = threading.Event()
        ctx = tz.context("cpu")
        stream = ctx.new_stream()
        failed = ctx.launch(lambda: 1 / 0, stream=stream, label="parent's failure")
        ctx.launch(held.wait, 20, stream=stream, label="parent's work")
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            sys.stderr = sys.stdout
            print("child leaves")
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        held.set()
        try:
            failed.result(10)
        except ZeroDivisionError:
            print("parent goes on")
        ctx.close(10)
        """,
        PYTHONUNBUFFERED="1",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["child leaves", "parent goes on"]
