"""Rule 8: when a copy from ordinary host memory returns, the source may be changed."""

from __future__ import annotations

from typing import Any

import numpy as np

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
