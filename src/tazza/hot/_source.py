"""What a pool needs from the world: memory in large pieces, and word of when streams are done with it."""

from __future__ import annotations

from typing import Protocol

from tazza.hot.account import Account
from tazza.hot.block import Block
from tazza.hot.lane import Lane

__all__ = ["Source", "Ticket"]


class Ticket(Protocol):
    """What `Source.retire` returns: usually an event."""

    @property
    def is_done(self) -> bool:
        """Whether the memory is no longer used; asked without waiting."""


class Source(Protocol):
    """Where a pool's memory comes from, and who knows the streams."""

    def reserve(self, nbytes: int, lane: Lane) -> tuple[int, Ticket | None]:
        """Return the address of fresh bytes, and the event that uses on others than the lane's home stream come after.

        Raises OutOfMemoryError; called without a lock, from any thread.
        """

    def release(self, address: int, nbytes: int, lane: Lane) -> None:
        """Give back what `reserve` returned; nothing uses it any more but, where `retire` says so, the home stream."""

    def retire(self, block: Block) -> Ticket | None:
        """Return None where a freed block can be reused in its lane (an island: by anybody) at once, else a ticket."""

    def quiescent(self, lane: Lane) -> Ticket | None:
        """Return None where no queued work can touch the lane's free memory, else a ticket for when that is so."""

    def order(self, lane: Lane) -> Ticket | None:
        """Return None where work of the lane's home stream up to ``lane.freed_at`` is over, else the event after it."""

    def relieve(self, nbytes: int, refused: Account | None, attempt: int) -> bool:
        """Try to free memory; returns whether another attempt makes sense.

        Args:
            nbytes: bytes that could not be had.
            refused: the account whose limit refused them, or None where the device is full.
            attempt: 0 the first time.
        """

    def closed(self, block: Block) -> None:
        """Take note that a user closed the buffer of a block of an exact pool; arrays may still see its memory."""

    def exhausted(self, requested: int, refused: Account | None, account: Account) -> Exception:
        """Return the error to raise once no relief is left."""
