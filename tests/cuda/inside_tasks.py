"""Run by test_contract.py on emulated devices: launched functions, order, random numbers, threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import cuda_emulator
import numpy as np
import pytest

import tazza as tz
from tazza.errors import DeadlockError, UpstreamError, UsageError

TIMEOUT = 20.0


@pytest.fixture
def ctx() -> Iterator[tz.Context]:
    """A context on the first device."""
    with tz.open("cuda:0", seed=5) as opened:
        yield opened


def put(x: tz.Buffer, value: float) -> tz.Buffer:
    """Enqueue a fill in the task's own order."""
    tz.current().fill(x, value)
    return x


def doubled(x: tz.Buffer) -> tz.Buffer:
    """Enqueue two copies that put the buffer twice in a row."""
    here, count = tz.current(), x.shape[0]
    made: tz.Buffer = here.empty((2 * count,), x.dtype)
    here.copy(made[:count], x)
    here.copy(made[count:], x)
    return made


def test_a_function_sees_buffers_and_its_task_ends_with_the_queue(ctx: tz.Context) -> None:
    x = ctx.asarray(np.arange(1000, dtype="float32"))
    task = ctx.launch(doubled, x)
    assert (ctx.to_numpy(task) == np.tile(np.arange(1000), 2)).all()


def test_results_are_passed_on_between_streams_and_devices(ctx: tz.Context) -> None:
    with tz.open("cuda:1") as other, tz.open("cpu") as cpu:
        task = cpu.launch(lambda: np.arange(7, dtype="float32"), stream=cpu.new_stream())
        for step in range(4):
            here = (ctx, other)[step % 2]
            task = here.launch(doubled, task, stream=here.new_stream())
        assert (other.to_numpy(task.result(timeout=TIMEOUT)) == np.tile(np.arange(7), 16)).all()
        back = cpu.launch(lambda x: float(x.sum()), task, stream=cpu.new_stream())
        assert back.result(timeout=TIMEOUT) == 16 * 21


def test_a_failed_function_fails_those_that_take_it_and_nothing_else(ctx: tz.Context) -> None:
    def fails(x: tz.Buffer) -> None:
        tz.current().fill(x, 3.0)
        raise KeyError("broken")

    x = ctx.asarray(np.zeros(4, "float32"))
    failed = ctx.launch(fails, x)
    taker, unrelated = ctx.launch(put, failed, 1.0), ctx.launch(lambda: 7)
    assert unrelated.result(timeout=TIMEOUT) == 7
    with pytest.raises(UpstreamError, match="broken"):
        taker.result(timeout=TIMEOUT)
    assert ctx.to_numpy(x).tolist() == [3.0] * 4  # what it enqueued before it raised is done
    assert isinstance(failed.exception, KeyError)
    assert ctx.health


def test_a_function_behind_a_host_event_runs_when_that_has_happened(ctx: tz.Context) -> None:
    x, gate, stream = ctx.asarray(np.zeros(4, "float32")), tz.HostEvent(), ctx.new_stream()
    stream.wait(ctx.stream)
    stream.wait(gate)
    tasks = [ctx.launch(put, x, float(number), stream=stream) for number in range(5)]
    assert not any(task.is_done for task in tasks)
    gate.succeed()
    assert ctx.to_numpy(tasks[-1]).tolist() == [4.0] * 4


def test_what_another_thread_launches_meanwhile_comes_after(ctx: tz.Context) -> None:
    inside, go_on = threading.Event(), threading.Event()
    x = ctx.asarray(np.zeros(4, "float32"))
    seen: list[Any] = []

    def slow(x: tz.Buffer) -> None:
        tz.current().fill(x, 1.0)
        inside.set()
        assert go_on.wait(TIMEOUT)
        tz.current().fill(x, 2.0)

    first = threading.Thread(target=lambda: seen.append(ctx.launch(slow, x)))
    first.start()
    assert inside.wait(TIMEOUT)
    later = ctx.launch(put, x, 3.0)  # returns although the function still runs, and does not come between
    assert not later.is_done
    assert not ctx.stream.record().is_done
    go_on.set()
    first.join(TIMEOUT)
    assert ctx.to_numpy(later).tolist() == [3.0] * 4


