"""What a device's memory holds at one moment: frozen values, in the words of reports."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

from tazza.core import registry
from tazza.errors import ArgumentError

__all__ = ["Balance", "Heading", "Holding", "MemoryEvent", "MemorySnapshot", "RecordedBlock", "Segment"]


class Heading(NamedTuple):
    """One line of the account of a device: so many of its used bytes are this.

    Attributes:
        name: ``live``, ``pending``, ``cached``, ``workspaces``, ``pinned``, ``foreign: torch``, ``other of this
            process``, ``file cache``, ``other processes``, ``unexplained`` and the like.
        nbytes: may be below zero for what was granted and not touched yet, which the device does not count.
        note: what to know about the figure, or an empty string.
    """

    name: str
    nbytes: int
    note: str = ""


class Holding(NamedTuple):
    """Live bytes of one owner under one label.

    Attributes:
        owner: the accounts that are charged, the context's first: ``("context on cpu:0", "decode")``.
        label: what the user called the memory, or None.
        library: who allocated it: ``"tazza"``, ``"numpy"``.
        nbytes, blocks: how much, in how many pieces.
    """

    owner: tuple[str, ...]
    label: str | None
    library: str
    nbytes: int
    blocks: int


class Balance(NamedTuple):
    """The figures of a context, or of a budget inside it, in bytes; those of one name and place are one row.

    Attributes:
        owner: names from the context inward.
        live: granted and not given back, pending bytes included; of all together.
        peak: the highest `live` of any one.
        limit: the largest limit of any one; None where one has none.
        reserve: set aside, of all together.
        ooms: allocations that were refused, of all together.
        accounts: how many share the row.
    """

    owner: tuple[str, ...]
    live: int
    peak: int
    limit: int | None
    reserve: int = 0
    ooms: int = 0
    accounts: int = 1


class RecordedBlock(NamedTuple):
    """One block of memory.

    Attributes:
        address, nbytes: where, and how much was granted.
        requested: bytes that were asked for.
        state: ``"live"``, ``"pending"`` (freed, a stream may still use it) or ``"free"``.
        owner, label, library: as in `Holding`; empty for free blocks.
        site: ``"file:line function"`` of each frame, innermost first; empty unless sites were recorded.
    """

    address: int
    nbytes: int
    requested: int
    state: str
    owner: tuple[str, ...] = ()
    label: str | None = None
    library: str = "tazza"
    site: tuple[str, ...] = ()


class Segment(NamedTuple):
    """What a pool holds from its device in one piece, and the blocks in it by ascending address."""

    address: int
    nbytes: int
    pool: str
    blocks: tuple[RecordedBlock, ...]


class MemoryEvent(NamedTuple):
    """One change that was recorded.

    Attributes:
        time_ns: nanoseconds since the epoch.
        kind: ``"allocate"``, ``"free"`` or ``"oom"``.
        address, nbytes: of the block; for ``"oom"`` the bytes asked for.
        owner, label, library, site: as in `RecordedBlock`.
    """

    time_ns: int
    kind: str
    address: int
    nbytes: int
    owner: tuple[str, ...]
    label: str | None
    library: str
    site: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MemorySnapshot:
    """The account of one device at one moment; made by ``ctx.memory.snapshot()``.

    Attributes:
        device: its name.
        time_ns: nanoseconds since the epoch.
        total, used: bytes of the device, or of the control group where that is smaller, as the system reports them.
        headings: their bytes add up to `used`.
        holdings: the owners of what is live or pending, largest first.
        balances: every account of the device, by owner: each context's, then the budgets in it.
        segments: what the pools hold from the device, by ascending address.
        blocks: live memory outside of the pools: NumPy's own arrays, charges for other libraries, and the like.
        largest_placeable: bytes of the largest block that fits into the pools as they are.
        events: what was recorded, oldest first; empty unless recording.
        events_lost: events that the recording had no room for.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx:
    ...     weights = ctx.allocate(1024, label="weights of an example")
    ...     snapshot = ctx.memory.snapshot()
    ...     sum(heading.nbytes for heading in snapshot.headings) == snapshot.used
    ...     [holding.nbytes for holding in snapshot.holdings if holding.label == "weights of an example"]
    True
    [1024]
    """

    device: str
    time_ns: int
    total: int
    used: int
    headings: tuple[Heading, ...]
    holdings: tuple[Holding, ...]
    balances: tuple[Balance, ...]
    segments: tuple[Segment, ...]
    blocks: tuple[RecordedBlock, ...]
    largest_placeable: int
    events: tuple[MemoryEvent, ...] = ()
    events_lost: int = 0

    @property
    def fragmentation(self) -> float:
        """Share of the pools' free bytes that one block of them could not have: 0 where they lie in one piece."""
        free = sum(block.nbytes for segment in self.segments for block in segment.blocks if block.state == "free")
        return 1 - min(self.largest_placeable, free) / free if free else 0.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file: ``*.html`` our own page, ``*.pickle`` for PyTorch's memory visualiser; atomically.

        Raises:
            ArgumentError: another suffix.
        """
        suffix = os.path.splitext(os.fspath(path))[1]
        if suffix not in _WRITERS:
            raise ArgumentError.of("path", os.fspath(path), f"a name that ends in {' or '.join(_WRITERS)}")
        writer: Any = registry.load(_WRITERS[suffix])
        writer(self, path)


_WRITERS = {".html": "pages.memory", ".pickle": "pages.torch_snapshot"}
