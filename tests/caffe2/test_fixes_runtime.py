"""What Caffe2 got wrong about failure, initialisation, statistics, interfaces and random numbers.

The numbers are those of the list "Fix" in the project's notes on Caffe2.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.errors import ArgumentError, DeviceLostError, OutOfMemoryError, UnsupportedError
from tazza.spi import Capabilities
from tazza.testing import simulate
from tests.bad_input.health import TIMEOUT, Hold
from tests.process.children import run_script

DEVICES = pytest.mark.parametrize("device", ["cpu", "sim:0"])


@DEVICES
def test_fix_07_dropping_a_context_never_waits(device: str) -> None:
    """Every destruction of a CUDAContext synchronised its stream and only logged the errors that it found.

    Here a dropped context waits for nothing: its running task is still running afterwards, and its result is kept.
    """
    hold = Hold()
    ctx = tz.context(device)
    task = ctx.launch(hold.block, 5, stream=ctx.new_stream())
    assert hold.entered.wait(TIMEOUT)
    del ctx
    assert not task.is_done
    hold.release()
    assert task.result(TIMEOUT) == 5


def test_fix_07_a_sticky_error_names_its_origin_at_once_and_ever_after() -> None:
    """An asynchronous device error surfaced at some later call, without its origin, or only in the log.

    Here the first call after it raises DeviceLostError with the cause and what was in flight, and so does every later
    one, in every context of that device, while other devices go on.
    """
    hold = Hold()
    with simulate(2) as simulation, tz.open("sim:1") as well:
        contexts = [tz.context("sim:0") for _ in range(2)]
        contexts[0].launch(hold.block, label="conv1")
        assert hold.entered.wait(TIMEOUT)
        simulation.lose(0, "uncorrectable ECC error")
        uses: list[Callable[[tz.Context], Any]] = [
            lambda ctx: ctx.launch(lambda: None),
            lambda ctx: ctx.allocate(8),
            lambda ctx: ctx.synchronize(),
            lambda ctx: ctx.new_stream(),
        ]
        for ctx in contexts:
            for use in uses:
                with pytest.raises(DeviceLostError, match="uncorrectable ECC error") as caught:
                    use(ctx)
                assert caught.value.in_flight == ("conv1",)
            assert not ctx.health
            assert "uncorrectable ECC error" in str(ctx.health.cause)
        hold.release()
        assert well.launch(lambda: 1).result(TIMEOUT) == 1
        assert well.health
        for ctx in contexts:
            ctx.close(TIMEOUT)


@DEVICES
def test_fix_07_out_of_memory_is_an_error_of_its_own(device: str) -> None:
    """Running out of memory raised the same EnforceNotMet as everything else, with "CUDA error 2" in its text.

    Here it is typed, is a MemoryError, says how much was asked for, and names the largest holders.
    """
    with tz.open(device, memory_limit="1MiB") as ctx:
        kept = ctx.allocate(900 * 1024, label="activations")
        with pytest.raises(OutOfMemoryError, match="activations 921600 bytes") as caught:
            ctx.allocate(512 * 1024)
        assert isinstance(caught.value, MemoryError)
        assert (caught.value.requested, caught.value.limit) == (512 * 1024, 1024 * 1024)
        assert caught.value.holders[0][0] == "activations"
        del kept
        assert ctx.allocate(512 * 1024).nbytes == 512 * 1024


def test_fix_10_initialisation_is_lazy_runs_once_and_can_be_retried() -> None:
    """Caffe2's one-time initialisation marked itself done before it ran: a second thread came too early, and after a
    failure nobody ever tried again.

    Here a driver is made when a device is first asked for, once however many threads ask, and after a failure, which
    `backends()` explains, the next request tries again.
    """
    done = run_script(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import tazza as tz
        from tazza.core import registry
        calls, broken = [], [True]
        def create():
            calls.append(threading.get_ident())
            if broken[0]:
                raise OSError("driver is being updated")
            return registry.load("sim.driver")(registry.load("sim.settings")())
        tz.register_backend("flaky", create, hint="wait a minute")
        print(len(calls))
        for _ in range(2):
            try:
                tz.devices("flaky")
            except tz.errors.BackendUnavailableError as error:
                print(len(calls), error)
        print([(status.usable, status.reason) for status in tz.backends() if status.name == "flaky"])
        broken[0] = False
        meet = threading.Barrier(16)
        def ask(_):
            meet.wait(10)
            return len(tz.devices("flaky"))
        with ThreadPoolExecutor(16) as executor:
            print(set(executor.map(ask, range(16))), len(calls))
        """
    )
    reason = "OSError: driver is being updated"
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "0",
        f"1 backend 'flaky' is not usable: {reason} (wait a minute)",
        f"2 backend 'flaky' is not usable: {reason} (wait a minute)",
        f"[(False, '{reason}')]",
        "{2} 3",
    ]


