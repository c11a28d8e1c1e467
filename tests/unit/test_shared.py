"""Shared memory inside one process: layouts, ownership, accounts, forks and threads."""

from __future__ import annotations

import gc
import multiprocessing.resource_tracker
import multiprocessing.shared_memory
import os
import pickle
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core import segment
from tazza.errors import ArgumentError, ClosedError, ForkedError, SharedMemoryError
from tazza.testing import simulate
from tests.process.children import in_fork
from tests.unit.shared_world import ctx, directory, names, needs_names, numbers, read

__all__ = ["ctx", "directory"]

pytestmark = needs_names

PAGE = segment.PAGE
TIMEOUT = 20.0


# What it is --------------------------------------------------------------------------------------------------------


def test_two_mappings_see_the_same_bytes(ctx: tz.Context, directory: str) -> None:
    made = ctx.memory.shared.allocate(80, dtype="float64", shape=(2, 5), label="table")
    assert not np.asarray(made).any(), "fresh memory is zero"
    spec = pickle.loads(pickle.dumps(tz.SharedSpec.of(made)))
    assert names(directory) == [spec.name]
    again = ctx.memory.shared.attach(spec)
    assert (again.dtype, again.shape, again.strides, again.nbytes) == (made.dtype, (2, 5), (40, 8), 80)
    assert (again.label, again.device.memory_domain) == ("table", "host")
    assert again.address != made.address
    np.asarray(again)[1] = 7
    assert np.asarray(made)[1].tolist() == [7] * 5
    again.close()
    made.close()
    assert names(directory) == []


def test_a_name_alone_is_enough(ctx: tz.Context) -> None:
    made = numbers(ctx)
    whole = ctx.memory.shared.attach(tz.SharedSpec.of(made[3:]).name)
    assert (read(whole), whole.dtype) == (list(range(10)), np.dtype("int64"))


def test_slices_and_views_travel(ctx: tz.Context) -> None:
    made = numbers(ctx)
    for part in (made[2:5], made[::3], made[::-2], made.view("uint8", (16,)), made.view("int32", (5, 2), (16, 4))):
        there = ctx.memory.shared.attach(tz.SharedSpec.of(part))
        assert (there.dtype, there.shape, there.strides) == (part.dtype, part.shape, part.strides)
        assert read(there) == read(part)
        further = tz.SharedSpec.of(there[1:])  # an attached buffer can be passed on
        assert read(ctx.memory.shared.attach(further)) == read(part[1:])


def test_plain_bytes_and_no_bytes(ctx: tz.Context) -> None:
    for nbytes in (0, 1, PAGE, PAGE + 1):
        made = ctx.memory.shared.allocate(nbytes)
        there = ctx.memory.shared.attach(tz.SharedSpec.of(made))
        assert (made.nbytes, there.nbytes, there.dtype, there.shape) == (nbytes, nbytes, None, (nbytes,))
        assert bytes(np.asarray(there)) == bytes(nbytes)


@pytest.mark.parametrize(
    "dtype", ["bool", "<M8[ns]", ">i4", "complex64", "U5", [("a", "<i4"), ("b", "<f8", (2,))], [("n", [("m", "u1")])]]
)
def test_dtypes_travel(ctx: tz.Context, dtype: Any) -> None:
    made = ctx.memory.shared.allocate(np.dtype(dtype).itemsize * 3, dtype=dtype)
    there = ctx.memory.shared.attach(tz.SharedSpec.of(made).name)
    assert (there.dtype, there.shape) == (np.dtype(dtype), (3,))


def test_launches_and_copies_use_it(directory: str) -> None:
    with tz.open("cpu") as cpu, tz.open("sim:0") as sim:
        made = numbers(cpu)
        there = sim.memory.shared.attach(tz.SharedSpec.of(made))
        assert cpu.launch(lambda x: int(x.sum()), there, stream=cpu.new_stream()).result(TIMEOUT) == 45
        on_device = sim.allocate(80, dtype="int64")
        sim.copy(on_device, there)
        sim.copy(there[:5], on_device[5:])
        assert read(there) == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9]  # waits for the stream, which `made` knows nothing of
        assert read(made) == read(there)
        there.close()
        made.close()
        del there, made
        assert cpu.memory.shared.live == sim.memory.shared.live == 0


def test_it_is_what_multiprocessing_opens() -> None:
    with tz.open("cpu") as ctx:
        made = numbers(ctx)
        name = tz.SharedSpec.of(made).name
        theirs = multiprocessing.shared_memory.SharedMemory(name)
        try:
            assert theirs.buf is not None
            assert np.frombuffer(theirs.buf, "int64", 10, PAGE).tolist() == list(range(10))
        finally:
            theirs.close()
            multiprocessing.resource_tracker.unregister(f"/{name}", "shared_memory")
        made.close()
        assert not Path("/dev/shm", name).exists()


