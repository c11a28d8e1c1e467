"""Rule 8: when a copy from ordinary host memory returns, the source may be changed."""

from __future__ import annotations

from typing import Any

import numpy as np

import tazza as tz
from tests.litmus.harness import TIMEOUT, World, get, litmus, put


@litmus(8, only="what the source held when copy was called", allowed={1})
def test_the_source_of_a_copy_is_changed(w: World) -> int:
    """Copy an array on a late stream and change it at once."""
    x, source, (a,) = w.cell(), np.array([1]), w.streams(1)
    w.here.launch(w.late(get), x, stream=a)
    w.here.copy(x, source, stream=a)
    source[:] = 2
    return w.read(x)


@litmus(8, only="what the source held when copy was called", allowed={1})
def test_a_byte_source_is_changed(w: World) -> int:
    """The same with a bytearray."""
    x, source, (a,) = w.cell(), bytearray(np.int64(1).tobytes()), w.streams(1)
    w.here.copy(x.view("uint8"), source, stream=a)
    source[:] = bytes(8)
    return w.read(x)


@litmus(8, only="what the source held when asarray was called", allowed={(1, 1)})
def test_the_source_of_asarray_is_changed(w: World) -> tuple[Any, Any]:
    """``asarray(copy=True)`` of an array and of a list, both changed at once."""
    source, numbers = np.array([1]), [1]
    arrays = [w.here.asarray(one, copy=True) for one in (source, numbers)]
    source[:] = 2
    numbers[:] = [2]
    one, two = (int(w.here.to_numpy(array)[0]) for array in arrays)
    return one, two


@litmus(8, only="complete when copy returns", allowed={3})
def test_the_destination_of_a_copy(w: World) -> int:
    """Copy from a late stream into an ordinary array and look at it at once."""
    x, target, (a,) = w.cell(), np.zeros(1, np.int64), w.streams(1)
    w.here.launch(w.late(put), x, 3, stream=a)
    w.here.copy(target, x, stream=a)
    return int(target[0])


@litmus(8, only="the task reads what the source held at the copy", allowed={tuple(range(10))})
def test_one_source_for_many_copies(w: World) -> tuple[int, ...]:
    """A loader fills one staging array again and again and copies it to a stream whose tasks read."""
    staging, (a,) = np.zeros(1, np.int64), w.streams(1)
    tasks = []
    for number in range(10):
        x = w.here.allocate(8, dtype="int64")
        a.wait(w.here.stream)
        staging[:] = number
        w.here.copy(x, staging, stream=a)
        tasks.append(w.here.launch(get, x, stream=a))
    return tuple(task.result(timeout=TIMEOUT) for task in tasks)


def pinned(w: World, value: int) -> tz.Buffer:
    """A pinned cell, written without leaving an array behind."""
    made = w.here.memory.pinned.allocate(8, dtype="int64")
    np.asarray(made[:])[0] = value
    return made


@litmus(8, only="what it holds when the copy runs: changing it before is the user's race", allowed={2})
def test_a_pinned_source_is_read_when_the_copy_runs(w: World) -> int:
    """Copy a pinned buffer on a stream that is held back, change it through an array made before, and open the gate."""
    x, source, gate, (a,) = w.cell(), pinned(w, 1), tz.HostEvent(), w.streams(1)
    array = np.asarray(source)
    a.wait(gate)
    w.here.copy(x, source, stream=a)
    array[0] = 2
    gate.succeed()
    return w.read(x)


@litmus(8, only="the new value or the old one", allowed={1, 2})
def test_a_pinned_source_is_changed_at_some_moment(w: World) -> int:
    """Copy a pinned buffer on a late stream and change it through an array made before: the user's race."""
    x, source, (a,) = w.cell(), pinned(w, 1), w.streams(1)
    array = np.asarray(source)
    w.here.launch(w.late(get), x, stream=a)
    w.here.copy(x, source, stream=a)
    w.pause()
    array[0] = 2
    return w.read(x)


@litmus(8, only="what it held", allowed={1})
def test_a_pinned_source_is_freed(w: World) -> int:
    """Copy a pinned buffer on a stream that is held back, free it, write all over new ones, and open the gate."""
    x, source, gate, (a,) = w.cell(), pinned(w, 1), tz.HostEvent(), w.streams(1)
    a.wait(gate)
    w.here.copy(x, source, stream=a)
    source.close()
    del source
    others = [pinned(w, 9) for _ in range(3)]
    gate.succeed()
    value = w.read(x)
    return value if len(others) == 3 else 0


@litmus(8, only="a later use of the freed memory never reaches the copy", allowed={tuple(range(10))})
def test_one_pinned_size_for_many_copies(w: World) -> tuple[int, ...]:
    """A loader takes a pinned buffer for each copy and drops it at once: the pool uses few of them again and again."""
    (a,) = w.streams(1)
    tasks = []
    for number in range(10):
        x = w.here.allocate(8, dtype="int64")
        a.wait(w.here.stream)
        w.here.copy(x, pinned(w, number), stream=a)
        tasks.append(w.here.launch(get, x, stream=a))
    return tuple(task.result(timeout=TIMEOUT) for task in tasks)


@litmus(8, only="host access waits for the copy into it", allowed={5})
def test_a_pinned_destination(w: World) -> int:
    """Copy from a late stream into a pinned buffer and look at it: the copy does not wait, the look does."""
    x, target, (a,) = w.cell(), pinned(w, 0), w.streams(1)
    w.here.launch(w.late(put), x, 5, stream=a)
    w.here.copy(target, x, stream=a)
    return int(np.asarray(target)[0])
