"""The report of one run: its figures for terminal and JSON, and the page with pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tazza._version import __version__
from tazza.core.snapshot import MemorySnapshot, RecordedBlock
from tazza.core.timeline import Slice, Timeline, Usage
from tazza.memory.stats import MemoryStats
from tazza.pages.document import Texts, write_document
from tazza.pages.memory import account_data, owner_name, when

__all__ = ["RunReport"]

_SLICES = 30_000
"""So many slices are drawn; of more, the longest."""

_MOMENTS = 4_000
"""So many moments of live bytes are drawn; of more, those with the most bytes."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a program did under a context, once it has ended.

    Attributes:
        title: what ran.
        facts: names and values: command, device, seed, versions.
        outcome: ``"done"``, or how it ended otherwise; `failed` says whether that is bad.
        processor_ns: processor time of the process meanwhile, in nanoseconds.
        timeline: of the run, stopped.
        stats: the context's figures at the end, before it was closed.
        snapshot: the account of the device at the end.
        leaks: blocks of the context that were live though the program had ended.
        health: of the device, ``"ok"`` or ``"lost"``.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    outcome: str
    failed: bool
    processor_ns: int
    timeline: Timeline
    stats: MemoryStats
    snapshot: MemorySnapshot
    leaks: tuple[RecordedBlock, ...]
    health: str

    @property
    def elapsed_ns(self) -> int:
        """Nanoseconds from beginning to end."""
        return self.timeline.stop_ns - self.timeline.start_ns

    @property
    def leaked(self) -> int:
        """Bytes of all leaks together."""
        return sum(block.nbytes for block in self.leaks)

    def streams(self) -> Iterator[tuple[str, str, Usage]]:
        """Name, device and figures of each stream on which something ran."""
        for number, usage in sorted(self.timeline.usage.items()):
            if usage.counts:
                yield self.timeline.tracks[number].name, self.timeline.tracks[number].group, usage

    def as_dict(self) -> dict[str, Any]:
        """Return all figures in JSON's types."""
        return {
            "title": self.title,
            "facts": [list(fact) for fact in self.facts],
            "outcome": self.outcome,
            "failed": self.failed,
            "elapsed_ns": self.elapsed_ns,
            "processor_ns": self.processor_ns,
            "peak": self.stats.peak,
            "live": self.stats.live,
            "limit": self.stats.limit,
            "health": self.health,
            "streams": [
                {
                    "name": name,
                    "group": group,
                    "counts": usage.counts,
                    "failed": usage.failed,
                    "nbytes": usage.nbytes,
                    "busy_ns": usage.busy_ns,
                    "waiting_ns": usage.waiting_ns,
                }
                for name, group, usage in self.streams()
            ],
            "tasks": self._tasks(),
            "device": self.snapshot.device,
            "total": self.snapshot.total,
            "used": self.snapshot.used,
            **account_data(self.snapshot.headings, self.snapshot.balances, self.snapshot.holdings),
            "leaks": self._grouped_leaks(),
            "lost_events": self.timeline.lost,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the page, atomically.

        Raises:
            OSError: the file cannot be written; what was there before is untouched.
        """
        texts = Texts()
        slices, left_out = _slices(self.timeline, texts)
        data = self.as_dict() | {
            "subtitle": f"Run of {when(self.timeline.epoch_ns)} on {self.snapshot.device}, tazza {__version__}",
            "tracks": [{"group": track.group, "name": track.name} for track in self.timeline.tracks],
            "slices": slices,
            "slices_left_out": left_out + self.timeline.lost,
            "memory": _memory(self.timeline),
            "texts": texts.all,
        }
        write_document(path, f"{self.title}: report", ("shared.js", "account.js", "report.js"), data)

    def _grouped_leaks(self) -> list[dict[str, Any]]:
        """Leaks of equal owner, label, library and origin as one, the largest first."""
        totals: dict[tuple[Any, ...], tuple[int, int]] = {}
        for block in self.leaks:
            key = owner_name(block.owner), block.label, block.library, block.site
            nbytes, blocks = totals.get(key, (0, 0))
            totals[key] = nbytes + block.nbytes, blocks + 1
        return [
            {"owner": owner, "label": label, "library": library, "site": list(site), "nbytes": nbytes, "blocks": blocks}
            for (owner, label, library, site), (nbytes, blocks) in sorted(totals.items(), key=lambda item: -item[1][0])
        ]

    def _tasks(self) -> list[dict[str, Any]]:
        totals: dict[str, tuple[int, int, int]] = {}
        for _, _, usage in self.streams():
            for name, (count, total, longest) in usage.tasks.items():
                before = totals.get(name, (0, 0, 0))
                totals[name] = before[0] + count, before[1] + total, max(before[2], longest)
        ranked = sorted(totals.items(), key=lambda item: (-item[1][1], item[0]))
        return [
            {"name": name, "count": count, "total_ns": total, "longest_ns": longest}
            for name, (count, total, longest) in ranked
        ]


def _slices(timeline: Timeline, texts: Texts) -> tuple[dict[str, list[Any]], int]:
    """The columns of the slices that are drawn, by start, and how many are not."""
    kept: list[Slice] = timeline.slices
    if len(kept) > _SLICES:
        kept = sorted(kept, key=lambda one: one.start_ns - one.end_ns)[:_SLICES]
    kept = sorted(kept, key=lambda one: (one.start_ns, -one.end_ns))
    columns: dict[str, list[Any]] = {
        "track": [one.track for one in kept],
        "kind": [one.kind for one in kept],
        "name": [texts.number(one.name) for one in kept],
        "start": [one.start_ns - timeline.start_ns for one in kept],
        "duration": [one.end_ns - one.start_ns for one in kept],
        "nbytes": [one.nbytes for one in kept],
        "note": [one.note for one in kept],
    }
    return columns, len(timeline.slices) - len(kept)


def _memory(timeline: Timeline) -> dict[str, Any]:
    """Live bytes of each account without what lies in those below it, at the moments that are drawn."""
    series = [one for one in timeline.series if one.points]
    if not series:
        return {"times": [], "series": []}
    points = [np.array(one.points, np.int64) for one in series]
    times = np.unique(np.concatenate([one[:, 0] for one in points]))
    values = {one.owner: _at(table, times) for one, table in zip(series, points, strict=True)}
    own = {owner: np.clip(_without_parts(owner, values), 0, None) for owner in values}
    chosen = _highest(sum(own.values()))
    ranked = sorted(own.items(), key=lambda item: (-int(item[1].max()), item[0]))
    return {
        "times": (times[chosen] - timeline.start_ns).tolist(),
        "series": [
            {"name": owner_name(owner[1:] or owner), "values": column[chosen].tolist()}
            for owner, column in ranked
            if column.max() > 0
        ],
    }


def _at(points: Any, times: Any) -> Any:
    """Values of a step function at `times`; before its first point it is 0."""
    index = np.searchsorted(points[:, 0], times, side="right") - 1
    return np.where(index < 0, 0, points[np.maximum(index, 0), 1])


def _without_parts(owner: tuple[str, ...], values: dict[tuple[str, ...], Any]) -> Any:
    parts = [column for other, column in values.items() if other[:-1] == owner]
    return values[owner] - sum(parts) if parts else values[owner]


def _highest(totals: Any) -> Any:
    """Indices of at most `_MOMENTS` moments: of each stretch the one with the most bytes, and the last of all."""
    count = len(totals)
    if count <= _MOMENTS:
        return np.arange(count)
    edges = np.linspace(0, count, _MOMENTS, dtype=np.int64)
    best = [first + int(np.argmax(totals[first:last])) for first, last in pairwise(edges.tolist())]
    return np.array([*best, count - 1])