def test_a_stream_is_not_over_while_something_deferred_behind_a_function_is_not(ctx: tz.Context) -> None:
    first, second, stream, order = tz.HostEvent(), tz.HostEvent(), ctx.new_stream(), list[int]()
    ran = threading.Event()
    x = ctx.asarray(np.zeros(4, "float32"))

    def several(x: tz.Buffer) -> None:
        order.append(1)
        for _ in range(300):  # more than lie between two markers of the stream
            tz.current().fill(x, 1.0)
        ran.set()

    stream.wait(first)
    ctx.launch(several, x, stream=stream)
    stream.wait(second)
    last = ctx.launch(order.append, 2, stream=stream)
    first.succeed()
    assert ran.wait(TIMEOUT)
    assert cuda_emulator.start().wait_idle()
    assert not stream.runner.is_idle
    assert not last.is_done
    second.succeed()
    stream.synchronize(timeout=TIMEOUT)
    assert order == [1, 2]


def test_memory_that_a_deferred_copy_uses_is_not_taken_by_the_function_that_runs(ctx: tz.Context) -> None:
    inside, go_on = threading.Event(), threading.Event()
    source, kept = ctx.asarray(np.full(1000, 7, "float32")), ctx.asarray(np.zeros(1000, "float32"))
    ctx.synchronize(timeout=TIMEOUT)

    def takes() -> None:
        inside.set()
        assert go_on.wait(TIMEOUT)
        for _ in range(20):
            tz.current().fill(tz.current().empty((1000,), "float32"), 9.0)

    thread = threading.Thread(target=ctx.launch, args=(takes,))
    thread.start()
    assert inside.wait(TIMEOUT)
    ctx.copy(kept, source)  # deferred behind the function
    source.close()
    go_on.set()
    thread.join(TIMEOUT)
    assert (ctx.to_numpy(kept) == 7).all()


def test_temporaries_of_a_function_are_not_taken_before_the_queue_is_done_with_them(ctx: tz.Context) -> None:
    made = ctx.empty((1000,), "float32")

    def temporary(x: tz.Buffer, value: float) -> None:
        here = tz.current()
        between = here.empty((1000,), "float32")
        here.fill(between, value)
        here.copy(x, between)

    streams = [ctx.new_stream() for _ in range(4)]
    results = [ctx.empty((1000,), "float32") for _ in range(40)]
    for number, result in enumerate(results):
        ctx.launch(temporary, result, float(number), stream=streams[number % 4])
    ctx.launch(temporary, made, -1.0)
    for number, result in enumerate(results):
        assert (ctx.to_numpy(result) == number).all()


def test_inside_a_function_the_queue_is_reached_at_once(ctx: tz.Context) -> None:
    x = ctx.asarray(np.zeros(4, "float32"))

    def through_the_driver(x: tz.Buffer) -> None:
        from cuda.bindings import driver

        here = tz.current()
        here.fill(x, 1.0)
        driver.cuMemsetD32Async(x.address, 0x40000000, 4, int(here.stream.native))  # type: ignore[call-overload]

    ctx.launch(through_the_driver, x).result(timeout=TIMEOUT)
    assert ctx.to_numpy(x).tolist() == [2.0] * 4


def test_a_function_may_not_wait_for_its_own_stream(ctx: tz.Context) -> None:
    x = ctx.asarray(np.zeros(4, "float32"))
    with pytest.raises(UsageError, match="only enqueue"):
        ctx.launch(lambda x: tz.current().to_numpy(x), x).result(timeout=TIMEOUT)
    with pytest.raises(DeadlockError):
        ctx.launch(lambda: tz.current().synchronize(timeout=TIMEOUT)).result(timeout=TIMEOUT)
    # What it has enqueued itself goes on meanwhile, so that waiting for that ends.
    ctx.launch(lambda: tz.current().launch(put, x, 1.0).result(timeout=TIMEOUT)).result(timeout=TIMEOUT)