def test_somebody_elses_tracker_may_remove_the_name_first(ctx: tz.Context, directory: str) -> None:
    made = numbers(ctx)
    os.unlink(Path(directory, tz.SharedSpec.of(made).name))
    assert read(made) == list(range(10))
    made.close()


# Ownership ---------------------------------------------------------------------------------------------------------


def test_the_memory_stays_with_those_who_have_it(ctx: tz.Context, directory: str) -> None:
    made = numbers(ctx)
    spec, there = tz.SharedSpec.of(made), ctx.memory.shared.attach(tz.SharedSpec.of(made))
    made.close()
    assert names(directory) == []
    assert read(there) == list(range(10))
    with pytest.raises(SharedMemoryError, match="creator has closed it, or has died"):
        ctx.memory.shared.attach(spec)


def test_closing_removes_the_name_while_arrays_still_see_the_memory(ctx: tz.Context, directory: str) -> None:
    made = numbers(ctx)
    array = np.asarray(made)
    made.close()
    made.close()
    assert names(directory) == []
    assert array.tolist() == list(range(10))
    assert ctx.memory.shared.live == 2 * PAGE
    del array, made


def test_dropping_it_is_enough(ctx: tz.Context, directory: str) -> None:
    made = numbers(ctx)
    del made
    made = ctx.memory.shared.allocate(8)  # the next call on the pool takes the dropped one back
    assert names(directory) == [tz.SharedSpec.of(made).name]


def test_attachers_do_not_remove_it(ctx: tz.Context, directory: str) -> None:
    made = numbers(ctx)
    for _ in range(3):
        there = ctx.memory.shared.attach(tz.SharedSpec.of(made))
        there.close()
    assert names(directory) == [tz.SharedSpec.of(made).name]


def test_the_context_may_be_closed_before(directory: str) -> None:
    with tz.open("cpu") as ctx:
        made = numbers(ctx)
    assert read(made) == list(range(10))
    with pytest.raises(ClosedError):
        ctx.memory.shared.attach(tz.SharedSpec.of(made))
    with pytest.raises(ClosedError):
        ctx.memory.shared.allocate(8)
    assert ctx.memory.shared.live == 2 * PAGE
    made.close()


def test_use_after_close(ctx: tz.Context) -> None:
    made = numbers(ctx)
    made.close()
    target = ctx.allocate(80, dtype="int64")
    for use in (
        lambda: np.asarray(made),
        lambda: made[:1],
        lambda: tz.SharedSpec.of(made),
        lambda: ctx.fill(made, 0),
        lambda: ctx.copy(target, made),
        lambda: ctx.copy(made, target),
    ):
        with pytest.raises(ClosedError):
            use()


def test_no_descriptor_and_no_mapping_is_left(directory: str) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count(directory)

    with tz.open("cpu") as ctx:
        numbers(ctx).close()
        assert ctx.memory.shared.reserved == 0
        before = held()
        kept = [numbers(ctx) for _ in range(5)]
        there = [ctx.memory.shared.attach(tz.SharedSpec.of(one)) for one in kept]
        assert held() == (before[0] + 10, before[1] + 10)
        for one in kept + there:
            one.close()
        del kept, there, one
        assert ctx.memory.shared.reserved == 0
        assert held() == before


# Reading only ------------------------------------------------------------------------------------------------------


def test_a_reader_cannot_write(ctx: tz.Context) -> None:
    made = numbers(ctx)
    there = ctx.memory.shared.attach(tz.SharedSpec.of(made), readonly=True)
    array = np.asarray(there)
    assert array.tolist() == list(range(10))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ArgumentError, match="writable"):
        ctx.copy(there, made)
    spec = tz.SharedSpec.of(there)
    assert spec.readonly
    assert np.asarray(ctx.memory.shared.attach(spec)).flags.writeable is False
    with pytest.raises(ArgumentError, match="readonly"):
        ctx.memory.shared.attach(spec, readonly=False)
    writer = ctx.memory.shared.attach(replace(spec, readonly=False))
    np.asarray(writer)[0] = 9
    assert array[0] == 9
    del array, writer


def test_the_system_refuses_a_reader_who_insists(directory: str) -> None:
    with tz.open("cpu") as ctx:
        made = numbers(ctx)
        there = ctx.memory.shared.attach(tz.SharedSpec.of(made), readonly=True)
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if directory in line]
        assert {int(line[0].split("-")[0], 16): line[1] for line in lines} == {
            made.address - PAGE: "rw-s",
            there.address - PAGE: "r--s",
        }
        there.close()
        made.close()


