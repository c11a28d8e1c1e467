"""Borrowed memory is never touched out of bounds or after its release: the system would kill the child that does.

Each script runs in a process of its own, over memory between pages that nobody may touch; when it is released its own
pages cannot be touched either. The first tests show that the guard bites.
"""

from __future__ import annotations

import signal
import sys

import pytest

from tests.process.children import run_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages are set up by Linux calls")

_KILLED = {-signal.SIGSEGV, -signal.SIGBUS}
_START = """
import gc, threading, warnings
import numpy as np
import tazza as tz
from tests.borrow.producers import Claim, Producer
warnings.simplefilter("ignore", tz.errors.LeakWarning)
ctx = tz.context("cpu")
own = ctx.own_stream
"""


def run(script: str) -> tuple[int, str, str]:
    import textwrap

    done = run_script(_START + textwrap.dedent(script))
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "p = Producer(); p.memory.forbid(); print(p.floats[0])",
        "p = Producer(); print((p.floats[0], (type(p.floats).from_address(p.memory.end))[0]))",
        "p = Producer(nbytes=4096); print(type(p.floats).from_address(p.memory.address - 4)[0])",
        """
        p = Producer()
        with tz.borrow(p, stream=own) as x:
            address = x.address
        import ctypes
        ctypes.string_at(address, 1)  # what use after release comes to
        """,
    ],
    ids=["released", "behind", "before", "use after release"],
)
def test_the_guard_bites(script: str) -> None:
    code, out, _ = run(script)
    assert code in _KILLED, out


SAFE = {
    "every byte within bounds": """
        layouts = [((1024,), None, 0), ((32, 32), (1, 32), 0), ((1024,), (-1,), 4092), ((512,), (2,), 4)]
        for shape, strides, offset in layouts:
            p = Producer(Claim(shape=shape, strides=strides, byte_offset=offset), nbytes=4096)
            with tz.borrow(p, stream=own) as x:
                ctx.fill(x, 3.0)
                assert ctx.launch(np.sum, x).result() == 3.0 * x.nbytes / 4 or strides == (2,)
                with tz.open("sim:0") as sim:
                    if strides is None:
                        assert sim.to_numpy(sim.asarray(x)).sum() == 3 * 1024
            assert len(p.deleted) == 1
        print("fine")
    """,
    "a worker that is late": """
        import time
        p = Producer(nbytes=4096, claim=Claim(shape=(1024,)))
        worker, go = ctx.new_stream(), threading.Event()
        threading.Timer(0.05, go.set).start()
        with tz.borrow(p, stream=worker) as x:
            ctx.launch(go.wait, 10, stream=worker)
            ctx.launch(lambda v: v.fill(7), x, stream=worker)
            ctx.copy(x[:512], x[512:], stream=worker)
        assert len(p.deleted) == 1
        print("fine")
    """,
    "a timeout": """
        import os
        os.environ["TAZZA_WAIT_TIMEOUT"] = "0.01"
        p = Producer(nbytes=4096, claim=Claim(shape=(1024,)))
        worker, go = ctx.new_stream(), threading.Event()
        try:
            with tz.borrow(p, stream=worker) as x:
                ctx.launch(go.wait, 10, stream=worker)
                late = ctx.launch(lambda v: v.fill(7), x, stream=worker)
            raise SystemExit("it should have been too late")
        except tz.errors.WaitTimeoutError:
            pass
        assert not p.deleted
        go.set()
        late.result(10)
        assert p.floats[1023] == 7
        worker.synchronize(10)
        del x, late
        ctx.synchronize(10)
        assert len(p.deleted) == 1
        print("fine")
    """,
    "views that outlive everything": """
        p = Producer(nbytes=4096, claim=Claim(shape=(1024,)))
        p.floats[:] = [1.0] * 1024
        with tz.borrow(p, stream=own) as x:
            views = [np.asarray(x), np.from_dlpack(x), np.asarray(x[5:]), ctx.to_numpy(x)]
            views.append(ctx.asarray(x).reshape(32, 32))
            try:
                views.append(np.asarray(memoryview(x)))
            except TypeError:
                pass  # uncompiled on this Python: no buffer protocol
            task = ctx.launch(lambda v: v[::2], x)
        del x
        while views:
            ctx.synchronize()
            gc.collect()
            assert not p.deleted
            assert views.pop().sum() in (1024, 1019)
        assert task.result().sum() == 512
        assert not p.deleted
        del task
        ctx.synchronize()
        assert len(p.deleted) == 1
        print("fine")
    """,
    "views at exit": """
        p = Producer(nbytes=4096, claim=Claim(shape=(1024,)))
        with tz.borrow(p, stream=own) as x:
            view = np.asarray(x)
        import atexit
        atexit.register(lambda: print("fine" if view.sum() == 0 and not p.deleted else "wrong"))
    """,
    "an abandoned scope": """
        p = Producer(nbytes=4096, claim=Claim(shape=(1024,)))
        x = tz.borrow(p, stream=own).__enter__()
        gc.collect()
        ctx.synchronize()
        assert ctx.to_numpy(x).sum() == 0 and not p.deleted
        part = x[3:]
        del x
        ctx.synchronize()
        assert ctx.to_numpy(part).sum() == 0 and not p.deleted
        del part
        ctx.synchronize()
        assert len(p.deleted) == 1
        print("fine")
    """,
    "hostile capsules": """
        from tests.borrow.test_capsules import HOSTILE
        for claim, kind, message in HOSTILE.values():
            p = Producer(claim)
            p.memory.forbid()  # nothing of the data is looked at
            try:
                tz.borrow(p, stream=own).__enter__()
            except kind:
                continue
            raise SystemExit(f"taken: {claim}")
        print("fine")
    """,
    "many threads": """
        producers = [Producer(nbytes=4096, claim=Claim(shape=(1024,))) for _ in range(64)]
        def work(mine):
            worker = ctx.new_stream()
            for p in mine:
                with tz.borrow(p, stream=worker) as x:
                    ctx.launch(lambda v: v.fill(2), x, stream=worker)
                    ctx.fill(x[:7], 1.0, stream=worker)
        threads = [threading.Thread(target=work, args=(producers[i::8],)) for i in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join(20)
        ctx.synchronize(10)
        assert [len(p.deleted) for p in producers] == [1] * 64
        print("fine")
    """,
    "a lent pool block": """
        with tz.open("cpu") as other:
            b = ctx.allocate(4096, dtype="float32")
            with tz.borrow(b, stream=other.own_stream) as x:
                view = np.asarray(x)
                b.close()
                view[:] = 5
                rest = [ctx.allocate(4096) for _ in range(64)]
                for r in rest: ctx.fill(r, 0)
                assert view.sum() == 5 * 1024
            print("fine")
    """,
}