def test_fix_10_no_compiled_in_limits_and_peers_only_where_there_are_some() -> None:
    """At most 16 GPUs, 10 device types and 32 streams fitted in, and a missing peer link made initialisation throw.

    Here 40 devices work, a hundred streams in one context are a hundred queues, and devices without peer access copy
    through the host.
    """
    with simulate(40, without={"peer_copy"}), tz.open("sim:3") as near, tz.open("sim:39") as far:
        assert len(tz.devices("sim")) == 40
        moved = far.asarray(near.asarray(np.arange(6)))
        assert far.to_numpy(moved).tolist() == list(range(6))
        streams = [near.new_stream() for _ in range(100)]
        tasks = [near.launch(lambda number=number: number, stream=stream) for number, stream in enumerate(streams)]
        assert tz.wait(tasks, TIMEOUT) == list(range(100))
        assert len({id(stream.native) for stream in streams}) == 100


@DEVICES
@pytest.mark.parametrize("pool", ["caching", "direct"])
def test_fix_11_statistics_count_what_succeeded(device: str, pool: str) -> None:
    """Counters rose before the allocation and stayed there when it failed, peaks could not be reset, pools other than
    the default were invisible, and a flag at import decided whether anything was counted at all.

    Here a failed allocation changes nothing but `num_ooms`, on every pool, and peaks can be reset.
    """
    with tz.open(device, memory_limit=10_240, pool=pool) as ctx:
        before = ctx.memory.stats()
        assert (before.live, before.peak, before.num_ooms) == (0, 0, 0)
        kept = ctx.allocate(6000)
        with pytest.raises(OutOfMemoryError):
            ctx.allocate(6000)
        after = ctx.memory.stats()
        assert (after.live, after.requested_bytes, after.allocations, after.num_ooms) == (6016, 6000, 1, 1)
        del kept
        ctx.synchronize(TIMEOUT)
        ctx.memory.reset_peak()
        assert (ctx.memory.stats().live, ctx.memory.stats().peak, ctx.memory.stats().frees) == (0, 0, 1)
        ctx.memory.limit = 20_480  # configuration belongs to the object and may change while it is used
        assert ctx.allocate(20_000).nbytes == 20_000
        with pytest.raises(AttributeError):
            after.live = 0  # type: ignore[misc]


@DEVICES
def test_fix_11_statistics_are_one_snapshot(device: str) -> None:
    """Current and peak were read in two critical sections. Here the figures of one snapshot always fit together."""
    over, odd = threading.Event(), list[tz.MemoryStats]()
    with tz.open(device) as ctx:

        def churn() -> None:
            while not over.is_set():
                kept = [ctx.allocate(1000) for _ in range(4)]
                kept.clear()

        threads = [threading.Thread(target=churn) for _ in range(3)]
        for thread in threads:
            thread.start()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(300):
                stats = ctx.memory.stats()
                fits = 0 <= stats.allocated_bytes <= stats.live <= stats.peak and stats.requested_bytes <= stats.live
                if not (fits and stats.frees <= stats.allocations):
                    odd.append(stats)
        finally:
            sys.setswitchinterval(interval)
            over.set()
            for thread in threads:
                thread.join(TIMEOUT)
        assert not odd
        assert ctx.memory.stats().live == 0


