"""NumPy's arrays inside contexts: charged to what is current, refused by limits, freed anywhere."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest

import tazza as tz
from tazza.core.patience import Waiter
from tazza.hot import HOOKED, host_blocks, listen, settle_frees
from tazza.hot.hooks import Operation

pytestmark = pytest.mark.skipif(not HOOKED, reason="uncompiled: NumPy's arrays are declared to be outside")


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    with tz.context("cpu") as made:
        yield made
    made.close()


def test_the_device_says_that_arrays_are_hooked(ctx: tz.Context) -> None:
    assert ctx.device.capabilities.array_allocations == "hooked"


def test_arrays_count_where_they_are_made_until_they_die(ctx: tz.Context) -> None:
    before = ctx.account.live
    a, b, c = np.empty(100), np.zeros((10, 10), np.float32), np.arange(7, dtype=np.int16)
    assert ctx.account.live - before == 800 + 400 + 14
    assert sorted(block.nbytes for block in host_blocks() if block.account is ctx.account)[-3:] == [14, 400, 800]
    view = a[::2]
    del a, c
    assert ctx.account.live - before == 800 + 400
    del view, b
    assert ctx.account.live == before


def test_contents_and_growth_are_numpys_own(ctx: tz.Context) -> None:
    assert not np.zeros(1 << 16).any()
    grown = np.fromiter(iter(range(10_000)), np.int64)
    assert grown.tolist() == list(range(10_000))
    assert ctx.account.live == grown.nbytes
    grown.resize(20_000, refcheck=False)
    assert ctx.account.live == 160_000
    assert grown[:10_000].tolist() == list(range(10_000))
    assert not grown[10_000:].any()
    grown.resize(10, refcheck=False)
    assert (ctx.account.live, ctx.account.blocks) == (80, 1)
    assert np.empty(0).nbytes == 0


def test_outside_of_every_scope_nothing_is_charged() -> None:
    with tz.open("cpu") as ctx:
        inside = np.ones(10)
    outside = np.ones(10)
    assert ctx.account.live == 80
    with ctx_closed_is_no_scope(ctx):
        del inside
    assert ctx.account.live == 0
    assert outside.sum() == 10


def ctx_closed_is_no_scope(ctx: tz.Context) -> tz.open:
    assert ctx.is_closed
    return tz.open("sim:0")


def test_the_innermost_context_on_the_host_is_charged(ctx: tz.Context) -> None:
    with tz.open("cpu") as inner:
        array = np.ones(10)
        assert (inner.account.live, ctx.account.live) == (80, 0)
        with tz.open("sim:0") as sim:
            other = np.ones(5)
            assert (inner.account.live, sim.account.live) == (120, 0)
    del array, other


def test_new_threads_start_without_and_tasks_carry_theirs(ctx: tz.Context) -> None:
    kept: list[np.ndarray] = []

    def work() -> None:
        kept.append(np.ones(10))

    for function, expected in ((work, 0), (tz.carry(work), 80)):
        thread = threading.Thread(target=function)
        thread.start()
        thread.join(10)
        assert ctx.account.live == expected
    with ctx.memory.budget(None, name="task") as budget:
        task = ctx.launch(np.ones, 100, stream=ctx.new_stream())
        assert task.result(timeout=10).sum() == 100
    assert budget.live == 800
    del task
    gc.collect()
    assert (budget.live, ctx.account.live) == (0, 80)


def test_asyncio_tasks_are_charged_apart() -> None:
    async def request(ctx: tz.Context, count: int, other: asyncio.Event) -> int:
        with ctx:
            mine = np.ones(count)
            other.set()
            await asyncio.sleep(0)
            return ctx.account.live - mine.nbytes

    async def main() -> tuple[int, int]:
        first, second = tz.context("cpu"), tz.context("cpu")
        with first, second:
            pass
        return await asyncio.gather(request(first, 10, asyncio.Event()), request(second, 20, asyncio.Event()))

    assert tuple(asyncio.run(main())) == (0, 0)


def test_a_refusal_is_numpys_inside_and_ours_outside() -> None:
    ctx = tz.context("cpu", memory_limit=10_000)
    with pytest.raises(tz.OutOfMemoryError, match=r"no room for 8000 bytes.*limit of 10000") as caught:
        with ctx:
            kept = np.ones(500)
            with pytest.raises(MemoryError, match="1000") as numpys:
                np.ones(1000)
            assert not isinstance(numpys.value, tz.OutOfMemoryError)
            np.empty(1000)
    error = caught.value
    assert (error.requested, error.limit, error.live) == (8000, 10_000, 4000)
    assert error.holders == (("context on cpu:0 (numpy arrays)", 4000, 1),)
    assert "test_handler.py" in error.site[0]
    assert "test_a_refusal_is_numpys_inside_and_ours_outside" in error.site[0]
    assert isinstance(error.__cause__, MemoryError)
    assert error.__cause__.__traceback__ is None
    assert "test_handler.py" in error.__cause__.__notes__[0]
    with ctx:
        assert np.empty(700).nbytes == 5600
    assert ctx.account.ooms == 2
    del kept


def test_a_swallowed_refusal_does_not_explain_anothers_error() -> None:
    ctx = tz.context("cpu", memory_limit=1000)
    with pytest.raises(MemoryError) as caught:
        with ctx:
            with pytest.raises(MemoryError):
                np.empty(1000)
            raise np._core._exceptions._ArrayMemoryError((5,), np.dtype("f8"))  # type: ignore[attr-defined]
    assert not isinstance(caught.value, tz.OutOfMemoryError)
    assert "with a limit of 1000 B" in caught.value.__notes__[0]


def test_a_caught_error_holds_nothing_alive() -> None:
    """Peers keep the memory of the frames below (facts of the survey: M8)."""
    gc.disable()
    try:
        ctx = tz.context("cpu", memory_limit=1 << 20)

        def program() -> None:
            held = [np.ones(1000) for _ in range(10)]
            while True:
                held.append(np.ones(1000))

        saved: list[BaseException] = []
        try:
            with ctx:
                program()
        except tz.OutOfMemoryError as error:
            saved.append(error)
        assert (ctx.account.live, ctx.account.blocks) == (0, 0)
        buffers = []
        with pytest.raises(tz.OutOfMemoryError):
            with tz.open(ctx.spec) as other:

                def fill() -> None:
                    mine = []
                    while True:
                        mine.append(other.allocate(1 << 16))

                buffers.append(1)
                fill()
        assert other.memory.stats().live == 0
        assert len(saved) == 1
    finally:
        gc.enable()


def test_a_handler_that_somebody_else_set_is_left_alone() -> None:
    code = """
    import numpy as np, tazza as tz
    from numpy._core.multiarray import get_handler_name
    assert get_handler_name() == "default_allocator"
    ctx = tz.context("cpu")
    assert get_handler_name() == "default_allocator", "making a context changes nothing"
    before = np.ones(3)
    with ctx:
        assert get_handler_name() == "tazza"
    assert get_handler_name() == "tazza"
    assert get_handler_name(before) == "default_allocator"
    tz.use(ctx)
    x = np.ones(10)
    assert ctx.account.live == 80
    tz.use(None)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_listeners_hear_of_arrays_and_of_their_end(ctx: tz.Context) -> None:
    heard: list[Operation] = []
    stop = listen(heard.append)
    try:
        array = np.ones(10)
        address = array.__array_interface__["data"][0]
        del array
        settle_frees()
    finally:
        stop()
    mine = [operation for operation in heard if operation.nbytes == 80 and operation.subject.library == "numpy"]
    assert [operation.kind for operation in mine] == ["allocate", "free"]
    assert mine[0].subject.address == mine[1].subject.address == address
    assert mine[0].subject.account is ctx.account


