"""Snapshots made by hand, whose figures are consistent and known."""

from __future__ import annotations

import random
from collections import Counter

from tazza.core.snapshot import Balance, Heading, Holding, MemoryEvent, MemorySnapshot, RecordedBlock, Segment

HOSTILE = "</script><img src=x onerror=alert(1)>"
OWNERS = (("context on cpu:0",), ("context on cpu:0", "decode"), ("context on cpu:0", "train"))
SITES = tuple((f"model.py:{line} forward", "train.py:9 <module>") for line in range(1, 21))
LABELS = ("weights", "activations", None, HOSTILE)
START = 1_700_000_000_000_000_000
SEGMENT, BASE, OUTSIDE = 1 << 20, 0x7F00_0000_0000, 0x5500_0000_0000
SIZES = (256, 4096, 65536)

EMPTY = MemorySnapshot("cpu:0", START, 1 << 30, 0, (), (), (), (), (), 0)


class Made:
    """A snapshot after random changes, and what a page must say about it.

    Half of the memory is the pool's and lies in segments that stay, half is NumPy's and lies outside.

    Attributes:
        snapshot: the snapshot.
        totals: live bytes after each change.
        peak: the highest of them.
    """

    def __init__(self, changes: int, seed: int = 0) -> None:
        draw = random.Random(seed)
        live: dict[int, MemoryEvent] = {}
        places = {"tazza": BASE, "numpy": OUTSIDE}
        events: list[MemoryEvent] = []
        self.totals: list[int] = []
        time, total = START, 0
        for number in range(changes):
            time += draw.randrange(200, 20_000)
            grows = draw.random() < (0.6 if number * 8 // changes % 2 == 0 else 0.4)
            if live and not grows:
                made = live.pop(draw.choice(tuple(live)) if len(live) < 50 else next(iter(live)))
                events.append(_again(made, time, "free"))
                total -= made.nbytes
            else:
                library, nbytes = draw.choice(("tazza", "numpy")), draw.choice(SIZES)
                if places[library] % SEGMENT + nbytes > SEGMENT:
                    places[library] += -places[library] % SEGMENT
                about = draw.choice(OWNERS), draw.choice(LABELS), library, draw.choice(SITES)
                made = MemoryEvent(time, "allocate", places[library], nbytes, *about)
                places[library] += nbytes
                live[made.address] = made
                events.append(made)
                total += nbytes
            self.totals.append(total)
        self.peak = max(self.totals, default=0)
        self.snapshot = _snapshot(time, tuple(events), live, places["tazza"], self.peak)


def _again(made: MemoryEvent, time: int, kind: str) -> MemoryEvent:
    return MemoryEvent(time, kind, made.address, made.nbytes, made.owner, made.label, made.library, made.site)


def _block(made: MemoryEvent) -> RecordedBlock:
    asked = made.nbytes - made.nbytes // 10
    return RecordedBlock(made.address, made.nbytes, asked, "live", made.owner, made.label, made.library, made.site)


def _snapshot(
    time: int, events: tuple[MemoryEvent, ...], live: dict[int, MemoryEvent], end: int, peak: int
) -> MemorySnapshot:
    segments = tuple(_segment(start, live) for start in range(BASE, end, SEGMENT))
    free = [block.nbytes for segment in segments for block in segment.blocks if block.state == "free"]
    nbytes: Counter[tuple[tuple[str, ...], str | None, str]] = Counter()
    blocks: Counter[tuple[tuple[str, ...], str | None, str]] = Counter()
    for made in live.values():
        nbytes[made.owner, made.label, made.library] += made.nbytes
        blocks[made.owner, made.label, made.library] += 1
    total = nbytes.total()
    headings = (
        Heading("live", total),
        Heading("cached", sum(free), "free in the pools"),
        Heading("other of this process", 300 << 20, "the interpreter and its libraries"),
        Heading("file cache", 90 << 20),
        Heading("untouched", -(20 << 20), "granted and never touched"),
        Heading("unexplained", 1 << 20),
    )
    return MemorySnapshot(
        device="cpu:0",
        time_ns=time,
        total=4 << 30,
        used=sum(heading.nbytes for heading in headings),
        headings=headings,
        holdings=tuple(Holding(*key, size, blocks[key]) for key, size in nbytes.most_common()),
        balances=(Balance(OWNERS[0], total, peak, 1 << 30), Balance(OWNERS[1], total // 3, peak // 2, None, 4096, 2)),
        segments=segments,
        blocks=tuple(_block(made) for made in live.values() if made.library == "numpy"),
        largest_placeable=max(free, default=0),
        events=events,
    )


def _segment(start: int, live: dict[int, MemoryEvent]) -> Segment:
    blocks: list[RecordedBlock] = []
    at = start
    for address in sorted(address for address in live if start <= address < start + SEGMENT):
        if address > at:
            blocks.append(RecordedBlock(at, address - at, 0, "free"))
        blocks.append(_block(live[address]))
        at = address + live[address].nbytes
    if at < start + SEGMENT:
        blocks.append(RecordedBlock(at, start + SEGMENT - at, 0, "free"))
    return Segment(start, SEGMENT, "caching", tuple(blocks))