@pytest.mark.parametrize("name", SAFE)
def test_nothing_is_touched_too_late_or_out_of_bounds(name: str) -> None:
    code, out, err = run(SAFE[name])
    assert (code, out.strip()) == (0, "fine"), err


def test_the_deleter_does_not_run_in_a_forked_child() -> None:
    code, out, err = run(
        """
        import os
        p, inherited = Producer(nbytes=4096, claim=Claim(shape=(1024,))), Producer()
        worker = ctx.new_stream()
        loan, other = tz.borrow(p, stream=worker), tz.borrow(inherited, stream=own)
        kept = other.__enter__()
        with loan as x:
            pid = os.fork()
            if pid == 0:
                enter = tz.borrow(b"", stream=own).__enter__
                for use in (lambda: ctx.fill(x, 0), lambda: np.asarray(x), lambda: x[1:], enter):
                    try:
                        use()
                    except tz.errors.ForkedError:
                        continue
                    os._exit(3)
                loan.__exit__(None, None, None)
                loan.__exit__(None, None, None)
                del other, kept, x
                gc.collect()
                with tz.open("cpu") as fresh, tz.borrow(np.zeros(3)) as y:
                    fresh.fill(y, 1)
                os._exit(4 if p.deleted or inherited.deleted else 0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            ctx.fill(x, 1.0)
        other.__exit__(None, None, None)
        assert (len(p.deleted), len(inherited.deleted)) == (1, 1)
        print("fine")
        """
    )
    assert (code, out.strip()) == (0, "fine"), err


def test_what_is_left_at_exit_is_given_back() -> None:
    code, out, err = run(
        """
        p = Producer()
        real = p._delete
        p._delete = lambda managed: print("released", flush=True)
        with tz.borrow(p, stream=own) as x:
            view = np.asarray(x)
        del view, x
        assert not p.deleted
        """
    )
    assert (code, out.strip()) == (0, "released"), err