def test_launches_nest(ctx: tz.Context) -> None:
    x, stream = ctx.asarray(np.zeros(4, "float32")), ctx.new_stream()

    def outer(x: tz.Buffer) -> list[tz.Task]:
        here = tz.current()
        first = here.launch(put, x, 1.0)
        return [first, here.launch(put, first, 2.0, stream=stream)]

    tasks = ctx.launch(outer, x).result(timeout=TIMEOUT)
    assert ctx.to_numpy(tasks[1]).tolist() == [2.0] * 4


def test_random_numbers_have_numpys_bits_inside_tasks_too(ctx: tz.Context) -> None:
    numpys = np.random.Generator(np.random.Philox(5))
    assert (ctx.to_numpy(ctx.random.random(5001)) == numpys.random(5001)).all()
    assert (ctx.to_numpy(ctx.random.random(7, dtype="float32")) == numpys.random(7, dtype="float32")).all()

    def draw() -> Any:
        return tz.current().random.standard_normal(99, dtype="float32")

    def drawn(opened: tz.Context) -> list[Any]:
        tasks = [opened.launch(draw, stream=opened.new_stream()) for _ in range(3)]
        return [opened.to_numpy(task.result(timeout=TIMEOUT)).tolist() for task in tasks]

    with tz.open("cpu", seed=5) as cpu:
        assert drawn(ctx) == drawn(cpu)


def test_a_draw_under_a_limit_needs_no_second_room(ctx: tz.Context) -> None:
    with tz.open("cuda:0", seed=5, memory_limit=100_000) as small:
        drawn = small.to_numpy(small.random.random(10_000))
    assert (drawn == np.random.Generator(np.random.Philox(5)).random(10_000)).all()


def test_many_threads_on_every_device_leave_nothing_behind() -> None:
    emulator, names = cuda_emulator.start(), [device.name for device in tz.devices("cuda")]
    before, failures = emulator.live_bytes(), list[BaseException]()
    contexts = [tz.context(name) for name in names]

    def work(number: int) -> None:
        try:
            draws = np.random.default_rng(number)
            ctx = contexts[number % len(contexts)]
            stream = ctx.new_stream()
            with ctx.on(stream):
                for _ in range(40):
                    values = draws.integers(0, 100, int(draws.integers(1, 3000))).astype("float32")
                    task = ctx.launch(doubled, ctx.asarray(values))
                    other = contexts[int(draws.integers(len(contexts)))]
                    again = other.launch(doubled, task, stream=other.new_stream())
                    assert (other.to_numpy(again.result(timeout=TIMEOUT)) == np.tile(values, 4)).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * TIMEOUT)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
    for one in contexts:
        one.close(timeout=TIMEOUT)
    assert emulator.wait_idle()
    for one in contexts:
        one.memory.trim()
        assert one.memory.stats().live == 0
    assert emulator.live_bytes() <= before
    assert not emulator.report()["n_hazards"]


def test_auto_is_never_an_emulated_device() -> None:
    assert tz.device("auto").kind != "cuda"
    assert all(device.info.emulated for device in tz.devices("cuda"))


def test_streams_go_to_cuda_core_and_come_from_it() -> None:
    from cuda.core import Device

    card = Device(0)
    card.set_current()
    theirs = card.create_stream()  # outlives the context that adopts it
    with tz.CUDAContext() as ctx:
        assert ctx.device_uuid == ctx.device.uuid
        x = ctx.asarray(np.zeros(4, "float32"))
        adopted = ctx.adopt_stream(theirs)
        adopted.wait(ctx.stream)
        ctx.fill(x, 5.0, stream=adopted)
        ctx.stream.wait(adopted)
        assert ctx.to_numpy(x).tolist() == [5.0] * 4
        native = ctx.stream.native
        assert int(card.create_stream(native).handle) == native
        ctx.close(timeout=TIMEOUT)
    with tz.open("cuda:1") as other, pytest.raises(UsageError, match="primary context"):
        other.adopt_stream(theirs)