@pytest.mark.parametrize("worker", [False, True])
def test_a_refusal_leaves_a_task_as_ours(worker: bool) -> None:
    with tz.open("cpu", memory_limit=10_000) as ctx:
        stream = ctx.new_stream() if worker else ctx.stream
        task = ctx.launch(np.ones, 2000, stream=stream)
        with pytest.raises(tz.OutOfMemoryError, match="no room for 16000 bytes") as caught:
            task.result(timeout=20)
        assert isinstance(caught.value.__cause__, MemoryError)


def test_numpy_frees_what_a_failing_call_made_while_its_error_is_set() -> None:
    with pytest.raises(tz.OutOfMemoryError) as caught:
        with tz.open("cpu", memory_limit="4MiB") as ctx, ctx.memory.record():
            waiter = Waiter()
            try:
                np.linalg.svd(np.ones((500, 500)))
            finally:
                waiter.close()
    assert caught.value.limit == 4 << 20
    assert isinstance(caught.value.__cause__, MemoryError)


def test_relief_runs_inside_numpys_allocator() -> None:
    ctx = tz.context("cpu", memory_limit=10_000)
    cache = [np.empty(0)]
    with ctx:
        cache = [np.ones(1000)]
        asked: list[int] = []

        def drop(nbytes: int) -> None:
            asked.append(nbytes)
            np.ones(10)  # may allocate itself, without relief of its own
            cache.clear()

        ctx.memory.on_pressure(drop)
        assert np.ones(1000).sum() == 1000
        assert asked == [8000]


