"""`tz.limit_threads`: nested, from several threads, plain, and libraries that keep their count per thread."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from tazza.errors import ArgumentError, UsageError
from tazza.util import threads
from tazza.util.threads import ThreadLimit, limit_threads


class FakePool:
    """A native pool as threadpoolctl shows it; OpenMP's keeps one count per calling thread."""

    def __init__(self, name: str, user_api: str, count: int) -> None:
        self.filepath, self.user_api = name, user_api
        self._start, self._shared, self._own, self.calls = count, count, threading.local(), 0

    def get_num_threads(self) -> int:
        return int(getattr(self._own, "count", self._start)) if self.user_api == "openmp" else self._shared

    def set_num_threads(self, count: int) -> None:
        self.calls += 1
        if self.user_api == "openmp":
            self._own.count = count
        else:
            self._shared = count


class FakeController:
    lib_controllers: list[FakePool]

    def __init__(self) -> None:
        FakeController.made += 1
        self.lib_controllers = FakeController.present

    present: list[FakePool]
    made = 0


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakePool]]:
    FakeController.present = [FakePool("blas", "blas", 8), FakePool("omp", "openmp", 8)]
    FakeController.made = 0
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", FakeController)
    monkeypatch.setattr(threads, "_pools", threads._Pools())
    yield FakeController.present
    gc.collect()


def counts(pools: list[FakePool]) -> list[int]:
    return [pool.get_num_threads() for pool in pools]


def test_block_limits_and_restores(pools: list[FakePool]) -> None:
    with limit_threads(2) as limit:
        assert counts(pools) == [2, 2]
        assert limit.count == 2
        with limit_threads(5):
            assert counts(pools) == [5, 5]
        assert counts(pools) == [2, 2]
    assert counts(pools) == [8, 8]


def test_restored_after_an_exception(pools: list[FakePool]) -> None:
    with pytest.raises(KeyError):
        with limit_threads(1):
            raise KeyError
    assert counts(pools) == [8, 8]


def test_plain_call_holds_until_the_next(pools: list[FakePool]) -> None:
    limit_threads(3)
    assert counts(pools) == [3, 3]
    with limit_threads(1):
        assert counts(pools) == [1, 1]
    assert counts(pools) == [3, 3]
    limit_threads(4)
    assert counts(pools) == [4, 4]


def test_plain_calls_do_not_pile_up(pools: list[FakePool]) -> None:
    for _ in range(100):
        limit_threads(3)
    assert len(threads._pools._limits) <= 2
    assert counts(pools) == [3, 3]


def test_plain_call_inside_a_block_outlives_it(pools: list[FakePool]) -> None:
    with limit_threads(1):
        limit_threads(6)
        assert counts(pools)[0] == 6
    assert counts(pools)[0] == 6


def test_counts_that_somebody_else_changed_are_restored(pools: list[FakePool]) -> None:
    with limit_threads(1):
        pass
    pools[0].set_num_threads(5)
    with limit_threads(1):
        pass
    assert pools[0].get_num_threads() == 5


def test_libraries_are_looked_for_only_after_imports(pools: list[FakePool], monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        with limit_threads(1):
            pass
    assert FakeController.made == 1
    FakeController.present = [*pools, FakePool("late", "blas", 7)]
    monkeypatch.setitem(sys.modules, "tazza_a_module_just_imported", threads)
    with limit_threads(1):
        with limit_threads(2):
            assert counts(FakeController.present) == [2, 2, 2]
    assert counts(FakeController.present) == [8, 8, 7]
    assert FakeController.made == 2


def test_openmp_is_limited_in_every_thread_that_asks(pools: list[FakePool]) -> None:
    seen: list[list[int]] = []

    def work() -> None:
        seen.append(counts(pools))
        with limit_threads(1):
            seen.append(counts(pools))
        seen.append(counts(pools))

    with limit_threads(1):
        blas_calls = pools[0].calls
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(timeout=10)
    assert seen == [[1, 8], [1, 1], [1, 8]]
    assert pools[0].calls == blas_calls + 1, "the shared pool was set although the limit was in force already"


def test_blocks_of_many_threads_overlap(pools: list[FakePool]) -> None:
    """Every block sees its limit while any of them lasts, and the last one out restores."""
    barrier, wrong = threading.Barrier(8), []

    def work() -> None:
        barrier.wait(timeout=10)
        for _ in range(200):
            with limit_threads(1):
                if counts(pools) != [1, 1]:
                    wrong.append(counts(pools))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=30)
        assert not worker.is_alive()
    assert wrong == []
    assert counts(pools) == [8, 8]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=20))
def test_any_order_of_ends(program: list[tuple[int, int]]) -> None:
    """Blocks that end in any order leave the latest of those still open in force (model: a list)."""
    pool = FakePool("blas", "blas", 8)
    own = threads._Pools()
    own._look = lambda: None  # type: ignore[method-assign]
    own._shared = [pool]
    stack: list[tuple[Any, int]] = []
    for count, end in program:
        limit = ThreadLimit.__new__(ThreadLimit)
        limit.count = count  # type: ignore[misc]
        own.push(limit)
        stack.append((limit, count))
        if end < len(stack):
            own.pop(stack.pop(end)[0], [])
        assert pool.get_num_threads() == (stack[-1][1] if stack else 8)


def test_a_limit_is_entered_once(pools: list[FakePool]) -> None:
    limit = limit_threads(2)
    with limit:
        with pytest.raises(UsageError, match=r"call tz\.limit_threads"):
            limit.__enter__()
    assert "2 native threads" in repr(limit)


@pytest.mark.parametrize("bad", [0, -1, 1.0, True, "2", None])
def test_bad_numbers_are_refused(pools: list[FakePool], bad: Any) -> None:
    with pytest.raises(ArgumentError, match="n: got"):
        limit_threads(bad)
    assert counts(pools) == [8, 8]


def test_real_libraries() -> None:
    before = [library.num_threads for library in threadpoolctl.ThreadpoolController().lib_controllers]
    with limit_threads(1):
        libraries = threadpoolctl.ThreadpoolController().lib_controllers
        assert all(library.num_threads == 1 for library in libraries)
    after = [library.num_threads for library in threadpoolctl.ThreadpoolController().lib_controllers]
    assert after == before


def test_a_forked_child_does_not_inherit_a_held_lock(pools: list[FakePool]) -> None:
    """What runs in the child after a fork, while another thread of the parent was inside `push`."""
    assert threads._pools._lock.acquire(timeout=10)
    threads._pools._renew_lock()
    with limit_threads(1):
        assert counts(pools) == [1, 1]
