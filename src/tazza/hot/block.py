# cython: language_level=3, annotation_typing=False
"""Blocks: ranges of device memory as the pool sees them."""

from __future__ import annotations

from typing import Any, NamedTuple

from tazza.hot.account import Account

try:
    import cython  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    from tazza.hot import _cython as cython

__all__ = ["Block", "ForeignBlock"]


@cython.no_gc
@cython.freelist(64)
@cython.cclass
class Block:
    """One range of memory, live or kept for reuse. Made by a `Pool`; never tracked by the garbage collector.

    Attributes:
        address: first byte in the device's memory domain; 0 for an empty block.
        nbytes: bytes granted, a multiple of the pool's alignment.
        requested: bytes asked for.
        thread: the thread that it was handed out to.
        lane: the `Lane` of its home stream.
        pool: the `Pool` that it goes back to.
        account: charged while the block is live.
        label: what the user called it, or None.
        users: None, or the ``(stream, number)`` up to which streams besides the home stream use it.
        made: None, or the event after which its bytes are free of earlier uses on the home stream: the first use on
            another stream must come after it.
        live: it was handed out and has not come back; blocks whose Buffer is gone stay live until they are drained.
        next: the block below it on a stack of free blocks.
        small: it lies in a segment for small blocks.
        island: it is a segment of its own, given back to the source rather than kept.

    >>> Block(4096, 64, None, None).nbytes
    64
    """

    __slots__ = (
        "account",
        "address",
        "island",
        "label",
        "lane",
        "live",
        "made",
        "nbytes",
        "next",
        "pool",
        "requested",
        "small",
        "thread",
        "users",
    )

    def __init__(
        self, address: int, nbytes: int, lane: Any, pool: Any, *, small: bool = False, island: bool = False
    ) -> None:
        self.address = address
        self.nbytes = nbytes
        self.lane = lane
        self.pool = pool
        self.small = small
        self.island = island
        self.next: Block | None = None
        self.requested = 0
        self.thread = 0
        self.account: Account | None = None
        self.label: str | None = None
        self.users: list[tuple[Any, int]] | None = None
        self.made: Any = None
        self.live = False

    def __repr__(self) -> str:
        state = "live" if self.live else "free"
        return f"<Block of {self.nbytes} bytes at {self.address:#x}, {state}, {self.label or 'unlabelled'}>"

    @property
    def owner(self) -> Any:
        """The device runtime to which the memory belongs."""
        return self.pool.owner

    @property
    def library(self) -> str:
        """Who allocated it, as in `ForeignBlock`."""
        return "tazza"


class ForeignBlock(NamedTuple):
    """Memory that counts in an account and lies in no pool: another library's.

    Attributes:
        address: first byte, 0 where nobody knows.
        nbytes: bytes that are charged.
        account: what they are charged to; None once they were given back.
        thread: the thread that they were charged in.
        library: who allocated them.
        label: what the user called them, or None.
    """

    address: int
    nbytes: int
    account: Account | None
    thread: int
    library: str
    label: str | None = None