def test_relief_that_fails_is_reported_and_the_array_refused() -> None:
    ctx = tz.context("cpu", memory_limit=10_000)

    def broken(nbytes: int) -> None:
        raise ValueError("no")

    with ctx:
        ctx.memory.on_pressure(broken)
        with pytest.warns(tz.errors.CleanupWarning, match="broken.*ValueError: no"), pytest.raises(MemoryError):
            np.ones(2000)


def test_an_exception_in_flight_survives_an_allocation_in_a_finaliser() -> None:
    with tz.open("cpu", memory_limit=1000) as ctx:

        class Noisy:
            def __del__(self) -> None:
                try:
                    np.ones(1000)
                except MemoryError:
                    seen.append(ctx.account.live)

        seen: list[int] = []

        def fails() -> None:
            noisy = Noisy()
            del noisy
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            fails()
        assert seen == [0]


@pytest.mark.timeout(110)
def test_a_hundred_thousand_destructors_inside_the_allocator_and_in_other_threads_do_not_deadlock() -> None:
    with tz.open("cpu", memory_limit="64MiB") as ctx:
        died = [0]

        class Cyclic:
            def __init__(self) -> None:
                self.me, self.array, self.buffer = self, np.ones(4), ctx.allocate(64)
                weakref.finalize(self, np.ones, 2)

            def __del__(self) -> None:
                died[0] += 1
                np.ones(3)
                ctx.allocate(32)

        def work() -> None:
            with ctx:
                for _ in range(12_500):
                    Cyclic()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive(), "deadlock"
        gc.collect()
        assert died == [100_000]
        assert ctx.memory.stats().live == 0


def test_destructors_at_exit_do_not_deadlock() -> None:
    code = """
    import numpy as np, tazza as tz
    ctx = tz.context("cpu", memory_limit="8MiB").__enter__()
    class Late:
        def __init__(self): self.me, self.x = self, np.ones(8)
        def __del__(self):
            try: np.ones(4)
            except MemoryError: pass
    kept = [Late() for _ in range(10_000)]
    arrays = [np.ones(8) for _ in range(10_000)]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], timeout=60, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")
def test_a_program_that_would_take_eight_gibibytes_stays_small() -> None:
    code = """
    import numpy as np, tazza as tz
    def size(key):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) // 1024
    def program():
        kept = []
        for _ in range(256):
            kept.append(np.ones(4 << 20))  # 32 MiB
    try:
        with tz.open("cpu", memory_limit="512MiB") as ctx:
            try:
                program()
            except MemoryError as error:
                assert type(error).__module__.startswith("numpy"), type(error)
                raise
    except tz.OutOfMemoryError as error:
        assert error.limit == 512 << 20
        assert error.holders[0][1] == 512 << 20, error.holders
        assert "in program" in str(error.__cause__.__notes__) and error.site[0].endswith("program"), error.site
    else:
        raise SystemExit("the limit did not bind")
    assert size("VmHWM") < 700, size("VmHWM")
    with tz.open("cpu", memory_limit="512MiB") as ctx:
        assert np.ones(4 << 20).sum() == 4 << 20
    print(size("VmHWM"), size("VmRSS"))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], timeout=60, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
