"""The page of a memory snapshot: the account, who held what when, what lived at the peak, the segments, a search."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from tazza._version import __version__
from tazza.core.snapshot import Balance, Heading, Holding, MemoryEvent, MemorySnapshot, RecordedBlock
from tazza.pages.document import Texts, write_document

__all__ = ["account_data", "owner_name", "page_data", "when", "write"]

_STATES = {"live": 0, "pending": 1, "free": 2}
_KINDS = {"allocate": 0, "free": 1, "oom": 2}
_EXACT = 1 << 53
"""From here on not every whole number is one in JavaScript."""


def write(snapshot: MemorySnapshot, path: str | os.PathLike[str]) -> None:
    """Write the page of `snapshot`; see `MemorySnapshot.save`."""
    scripts = ("shared.js", "account.js", "memory.js")
    write_document(path, f"Memory of {snapshot.device}", scripts, page_data(snapshot))


def page_data(snapshot: MemorySnapshot) -> dict[str, Any]:
    """Return what the page's script works on, in JSON's types; equal texts and call sites are there once."""
    texts, sites = Texts(), Texts()
    inside = [(number, block) for number, segment in enumerate(snapshot.segments) for block in segment.blocks]
    blocks = [*inside, *((-1, block) for block in snapshot.blocks)]
    starts = [segment.address for segment in snapshot.segments]
    return {
        "device": snapshot.device,
        "version": __version__,
        "when": when(snapshot.time_ns),
        "total": snapshot.total,
        "used": snapshot.used,
        "fragmentation": snapshot.fragmentation,
        "largest_placeable": snapshot.largest_placeable,
        **account_data(snapshot.headings, snapshot.balances, snapshot.holdings),
        "segments": [
            {"address": address(segment.address), "nbytes": segment.nbytes, "pool": segment.pool}
            for segment in snapshot.segments
        ],
        "blocks": {
            **_common([block for _, block in blocks], texts, sites),
            "requested": [block.requested for _, block in blocks],
            "state": [_STATES[block.state] for _, block in blocks],
            "segment": [number for number, _ in blocks],
            "offset": [block.address - starts[number] if number >= 0 else 0 for number, block in blocks],
        },
        "events": {
            **_common(snapshot.events, texts, sites),
            "kind": [_KINDS[event.kind] for event in snapshot.events],
            "time": [event.time_ns - snapshot.events[0].time_ns for event in snapshot.events],
        },
        "events_lost": snapshot.events_lost,
        "texts": texts.all,
        "sites": sites.all,
    }


def account_data(
    headings: Iterable[Heading], balances: Iterable[Balance], holdings: Iterable[Holding]
) -> dict[str, list[dict[str, Any]]]:
    """Return the tables of an account in JSON's types."""
    return {
        "headings": [{"name": one.name, "nbytes": one.nbytes, "note": one.note} for one in headings],
        "balances": [
            {
                "owner": owner_name(one.owner),
                "depth": len(one.owner),
                "live": one.live,
                "peak": one.peak,
                "limit": one.limit,
                "reserve": one.reserve,
                "ooms": one.ooms,
                "accounts": one.accounts,
            }
            for one in balances
        ],
        "holdings": [
            {
                "owner": owner_name(one.owner),
                "label": one.label,
                "library": one.library,
                "nbytes": one.nbytes,
                "blocks": one.blocks,
            }
            for one in holdings
        ],
    }


def owner_name(owner: tuple[str, ...]) -> str:
    """Return the accounts that are charged as one text.

    >>> owner_name(("context on cpu:0", "decode"))
    'context on cpu:0 / decode'
    """
    return " / ".join(owner)


def when(time_ns: int) -> str:
    """Return a moment for people, in UTC.

    >>> when(0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def address(value: int) -> int | str:
    """Return an address as JavaScript can keep it: as text where its numbers are not exact any more."""
    return value if abs(value) < _EXACT else hex(value)


def _common(items: Iterable[RecordedBlock | MemoryEvent], texts: Texts, sites: Texts) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {name: [] for name in ("address", "nbytes", "owner", "label", "library", "site")}
    for item in items:
        columns["address"].append(address(item.address))
        columns["nbytes"].append(item.nbytes)
        columns["owner"].append(texts.number(owner_name(item.owner)))
        columns["label"].append(texts.number(item.label))
        columns["library"].append(texts.number(item.library))
        columns["site"].append(sites.number(item.site or None))
    return columns