@pytest.mark.parametrize("error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_fix_15_no_scope_swallows_an_exception(error: BaseException) -> None:
    """Caffe2's Python scopes returned from a ``finally``, which ate whatever was raised inside.

    Here every scope lets it pass, unchanged, and restores what was there before.
    """
    ctx, sim = tz.context("cpu"), tz.context("sim:0")
    scopes: list[Callable[[], Any]] = [
        lambda: ctx,
        lambda: sim,
        lambda: ctx.on(ctx.new_stream()),
        lambda: sim.on(sim.new_stream()),
        lambda: tz.open("cpu"),
        lambda: tz.limit_threads(1),
    ]
    for scope in scopes:
        with pytest.raises(type(error)) as caught:
            with scope():
                raise error
        assert caught.value is error
        with pytest.raises(tz.errors.NoCurrentContextError):
            tz.current()
    for made in (ctx, sim):
        made.close(TIMEOUT)


def test_fix_15_every_device_has_the_same_interface() -> None:
    """A build without CUDA had stubs whose signatures differed from the real ones.

    Here the context of every device is the same class or adds to it, and overrides nothing that a user calls.
    """
    with tz.open("cpu") as cpu, tz.open("sim:0") as sim:
        public = {name for name in dir(tz.Context) if not name.startswith("_")}
        for ctx in (cpu, sim):
            assert isinstance(ctx, tz.Context)
            for name in public:
                ours = inspect.getattr_static(type(ctx), name)
                assert ours is inspect.getattr_static(tz.Context, name), f"{type(ctx).__name__}.{name} is another one"


def test_fix_16_abilities_are_declared_by_the_device_and_kept() -> None:
    """Whether an operator could run asynchronously was a static member of its context class, unseen by the interface.

    Here each device declares its abilities in one frozen value, two devices of a kind may differ between drivers, and
    what is not declared is refused by name.
    """
    names = set(Capabilities._fields)
    for device in tz.devices():
        assert {name for name in names if hasattr(device.capabilities, name)} == names
        with pytest.raises(AttributeError):
            device.capabilities.queues = True  # type: ignore[misc]
    with simulate(1, without={"timing", "float64"}), tz.open("sim:0") as ctx:
        assert not ctx.device.capabilities.timing
        with pytest.raises(UnsupportedError, match=r"no event times; time synchronize\(\)"):
            ctx.stream.record(timing=True)
        with pytest.raises(UnsupportedError, match="no float64; the nearest is float32"):
            ctx.empty(3, "float64")
    with tz.open("sim:0") as ctx:
        start, end = ctx.stream.record(timing=True), ctx.stream.record(timing=True)
        end.synchronize(TIMEOUT)
        assert end.seconds_since(start) >= 0


@DEVICES
def test_fix_17_seeds_are_whole_numbers_of_any_size(device: str) -> None:
    """Seeds were 32 bits, kept in a signed int: those from 2**31 on were sign-extended.

    Here every non-negative integer is a seed of its own, and it is NumPy's.
    """
    drawn = {}
    for seed in (0, 2**31, 2**31 + 2**32, 2**63, 2**64 - 1, 2**64, 2**200):
        with tz.open(device, seed=seed) as ctx:
            drawn[seed] = ctx.to_numpy(ctx.random.random(8)).tolist()
            assert drawn[seed] == np.random.Generator(np.random.Philox(seed)).random(8).tolist()
    assert len({tuple(words) for words in drawn.values()}) == len(drawn)
    with pytest.raises(ArgumentError, match="seed: got -1"):
        tz.context(device, seed=-1)


@DEVICES
def test_fix_17_state_is_saved_and_streams_are_split(device: str) -> None:
    """There was no way to read or set a generator's state, and none to make independent ones.

    Here the state goes back and forth, and the parts of a split differ from each other and from the whole.
    """
    with tz.open(device, seed=9) as ctx:

        def draw(generator: tz.Generator) -> tuple[float, ...]:
            return tuple(ctx.to_numpy(generator.random(6)).tolist())

        draw(ctx.random)
        state = ctx.random.state()
        continued = draw(ctx.random)
        ctx.random.restore(state)
        assert draw(ctx.random) == continued
        ctx.random.restore(state)
        parts = [draw(part) for part in ctx.random.split(5)]
        assert len({*parts, draw(ctx.random), draw(ctx.random.for_purpose("dropout"))}) == 7


@DEVICES
def test_fix_17_draws_from_many_threads_never_overlap(device: str) -> None:
    """A cuRAND generator was re-bound to the current stream on each call: not thread-safe, unordered across streams.

    Here each draw reserves its numbers: what eight threads drew is, together, what one would have drawn.
    """
    with tz.open(device, seed=4) as ctx:
        drawn: list[Any] = []
        start = threading.Barrier(8)

        def draw() -> None:
            start.wait(TIMEOUT)
            drawn.extend([ctx.random.random(25) for _ in range(10)])

        threads = [threading.Thread(target=draw) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
        together = np.sort(np.concatenate([ctx.to_numpy(part) for part in drawn]))
        alone = np.sort(np.random.Generator(np.random.Philox(4)).random(2000))
        assert together.tolist() == alone.tolist()
