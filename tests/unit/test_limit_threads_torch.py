"""`tz.limit_threads` and PyTorch, which has counts that no tool sees and gives them to each new thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import tazza as tz
from tests.interop import need

torch = need("torch")
pytestmark = pytest.mark.interop

COUNT = 3


@pytest.fixture(autouse=True)
def own_count() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(COUNT)
    yield
    torch.set_num_threads(before)


def in_thread(function: Callable[[], object]) -> None:
    """Run in a fresh thread and raise what it raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # raised in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def threads() -> int:
    torch.ones(2).sum()
    return int(torch.get_num_threads())


def test_it_is_limited_and_set_back() -> None:
    with tz.limit_threads(1):
        assert threads() == 1
        with tz.limit_threads(2):
            assert threads() == 2
        assert threads() == 1
    assert threads() == COUNT


def test_a_thread_that_computes_for_the_first_time_inside_keeps_to_the_limit() -> None:
    def work() -> None:
        with tz.limit_threads(1):
            assert threads() == 1
        assert threads() == COUNT

    in_thread(work)
    assert threads() == COUNT


def test_its_own_linear_algebra_is_limited_too() -> None:
    def mkl_threads() -> str:
        info = torch.__config__.parallel_info()
        lines = [str(line) for line in info.splitlines() if "mkl_get_max_threads" in line]
        return lines[0].partition(":")[2].strip()

    if "mkl_get_max_threads" not in torch.__config__.parallel_info():
        pytest.skip("this build of PyTorch has no MKL")
    with tz.limit_threads(1):
        assert mkl_threads() == "1"
        in_thread(lambda: None)
        assert mkl_threads() == "1"
    assert mkl_threads() == str(COUNT)


def test_threads_that_begin_under_anothers_limit_end_with_their_own() -> None:
    def work() -> None:
        with tz.limit_threads(1):
            assert threads() == 1
            with tz.limit_threads(1):
                assert threads() == 1
            assert threads() == 1
        counts.append(threads())

    counts: list[int] = []
    with tz.limit_threads(2):
        in_thread(work)
        assert threads() == 2
    assert counts == [COUNT]
    assert threads() == COUNT
    in_thread(lambda: counts.append(threads()))
    assert counts == [COUNT, COUNT]


def test_limits_of_two_threads_that_overlap() -> None:
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        with tz.limit_threads(1):
            entered.set()
            assert leave.wait(20)
            assert threads() == 1
        assert threads() == COUNT

    thread = threading.Thread(target=lambda: in_thread(work))
    with tz.limit_threads(1):
        thread.start()
        assert entered.wait(20)
    assert threads() == COUNT
    with tz.limit_threads(1):
        leave.set()
        thread.join(20)
        assert threads() == 1
    assert threads() == COUNT
