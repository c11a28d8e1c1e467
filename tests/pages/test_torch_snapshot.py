"""Snapshots for PyTorch's viewer: the format, and the assumptions that the viewer makes about it."""

from __future__ import annotations

import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest

from tazza.core.snapshot import MemoryEvent, MemorySnapshot
from tazza.pages.torch_snapshot import as_torch, write
from tests.pages.snapshots import BASE, EMPTY, OWNERS, SEGMENT, START, Made

# What the unpickler inside the viewer understands.
OPCODES = {
    *("PROTO", "FRAME", "MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MARK", "STOP"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE1", "TUPLE2"),
    *("TUPLE3", "TUPLE", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE"),
}


def replay_backwards(snapshot: dict[str, Any]) -> int:
    """Walk through the trace as the viewer does, from the end: every block must lie in a segment at every moment."""
    segments = {segment["address"]: segment["total_size"] for segment in snapshot["segments"]}
    blocks: dict[int, int] = {}
    for segment in snapshot["segments"]:
        at = segment["address"]
        for block in segment["blocks"]:
            if block["state"] != "inactive":
                blocks[at] = block["size"]
            at += block["size"]

    def check() -> None:
        for address, size in blocks.items():
            assert any(start <= address and address + size <= start + length for start, length in segments.items())

    check()
    for event in reversed(snapshot["device_traces"][0]):
        address, size = event["addr"], event["size"]
        match event["action"]:
            case "segment_free":
                assert address not in segments
                segments[address] = size
            case "segment_alloc":
                assert segments.pop(address) == size
            case "free_completed":
                assert address not in blocks
                blocks[address] = size
            case "free_requested":
                assert address in blocks
            case "alloc":
                assert blocks.pop(address) == size
        check()
    return len(blocks)


@pytest.fixture(scope="module")
def made() -> Made:
    return Made(400)


def test_only_what_the_viewer_can_unpickle_is_written(tmp_path: Path, made: Made) -> None:
    path = tmp_path / "memory.pickle"
    write(made.snapshot, path)
    used = {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}
    assert used <= OPCODES
    assert pickle.loads(path.read_bytes()) == as_torch(made.snapshot)


def test_the_viewer_can_walk_back_through_the_trace(made: Made) -> None:
    assert replay_backwards(as_torch(made.snapshot)) == 0  # every block was made while it was recorded


def test_figures_of_segments_add_up(made: Made) -> None:
    found = as_torch(made.snapshot)
    live = sum(holding.nbytes for holding in made.snapshot.holdings)
    assert sum(segment["allocated_size"] for segment in found["segments"]) == live
    for segment in found["segments"]:
        assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"]
        assert segment["requested_size"] == sum(block["requested_size"] for block in segment["blocks"])


def test_labels_and_sites_are_shown_with_the_block(made: Made) -> None:
    for event, entry in zip(
        (event for event in made.snapshot.events if event.kind == "allocate"),
        (entry for entry in as_torch(made.snapshot)["device_traces"][0] if entry["action"] == "alloc"),
        strict=True,
    ):
        assert entry["user_metadata"].startswith(event.label or " / ".join(event.owner))
        frames = entry["frames"][1:] if event.label else entry["frames"]
        assert [f"{frame['filename']}:{frame['line']} {frame['name']}" for frame in frames] == list(event.site)


def event(kind: str, address: int, nbytes: int, library: str = "numpy", after: int = 0) -> MemoryEvent:
    return MemoryEvent(START + after, kind, address, nbytes, OWNERS[0], "x", library, ("strange site",))


def with_events(*events: MemoryEvent) -> MemorySnapshot:
    base = Made(100).snapshot
    about = base.headings, base.holdings, base.balances, base.segments, base.blocks, base.largest_placeable
    return MemorySnapshot("cpu:0", START, base.total, base.used, *about, events)


def actions(snapshot: MemorySnapshot) -> list[str]:
    return [entry["action"] for entry in as_torch(snapshot)["device_traces"][0]]


END = ["free_requested", "free_completed", "segment_free"]


def test_lost_ends_are_completed() -> None:
    again = with_events(event("allocate", 4096, 64), event("allocate", 4096, 128, after=5))
    assert actions(again) == ["segment_alloc", "alloc", *END] * 2
    replay_backwards(as_torch(again))
    freed = with_events(event("free", 4096, 64))
    assert actions(freed) == END
    assert replay_backwards(as_torch(freed)) > 0


def test_memory_that_lay_where_a_segment_is_now_is_left_out() -> None:
    inside, across = event("allocate", BASE + 64, 64), event("allocate", BASE - 64, 128)
    behind = event("allocate", BASE + SEGMENT - 64, 128, "tazza")
    assert actions(with_events(inside, across, behind)) == []


def test_refusals_say_how_much_was_free() -> None:
    snapshot = with_events(event("oom", 0, 1 << 30))
    [entry] = as_torch(snapshot)["device_traces"][0]
    assert entry["action"] == "oom"
    assert entry["device_free"] == entry["addr"] == snapshot.total - snapshot.used
    assert entry["frames"][-1] == {"filename": "strange site", "line": 0, "name": ""}


def test_an_empty_snapshot_is_valid() -> None:
    assert as_torch(EMPTY)["segments"] == []
    assert as_torch(EMPTY)["device_traces"] == [[]]


def test_the_functions_of_torch_read_it(tmp_path: Path, made: Made) -> None:
    viz = pytest.importorskip("torch.cuda._memory_viz", reason="needs torch, whose tools read the format")
    write(made.snapshot, tmp_path / "memory.pickle")
    found = pickle.loads((tmp_path / "memory.pickle").read_bytes())
    assert f"segments: {len(found['segments'])}" in viz.segsum(found)
    assert "TOTAL MEM" in viz.trace(found)
    names = viz.segments(found, format_flamegraph=lambda text: text)
    assert "model.py" in names
    page = viz.trace_plot(found)
    assert json.dumps("snapshot.pickle") in page
