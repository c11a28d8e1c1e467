"""The file of a trace: JSON in the Trace Event Format.

Each device is a process in it and each stream a thread; host threads are the threads of one more. What ran is a
complete event (``X``), an arrow a pair of flow events (``s``, ``f``), live bytes of each account a counter (``C``).
Times are microseconds since the trace began.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Final

from tazza._version import __version__
from tazza.core.timeline import HOST, Slice, Timeline
from tazza.util.files import replace_file

__all__ = ["write_timeline"]

_CHUNK: Final = 1_000  # events that are turned into text at once
Event = dict[str, Any]


def write_timeline(timeline: Timeline, path: str | os.PathLike[str]) -> None:
    """Write a timeline that has stopped, atomically.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
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
