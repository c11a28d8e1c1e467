"""A memory snapshot in the format of ``torch.cuda.memory._snapshot``, which https://pytorch.org/memory_viz opens.

The format knows segments with blocks in them, and a trace of events on each device. What has no segment of its own (a
NumPy array, memory that a pool has given back since) becomes a segment of one block, whose making and end are put
into the trace: the viewer looks for every address in a segment. The file is a pickle of dicts, lists, texts and
numbers; pickles are written here and never read.
"""

from __future__ import annotations

import os
import pickle
from bisect import bisect_right
from typing import Any, final

from tazza._version import __version__
from tazza.core.snapshot import MemoryEvent, MemorySnapshot, RecordedBlock
from tazza.util.files import replace_file

__all__ = ["as_torch", "write"]

_PROTOCOL = 4
"""The newest that the viewer reads."""

_STATES = {"live": "active_allocated", "pending": "active_pending_free", "free": "inactive"}
_SMALL = 1 << 20

Entry = dict[str, Any]


def write(snapshot: MemorySnapshot, path: str | os.PathLike[str]) -> None:
    """Write `snapshot` for PyTorch's viewer; see `MemorySnapshot.save`."""
    replace_file(path, [pickle.dumps(as_torch(snapshot), _PROTOCOL)])


def as_torch(snapshot: MemorySnapshot) -> dict[str, Any]:
    """Return `snapshot` as PyTorch's dict; the device has the number 0."""
    segments = [
        _segment(segment.address, segment.nbytes, segment.blocks, kind=segment.pool) for segment in snapshot.segments
    ]
    segments += [_segment(block.address, block.nbytes, (block,), kind=block.library) for block in snapshot.blocks]
    trace = _Trace(snapshot)
    for event in snapshot.events:
        trace.add(event)
    trace.end()
    return {
        "segments": segments,
        "device_traces": [trace.entries],
        "allocator_settings": {"producer": f"tazza {__version__}", "device": snapshot.device},
        "external_annotations": [],
    }


@final
class _Trace:
    """The events of one device, completed so that each address that occurs lies in a segment at that moment."""

    def __init__(self, snapshot: MemorySnapshot) -> None:
        self.entries: list[Entry] = []
        self._snapshot = snapshot
        self._segments = sorted((segment.address, segment.address + segment.nbytes) for segment in snapshot.segments)
        self._starts = [start for start, _ in self._segments]
        self._live = {block.address for block in snapshot.blocks}
        self._open: dict[int, MemoryEvent] = {}  # blocks with a segment of their own

    def add(self, event: MemoryEvent) -> None:
        """Append what one event becomes."""
        if event.kind == "oom":
            free = max(0, self._snapshot.total - self._snapshot.used)
            self._put("oom", event, addr=free, device_free=free)
            return
        inside = self._is_inside(event)
        if inside is None:
            return
        if event.kind == "allocate":
            if not inside:
                self._close(event.address, event)  # its end was lost
                self._put("segment_alloc", event)
                self._open[event.address] = event
            self._put("alloc", event)
        else:
            self._put("free_requested", event)
            self._put("free_completed", event)
            if not inside:
                self._open.pop(event.address, None)
                self._put("segment_free", event)

    def end(self) -> None:
        """End what is neither live in the snapshot nor was freed in the recording: its end was lost."""
        for address in [address for address in self._open if address not in self._live]:
            self._close(address, self._snapshot.events[-1])

    def _close(self, address: int, now: MemoryEvent) -> None:
        made = self._open.pop(address, None)
        if made is not None:
            for action in ("free_requested", "free_completed", "segment_free"):
                self._put(action, made, time_us=now.time_ns // 1000)

    def _is_inside(self, event: MemoryEvent) -> bool | None:
        """Whether a block lies in a segment of the snapshot; None where it only touches one that came later."""
        number = bisect_right(self._starts, event.address) - 1
        start, end = self._segments[number] if number >= 0 else (0, 0)
        if start <= event.address and event.address + event.nbytes <= end:
            return True if event.library == "tazza" else None
        following = self._starts[number + 1] if number + 1 < len(self._starts) else None
        reaches_next = following is not None and event.address + event.nbytes > following
        return None if event.address < end or reaches_next else False

    def _put(self, action: str, event: MemoryEvent, **changed: Any) -> None:
        self.entries.append(
            {
                "action": action,
                "addr": event.address,
                "size": event.nbytes,
                "stream": 0,
                "time_us": event.time_ns // 1000,
                "frames": _frames(event),
                "user_metadata": _about(event),
            }
            | changed
        )


def _segment(address: int, nbytes: int, blocks: tuple[RecordedBlock, ...], *, kind: str) -> Entry:
    live = [block for block in blocks if block.state == "live"]
    active = [block for block in blocks if block.state != "free"]
    return {
        "device": 0,
        "address": address,
        "total_size": nbytes,
        "allocated_size": sum(block.nbytes for block in live),
        "active_size": sum(block.nbytes for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": 0,
        "segment_type": "small" if nbytes <= _SMALL else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "user_metadata": kind,
        "blocks": [_block(block) for block in blocks],
    }


def _block(block: RecordedBlock) -> Entry:
    return {
        "address": block.address,
        "size": block.nbytes,
        "requested_size": block.requested if block.state != "free" else 0,
        "state": _STATES[block.state],
        "frames": _frames(block),
        "user_metadata": _about(block),
    }


def _about(item: RecordedBlock | MemoryEvent) -> str:
    """Label, owner and library in one line; the viewer shows it with the block."""
    return ", ".join(part for part in (item.label, " / ".join(item.owner), item.library) if part)


def _frames(item: RecordedBlock | MemoryEvent) -> list[Entry]:
    """The call site as PyTorch writes it. The label comes first, as a frame: not every viewer shows other texts."""
    frames = [_frame(text) for text in item.site]
    if frames and item.label:
        frames.insert(0, {"filename": item.label, "line": 0, "name": item.library})
    return frames


def _frame(text: str) -> Entry:
    """Take ``"file:line function"`` apart."""
    place, _, name = text.rpartition(" ")
    filename, _, line = place.rpartition(":")
    if not line.isdigit():
        return {"filename": text, "line": 0, "name": ""}
    return {"filename": filename, "line": int(line), "name": name}
