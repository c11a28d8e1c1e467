"""`tz.track`: yields everything, shows little, and never fails because of the display."""

from __future__ import annotations

import builtins
import io
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tazza.core import progress
from tazza.core.progress import track
from tazza.errors import ArgumentError


class Clock:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_everything_is_yielded_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "counting")) == [0, 1, 2, 3, 4]
    shown = capsys.readouterr().err
    assert shown.startswith("counting: 5/5, ")
    assert shown.count("\n") == 1


def test_lines_are_rare_and_say_rate_and_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(100), "work"):
        clock.now += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 26  # one in two seconds of fifty, and the last
    assert lines[0] == "work: 4/100, 2.0/s, 48 s left"
    assert lines[-1] == "work: 100/100, 2.0/s"


def test_unknown_length(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(iter([1]), total=None):
        clock.now += 1.0
    for _ in track(n for n in [1, 2, 3]):
        clock.now += 1.0
    assert capsys.readouterr().err.splitlines() == ["progress: 1/1, 1.0/s", "progress: 2, 1.0/s", "progress: 3, 1.0/s"]


def test_total_may_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    list(track((n for n in range(3)), total=3))
    assert "3/3" in capsys.readouterr().err


def test_memory_of_the_current_context(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    frame = SimpleNamespace(account=SimpleNamespace(live=3 * 2**20))
    monkeypatch.setattr(progress, "top", lambda: frame)
    list(track([1]))
    assert "3.0 MiB live" in capsys.readouterr().err


def test_leaving_early_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    steps = track(range(10), "steps")
    for step in steps:
        if step == 3:
            break
    steps.close()  # type: ignore[attr-defined]
    assert capsys.readouterr().err.startswith("steps: 3/10")


def test_exceptions_of_the_iterable_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("the source")

    seen = []
    with pytest.raises(KeyError, match="the source"):
        for item in track(failing()):
            seen.append(item)  # noqa: PERF402
    assert seen == [1]
    assert "progress: 1" in capsys.readouterr().err


def test_nothing_iterated_nothing_shown(capsys: pytest.CaptureFixture[str]) -> None:
    track(range(3))
    assert capsys.readouterr().err == ""


def test_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], "none")) == []
    assert capsys.readouterr().err == "none: 0/0, -/s\n"


def test_a_broken_stream_ends_the_display_only(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    class Broken(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            Broken.writes += 1
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    count = 0
    for _ in track(range(20)):
        clock.now += 1.0
        count += 1
    assert count == 20
    assert Broken.writes == 1


def test_no_console_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(track(range(3))) == [0, 1, 2]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(track(range(4), "training")) == [0, 1, 2, 3]
    assert "training" in terminal.getvalue()
    assert "4/4" in terminal.getvalue()


def test_a_bar_is_taken_down_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in range(2):  # a second one could not start while the first is up
        with pytest.raises(ZeroDivisionError):
            for item in track([0], "bar"):
                1 // item


def test_a_terminal_without_rich_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, real = Terminal(), builtins.__import__

    def without_rich(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "rich":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(builtins, "__import__", without_rich)
    assert list(track(range(2), "plain")) == [0, 1]
    assert terminal.getvalue().startswith("plain: 2/2")


@pytest.mark.parametrize("bad", [-1, 1.5, "3", True])
def test_bad_totals_are_refused_at_once(bad: Any) -> None:
    with pytest.raises(ArgumentError, match="total: got"):
        track([], total=bad)
