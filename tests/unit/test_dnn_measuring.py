"""The one rule by which candidates for a plan are timed, on a clock that the test moves."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from tazza.dnn import Layout
from tazza.dnn.measuring import fastest, span


class Clock:
    """Time that passes only when a candidate takes it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def taking(self, name: str, *times: float | None) -> Callable[[], float | None]:
        """A candidate that takes these times, the last one again and again; None is a refusal."""
        left = list(times)

        def run() -> float | None:
            took = left.pop(0) if len(left) > 1 else left[0]
            self.runs.append(name)
            self.now += took or 0
            return took

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("tazza.dnn.measuring.time", made)
    return made


def test_the_fastest_is_found_in_turns(clock: Clock) -> None:
    given = [clock.taking("a", 3.0), clock.taking("b", 1.0), clock.taking("c", 2.0)]
    assert fastest(given, 0, min) == 1
    assert clock.runs == ["a", "b", "c"] * 2, "each twice, whatever the time is"


def test_no_round_begins_after_the_time(clock: Clock) -> None:
    assert fastest([clock.taking("a", 1.0), clock.taking("b", 2.0)], 10, min) == 0
    assert clock.runs == ["a", "b"] * 4


def test_there_is_a_most_of_rounds(clock: Clock) -> None:
    fastest([clock.taking("a", 0.0), clock.taking("b", 0.0)], 1e6, min)
    assert len(clock.runs) == 100


def test_what_counts_is_the_callers(clock: Clock) -> None:
    def given() -> list[Callable[[], float | None]]:
        return [clock.taking("a", 1.0, 9.0, 9.0), clock.taking("b", 5.0)]

    assert fastest(given(), 30, min) == 0
    assert fastest(given(), 30, statistics.median) == 1


def test_equals_stay_in_the_order_that_was_given(clock: Clock) -> None:
    assert fastest([clock.taking("a", 1.0), clock.taking("b", 1.0)], 5, statistics.median) == 0


def test_one_that_refuses_is_asked_no_more(clock: Clock) -> None:
    given = [clock.taking("a", None), clock.taking("b", 3.0), clock.taking("c", 2.0, None)]
    assert fastest(given, 100, min) == 1
    assert clock.runs == ["a", "b", "c", "b", "c"], "where one is left there is nothing to compare"
    assert fastest([clock.taking("a", None), clock.taking("b", None)], 1, min) is None


def test_one_alone_is_not_timed(clock: Clock) -> None:
    assert fastest([clock.taking("a", 1.0)], 1, min) == 0
    assert not clock.runs


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), (1, 0)),
        ((2, 3), (3, 1), (6, 0)),
        ((2, 3), (5, 1), (8, 0)),
        ((2, 3), (-3, 1), (6, 3)),
        ((4, 2), (-1, -4), (8, 7)),
        ((7,), (0,), (1, 0)),
    ],
)
def test_the_span_of_an_array(shape: tuple[int, ...], strides: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert span(Layout("float32", shape, strides)) == expected
