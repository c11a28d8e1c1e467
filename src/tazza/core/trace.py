"""Traces: what ran when, as a file that the viewers of Chrome and Perfetto open."""

from __future__ import annotations

import os
from types import TracebackType
from typing import TYPE_CHECKING, Final, final

from tazza.errors import ArgumentError, UsageError

if TYPE_CHECKING:
    from tazza.core.timeline import Timeline

__all__ = ["MAX_EVENTS", "trace"]

MAX_EVENTS: Final = 500_000
"""Slices that a trace keeps unless told otherwise."""


@final
class trace:
    """Write what runs inside ``with tz.trace("run.json"):`` into a file for https://ui.perfetto.dev.

    It shows a line for each stream with its tasks, copies, fills and waits when they really ran, a line for each host
    thread with its launches and waits, arrows from launch to run and from what was waited for, and the live bytes of
    every context and budget. All contexts, devices and threads of the process are in it. The file appears at the end,
    whole. Instead of ``with``, `start` and `stop` may be called, in any thread.

    Args:
        path: where to write; its directory must exist.
        max_events: slices that are kept in memory; later ones are counted, and the file says how many.

    Raises:
        ArgumentError: no path, or `max_events` is no positive whole number.

    >>> import tazza as tz
    >>> with tz.trace("run.json"), tz.open("cpu") as ctx:
    ...     ctx.launch(sum, [1, 2, 3], label="add").result()
    6
    >>> import json, pathlib
    >>> events = json.loads(pathlib.Path("run.json").read_text())["traceEvents"]
    >>> [event["cat"] for event in events if event.get("name") == "add"]
    ['task']
    """

    def __init__(self, path: str | os.PathLike[str], *, max_events: int = MAX_EVENTS) -> None:
        try:
            self._path = os.fspath(path)
        except TypeError:
            raise ArgumentError.of("path", path, "the path of a file") from None
        if isinstance(max_events, bool) or not isinstance(max_events, int) or max_events < 1:
            raise ArgumentError.of("max_events", max_events, "a positive whole number")
        self._max_events = max_events
        self._timeline: Timeline | None = None

    def start(self) -> trace:
        """Begin; returns the trace.

        Raises:
            UsageError: it has begun and was not stopped.
            OSError: the directory of the file does not exist.
        """
        if self._timeline is not None:
            raise UsageError(f"{self!r} has begun already; make another with tz.trace(path)")
        directory = os.path.dirname(os.path.abspath(self._path))
        if not os.path.isdir(directory):
            raise FileNotFoundError(f"there is no directory {directory!r} to write the trace into")
        from tazza.core.timeline import Timeline  # late: a program that traces nothing does not pay for it

        self._timeline = Timeline(self._max_events)
        self._timeline.start()
        return self

    def stop(self) -> None:
        """End, and write the file; does nothing where nothing has begun.

        Raises:
            OSError: the file cannot be written; what was there before is untouched.
        """
        timeline, self._timeline = self._timeline, None
        if timeline is not None and timeline.stop():
            from tazza.core.tracefile import write_timeline  # late, as above

            write_timeline(timeline, self._path)

    def __enter__(self) -> trace:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except OSError as failure:
            if exc is None:
                raise
            exc.add_note(f"writing the trace {self._path!r} also failed: {failure}")

    def __repr__(self) -> str:
        return f"<tazza.trace into {self._path!r}, {'running' if self._timeline is not None else 'not running'}>"