# Accounts ----------------------------------------------------------------------------------------------------------


def test_every_mapping_is_charged_in_whole_pages(ctx: tz.Context) -> None:
    made = ctx.memory.shared.allocate(PAGE + 1, label="table")
    assert ctx.memory.shared.live == ctx.memory.shared.reserved == ctx.memory.stats().live == 3 * PAGE
    there = ctx.memory.shared.attach(tz.SharedSpec.of(made))
    assert ctx.memory.holders()[0] == ("table", 6 * PAGE, 2)
    there.close()
    assert ctx.memory.stats().live == 3 * PAGE


def test_a_limit_binds_it_and_leaves_nothing_behind(directory: str) -> None:
    with tz.open("cpu") as ctx, tz.open("cpu", memory_limit=4 * PAGE) as small:
        large = ctx.memory.shared.allocate(4 * PAGE)
        kept = small.memory.shared.allocate(1, label="kept")
        before = names(directory)
        uses: list[Callable[[], object]] = [
            lambda: small.memory.shared.allocate(2 * PAGE),
            lambda: small.memory.shared.attach(tz.SharedSpec.of(large)),
        ]
        for use in uses:
            with pytest.raises(tz.OutOfMemoryError) as caught:
                use()
            assert (caught.value.limit, caught.value.holders) == (4 * PAGE, (("kept", 2 * PAGE, 1),))
        assert names(directory) == before
        assert (small.memory.shared.live, kept.nbytes) == (2 * PAGE, 1)
        large.close()
        kept.close()


def test_what_the_machine_has_not_is_refused(ctx: tz.Context, directory: str) -> None:
    with pytest.raises(tz.OutOfMemoryError, match="shm-size"):
        ctx.memory.shared.allocate(2**50)
    assert names(directory) == []


def test_sharing_from_inside_relief(directory: str) -> None:
    """Relief runs code of users; what they share there is not mixed up with what was asked for."""
    with tz.open("cpu", memory_limit=8 * PAGE) as ctx:
        kept: list[tz.Buffer] = [ctx.memory.shared.allocate(5 * PAGE)]
        nested: list[tz.Buffer] = []

        class Cache:
            def __init__(self) -> None:
                self.itself = self

            def __del__(self) -> None:
                kept.clear()
                nested.append(ctx.memory.shared.allocate(1, label="nested"))

        Cache()
        outer = ctx.memory.shared.allocate(3 * PAGE, label="outer")
        assert (outer.nbytes, outer.label, nested[0].nbytes, nested[0].label) == (3 * PAGE, "outer", 1, "nested")
        assert tz.SharedSpec.of(outer).nbytes == 3 * PAGE
        outer.close()
        nested[0].close()


# Forks and threads -------------------------------------------------------------------------------------------------


def test_a_forked_child_is_nobody_who_is_there(directory: str) -> None:
    with tz.open("cpu") as ctx:
        made = numbers(ctx)
        spec = tz.SharedSpec.of(made)
        view = np.asarray(made[:])
        there = ctx.memory.shared.attach(spec)

        def child() -> None:
            for use in (
                lambda: made[:1],
                lambda: tz.SharedSpec.of(made),
                lambda: ctx.memory.shared.allocate(8),
                lambda: ctx.memory.shared.attach(spec),
                lambda: ctx.memory.shared.sweep(),
            ):
                with pytest.raises(ForkedError):
                    use()
            made.close()
            there.close()
            segment.forsake()
            assert view.tolist() == list(range(10))
            with tz.open("cpu") as own:
                again = own.memory.shared.attach(spec)
                np.asarray(again[:])[0] = 42
                again.close()
                mine = own.memory.shared.allocate(8)
                assert len(names(directory)) == 2
                mine.close()

        in_fork(child)
        assert names(directory) == [spec.name]
        assert view[0] == 42
        made.close()
        there.close()


def test_many_threads(directory: str) -> None:
    failures: list[BaseException] = []
    with simulate(lateness=0), tz.open("sim:0") as ctx:

        def work(seed: int) -> None:
            draws = random.Random(seed)
            try:
                for _ in range(40):
                    made = ctx.memory.shared.allocate(8 * draws.randint(1, 600), dtype="int64")
                    np.asarray(made[:])[:] = seed
                    there = ctx.memory.shared.attach(tz.SharedSpec.of(made[-1:]))
                    assert read(there) == [seed]
                    if draws.random() < 0.3:
                        ctx.memory.shared.sweep()
                    for one in draws.sample([made, there], 2):
                        one.close()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
        assert not failures, failures
        gc.collect()
        assert ctx.memory.shared.live == 0
        assert names(directory) == []
