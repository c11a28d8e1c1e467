"""Progress of a loop: a bar where somebody watches, and a few plain lines where nobody does."""

from __future__ import annotations

import abc
import operator
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeVar, final

from tazza.errors import ArgumentError
from tazza.hot import top
from tazza.util.text import format_nbytes, format_seconds

__all__ = ["track"]

T = TypeVar("T")

_LINE_SECONDS = 2.0
"""Plain lines come no closer together than this, so that the log of a long run stays readable."""

_REDRAW_SECONDS = 0.1
"""The bar is given new numbers no more often than this."""


def track(iterable: Iterable[T], description: str = "", total: int | None = None) -> Iterator[T]:
    """Yield the items of `iterable` and show on the standard error stream how far the loop is.

    Shows count, rate, time left and, where a context is current, the memory that is live in it. It is a bar where the
    stream is a terminal and rich is installed, else at most one line in two seconds and one at the end. Whatever goes
    wrong with the display ends the display, never the loop.

    Args:
        iterable: what to loop over.
        description: what the loop does.
        total: number of items; None asks the iterable for its length.

    Raises:
        ArgumentError: `total` is not a number of items.

    Example:
        >>> import tazza as tz
        >>> sum(tz.track([1, 2, 3], "adding"))
        6
    """
    if total is None:
        total = operator.length_hint(iterable, -1)
        total = None if total < 0 else total
    elif type(total) is not int or total < 0:
        raise ArgumentError.of("total", total, "a number of items, 0 or more")
    return _shown(iterable, _Count(description, total))


def _shown(iterable: Iterable[T], count: _Count) -> Iterator[T]:
    display = _display(count)
    display.open()
    try:
        for item in iterable:
            yield item
            count.done += 1
            if time.monotonic() >= count.due:
                display.show()
                count.due = time.monotonic() + display.interval
    finally:
        display.close()


class _Count:
    """How far a loop is."""

    def __init__(self, description: str, total: int | None) -> None:
        self.description, self.total, self.done = description, total, 0
        self.start = time.monotonic()
        self.due = 0.0

    @property
    def position(self) -> str:
        """``"12"`` or ``"12/40"``."""
        return str(self.done) if self.total is None else f"{self.done}/{self.total}"

    @property
    def rate(self) -> str:
        """Items a second since the start."""
        seconds = time.monotonic() - self.start
        return f"{self.done / seconds:,.1f}/s" if seconds > 0 and self.done else "-/s"

    @property
    def remaining(self) -> str:
        """Time left at the rate so far, or an empty string where nobody knows."""
        if self.total is None or not 0 < self.done < self.total:
            return ""
        seconds = (time.monotonic() - self.start) * (self.total - self.done) / self.done
        return f"{format_seconds(seconds)} left"

    @property
    def memory(self) -> str:
        """What is live in the current context, or an empty string without one."""
        frame = top()
        return "" if frame is None else f"{format_nbytes(frame.account.live)} live"


class _Display(abc.ABC):
    """Shows a count; `interval` is the shortest time in seconds between two calls of `show`."""

    interval: float

    @abc.abstractmethod
    def open(self) -> None: ...

    @abc.abstractmethod
    def show(self) -> None: ...

    @abc.abstractmethod
    def close(self) -> None: ...


@final
class _Lines(_Display):
    """Plain lines on a stream."""

    interval = _LINE_SECONDS

    def __init__(self, count: _Count, stream: TextIO | None) -> None:
        self._count, self._stream = count, stream

    def open(self) -> None:
        self._count.due = time.monotonic() + self.interval

    def show(self) -> None:
        count = self._count
        parts = (count.position, count.rate, count.remaining, count.memory)
        line = f"{count.description or 'progress'}: " + ", ".join(part for part in parts if part)
        if self._stream is None:  # a program without a console
            return
        try:
            print(line, file=self._stream, flush=True)
        except (OSError, ValueError):  # the stream is closed or its reader is gone: go on without a display
            self._stream = None

    def close(self) -> None:
        self.show()


@final
class _Bar(_Display):
    """A bar of rich; its own thread redraws it between the calls."""

    interval = _REDRAW_SECONDS

    def __init__(self, count: _Count, progress: Any) -> None:
        self._count, self._progress = count, progress
        self._task = progress.add_task(count.description, total=count.total, rate="", memory="")

    def open(self) -> None:
        self._progress.start()

    def show(self) -> None:
        count = self._count
        self._progress.update(self._task, completed=count.done, rate=count.rate, memory=count.memory)

    def close(self) -> None:
        self.show()
        self._progress.stop()


def _display(count: _Count) -> _Display:
    """Choose the display that the standard error stream of this moment can have."""
    stream = sys.stderr
    if stream is not None and stream.isatty():
        try:
            from rich import console, progress
        except ImportError:  # rich is optional: plain lines do
            return _Lines(count, stream)
        columns = (
            progress.TextColumn("[bold]{task.description}"),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            progress.TextColumn("[cyan]{task.fields[rate]}"),
            progress.TextColumn("[magenta]{task.fields[memory]}"),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        return _Bar(count, progress.Progress(*columns, console=console.Console(file=stream)))
    return _Lines(count, stream)
