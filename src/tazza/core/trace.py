"""Traces: what ran when, as a file that the viewers of Chrome and Perfetto open.

The file is JSON in the Trace Event Format. Each device is a process in it and each stream a thread; host threads are
the threads of one more. What ran is a complete event (``X``), an arrow a pair of flow events (``s``, ``f``), live bytes
of each account a counter (``C``). Times are microseconds since the trace began.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, final

from tazza._version import __version__
from tazza.core.timeline import HOST, Slice, Timeline
from tazza.errors import ArgumentError, UsageError
from tazza.util.files import replace_file

__all__ = ["MAX_EVENTS", "trace", "write_timeline"]

MAX_EVENTS: Final = 500_000
"""Slices that a trace keeps unless told otherwise."""

_CHUNK = 1_000  # events that are turned into text at once
Event = dict[str, Any]


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


def write_timeline(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Write a timeline that has stopped as a trace; internal, see `trace`."""
    replace_file(path, _pieces(timeline))


def _pieces(timeline: Timeline) -> Iterator[bytes]:
    other = {
        "producer": f"tazza {__version__}",
        "start_ns_since_epoch": timeline.epoch_ns,
        "dropped_events": timeline.lost,
        "max_events": timeline.limit,
    }
    head = {"displayTimeUnit": "ms", "otherData": other}
    yield json.dumps(head)[:-1].encode() + b', "traceEvents": [\n'
    chunk: list[Event] = []
    first = True
    for event in _events(timeline):
        chunk.append(event)
        if len(chunk) == _CHUNK:
            yield _text(chunk, first=first)
            chunk, first = [], False
    yield _text(chunk, first=first) + b"\n]}\n"


def _text(events: list[Event], *, first: bool) -> bytes:
    # ASCII: a lone surrogate in a label must not make a file that nothing can read.
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    return (lines if first or not lines else ",\n" + lines).encode()


def _events(timeline: Timeline) -> Iterator[Event]:
    places = _places(timeline)
    yield from _names(timeline, places)
    for one in sorted(timeline.slices, key=lambda one: (one.start_ns, -one.end_ns)):
        yield _slice(timeline, one, places[one.track])
    for number, arrow in enumerate(timeline.arrows):
        # The earlier end may have been told of a moment later by another thread.
        start, end = min(arrow.time_ns, arrow.to_ns), arrow.to_ns
        for phase, at, track in (("s", start, arrow.track), ("f", end, arrow.to_track)):
            pid, tid = places[track]
            event = {"ph": phase, "id": number, "cat": arrow.kind, "name": arrow.kind, "pid": pid, "tid": tid}
            yield event | {"ts": _us(timeline, at)} | ({"bp": "e"} if phase == "f" else {})
    groups = _groups(timeline)
    for series in timeline.series:
        name = f"live bytes: {' / '.join(series.owner)}"
        pid = groups.setdefault(series.owner[0], len(groups) + 1)
        for at, live in series.points:
            yield {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _us(timeline, at), "args": {"bytes": live}}
    for instant in timeline.instants:
        where = {"pid": 1, "tid": 0, "ts": _us(timeline, instant.time_ns)}
        yield {"ph": "i", "s": "g", "cat": instant.kind, "name": instant.name} | where


def _groups(timeline: Timeline) -> dict[str, int]:
    """The process number of each group: host threads first, then devices as they came."""
    groups = {HOST: 1}
    for name in (*(track.group for track in timeline.tracks), *(series.owner[0] for series in timeline.series)):
        groups.setdefault(name, len(groups) + 1)
    return groups


def _places(timeline: Timeline) -> list[tuple[int, int]]:
    groups = _groups(timeline)
    return [(groups[track.group], number + 1) for number, track in enumerate(timeline.tracks)]


def _names(timeline: Timeline, places: list[tuple[int, int]]) -> Iterator[Event]:
    for name, pid in _groups(timeline).items():
        title = f"host threads of process {os.getpid()}" if name == HOST else name
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": title}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for track, (pid, tid) in zip(timeline.tracks, places, strict=True):
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": track.name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}}


def _slice(timeline: Timeline, one: Slice, place: tuple[int, int]) -> Event:
    arguments: Event = {"bytes": one.nbytes} if one.nbytes else {}
    if one.note:
        arguments[one.note] = True
    event: Event = {"ph": "X", "cat": one.kind, "name": one.name, "pid": place[0], "tid": place[1]}
    event |= {"ts": _us(timeline, one.start_ns), "dur": round((one.end_ns - one.start_ns) / 1000, 3)}
    return event | {"args": arguments} if arguments else event


def _us(timeline: Timeline, time_ns: int) -> float:
    return round((time_ns - timeline.start_ns) / 1000, 3)
