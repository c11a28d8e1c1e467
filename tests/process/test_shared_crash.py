"""Shared memory of processes that are killed: nothing is lost to the living, nothing of the dead is left for ever."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core import segment
from tazza.errors import SharedMemoryError
from tests.process.children import TIMEOUT, run_script
from tests.stress.test_threads import settle
from tests.unit.shared_world import directory, names, needs_names, use

__all__ = ["directory"]

pytestmark = [needs_names, pytest.mark.slow]

BOTH = pytest.mark.parametrize("method", ["spawn", "forkserver"])

# A spawned process imports everything anew, which takes most of a test's time; a forked one finds it done.
multiprocessing.set_forkserver_preload([__name__])


# What children do --------------------------------------------------------------------------------------------------


def create(where: str, pipe: Connection) -> None:
    """Make a segment of tens, tell its spec, and stay until told to end."""
    use(where)
    ctx = tz.context("cpu")
    made = ctx.memory.shared.allocate(80, dtype="int64", label="tens")
    np.asarray(made)[:] = 10
    pipe.send(tz.SharedSpec.of(made))
    assert pipe.poll(TIMEOUT)


def attach(where: str, pipe: Connection, spec: tz.SharedSpec) -> None:
    """Attach, add one, tell, and stay until told to end."""
    use(where)
    ctx = tz.context("cpu")
    there = ctx.memory.shared.attach(spec)
    np.asarray(there)[:] += 1
    pipe.send(int(np.asarray(there)[0]))
    assert pipe.poll(TIMEOUT)


def sweep(where: str, pipe: Connection) -> None:
    """Sweep, and tell what was removed."""
    use(where)
    with tz.open("cpu") as ctx:
        pipe.send(ctx.memory.shared.sweep())


def die_in(where: str, pipe: Connection, step: str) -> None:
    """Be killed at a step of making a segment."""
    use(where)

    def die(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(segment, step, die)
    ctx = tz.context("cpu")
    ctx.memory.shared.allocate(8)


def fork_and_stay(where: str, pipe: Connection) -> None:
    """Make a segment and fork; the child tells about itself when it is asked."""
    use(where)
    ctx = tz.context("cpu")
    made = ctx.memory.shared.allocate(80, dtype="int64")
    view = np.asarray(made)
    view[:] = 3
    if os.fork() == 0:
        asked = pipe.poll(TIMEOUT)
        pipe.send((asked, pipe.recv() if asked else None, view.tolist()))
        os._exit(0)
    pipe.send(tz.SharedSpec.of(made))
    signal.pause()


# What they are given -----------------------------------------------------------------------------------------------


@contextmanager
def child(method: str, target: Callable[..., None], *args: Any) -> Iterator[tuple[Any, Connection]]:
    """A process that runs ``target(directory, pipe, *args)``; killed at the end if it is still there."""
    start: Any = multiprocessing.get_context(method)
    here, there = start.Pipe()
    process = start.Process(target=target, args=(segment._DIRECTORY, there, *args))
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join(TIMEOUT)
        assert process.exitcode is not None
        here.close()


def answer(pipe: Connection) -> Any:
    assert pipe.poll(TIMEOUT), "the child does not answer"
    return pipe.recv()


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(TIMEOUT)
    assert process.exitcode == -signal.SIGKILL


# Killed ------------------------------------------------------------------------------------------------------------


@BOTH
def test_what_a_killed_creator_leaves_is_swept(method: str, directory: str) -> None:
    with tz.open("cpu") as ctx, child(method, create) as (process, pipe):
        spec = answer(pipe)
        assert ctx.memory.shared.sweep() == (), "the living keep theirs"
        kill(process)
        assert names(directory) == [spec.name]
        made = ctx.memory.shared.allocate(8)  # sweeps
        assert names(directory) == [tz.SharedSpec.of(made).name]
        with pytest.raises(SharedMemoryError, match="has died"):
            ctx.memory.shared.attach(spec)
        made.close()


@BOTH
def test_whoever_has_attached_goes_on_and_turns_off_the_light(method: str, directory: str) -> None:
    with tz.open("cpu") as ctx, child(method, create) as (process, pipe):
        spec = answer(pipe)
        there = ctx.memory.shared.attach(spec)
        kill(process)
        with child(method, sweep) as (_, sweeper):
            assert answer(sweeper) == (), "somebody has it mapped"
        again = ctx.memory.shared.attach(spec)  # the name is good while anybody is there
        np.asarray(there[:])[:] += 5
        assert np.asarray(again[:]).tolist() == [15] * 10
        del again
        there.close()
        del there
        gc.collect()
        assert ctx.memory.shared.live == 0
        assert names(directory) == []


@BOTH
def test_a_killed_attacher_changes_nothing_for_the_creator(method: str, directory: str) -> None:
    with tz.open("cpu") as ctx:
        made = ctx.memory.shared.allocate(80, dtype="int64")
        spec = tz.SharedSpec.of(made)
        with child(method, attach, spec) as (process, pipe):
            assert answer(pipe) == 1
            kill(process)
        with child(method, sweep) as (_, sweeper):
            assert answer(sweeper) == ()
        assert names(directory) == [spec.name]
        assert np.asarray(made[:]).tolist() == [1] * 10
        made.close()
        assert names(directory) == []


def test_creator_and_attachers_all_killed(directory: str) -> None:
    with child("forkserver", create) as (creator, pipe):
        spec = answer(pipe)
        with child("forkserver", attach, spec) as (one, first), child("forkserver", attach, spec) as (two, second):
            assert sorted([answer(first), answer(second)])[1] == 12
            for process in (creator, one, two):
                kill(process)
                swept = segment.sweep()
            assert swept == (spec.name,)


@pytest.mark.parametrize("step", ["_lock", "_fill_file", "_map"])
def test_killed_while_making_one(directory: str, step: str) -> None:
    with child("forkserver", die_in, step) as (process, _):
        process.join(TIMEOUT)
        assert process.exitcode == -signal.SIGKILL
        [left] = names(directory)
        with tz.open("cpu") as ctx:
            if step != "_map":
                with pytest.raises(SharedMemoryError, match="not finished"):
                    ctx.memory.shared.attach(left)
            assert ctx.memory.shared.sweep() == (left,)


def test_a_forked_child_does_not_keep_the_name_of_a_killed_creator(directory: str) -> None:
    with child("forkserver", fork_and_stay) as (process, pipe):
        spec = answer(pipe)
        kill(process)
        # The child lets go of the name as soon as it runs, which a busy machine may put off.
        settle(lambda: segment.sweep() == (spec.name,), "the name is still held")
        pipe.send("are you there?")
        assert answer(pipe) == (True, "are you there?", [3] * 10)


# Ended -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning")
def test_a_worker_that_ends_without_closing_leaves_nothing(method: str, directory: str) -> None:
    with child(method, create) as (process, pipe):
        spec = answer(pipe)
        there = segment.attach(spec.name)
        pipe.send("end")
        process.join(TIMEOUT)
        assert process.exitcode == 0
        assert names(directory) == []
        there.close()


def test_a_worker_that_has_attached_and_ends_leaves_the_name_alone(directory: str) -> None:
    with tz.open("cpu") as ctx:
        made = ctx.memory.shared.allocate(80, dtype="int64")
        with child("forkserver", attach, tz.SharedSpec.of(made)) as (process, pipe):
            assert answer(pipe) == 1
            pipe.send("end")
            process.join(TIMEOUT)
            assert process.exitcode == 0
        assert names(directory) == [tz.SharedSpec.of(made).name]
        made.close()


def test_a_program_of_its_own_that_attaches_and_ends(directory: str) -> None:
    """Before Python 3.13 the resource tracker of such a program would remove the segment."""
    with tz.open("cpu") as ctx:
        made = ctx.memory.shared.allocate(80, dtype="int64")
        done = run_script(
            f"""
            import numpy as np, tazza as tz
            from tests.unit.shared_world import use
            use({directory!r})
            ctx = tz.context("cpu")
            there = ctx.memory.shared.attach({tz.SharedSpec.of(made).name!r})
            np.asarray(there)[:] = 8
            """
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert np.asarray(made[:]).tolist() == [8] * 10
        made.close()
        assert names(directory) == []


@pytest.mark.parametrize(("ending", "code"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_a_program_that_makes_some_and_ends_somehow(directory: str, ending: str, code: int) -> None:
    done = run_script(
        f"""
        import numpy as np, tazza as tz
        from tests.unit.shared_world import names, use
        use({directory!r})
        ctx = tz.context("cpu")
        kept = [ctx.memory.shared.allocate(80) for _ in range(3)]
        views = [np.asarray(one) for one in kept]
        print(len(names({directory!r})))
        {ending}
        """
    )
    assert (done.returncode, done.stdout) == (code, "3\n")
    assert names(directory) == []
