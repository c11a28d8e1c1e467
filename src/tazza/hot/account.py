# cython: language_level=3, annotation_typing=False
"""Accounts: who holds how many bytes, and how many they may hold."""

from __future__ import annotations

from tazza.errors import ArgumentError
from tazza.hot.process import locked, process

try:
    import cython  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    from tazza.hot import _cython as cython

__all__ = ["UNLIMITED", "Account"]

LOCKED = locked(__file__)
UNLIMITED = 1 << 62
"""The value of `Account.cap` without a limit, in bytes; larger limits mean the same."""


@cython.no_gc
@cython.cclass
class Account:
    """Counts the live bytes of one owner, and of everything below it, against a limit.

    A charge counts in the account and in each of its parents, in all of them or in none. Live bytes include freed
    memory that a stream may still use ("pending").

    Args:
        name: shown in errors and reports.
        limit: the most bytes that may be live at once, or None.
        parent: the account that this one's bytes count in too.

    Attributes:
        name, parent: as given.
        live: bytes granted now.
        peak: the highest `live` since creation or `reset_peak`.
        requested: bytes asked for now; less than `live`, which is rounded to the alignment.
        blocks: blocks live now.
        allocations: blocks ever granted.
        total_allocated, total_freed: bytes ever granted and given back.
        ooms: out-of-memory errors raised on its behalf.

    >>> account = Account("model", limit=1024)
    >>> account.charge(1024, 1000) is None, account.live, account.requested
    (True, 1024, 1000)
    >>> account.charge(64, 1).name
    'model'
    """

    __slots__ = (
        "allocations",
        "blocks",
        "cap",
        "live",
        "name",
        "ooms",
        "parent",
        "peak",
        "requested",
        "total_allocated",
        "total_freed",
    )

    def __init__(self, name: str, limit: int | None = None, parent: Account | None = None) -> None:
        self.name = name
        self.parent = parent
        self.live = self.peak = self.requested = self.blocks = 0
        self.allocations = self.total_allocated = self.total_freed = self.ooms = 0
        self.limit = limit

    def __repr__(self) -> str:
        limit = "no limit" if self.limit is None else f"limit {self.limit}"
        return f"<Account {self.name!r}: {self.live} bytes live in {self.blocks} blocks, {limit}>"

    @property
    def limit(self) -> int | None:
        """The most bytes that may be live at once, or None. A limit below `live` refuses until enough was freed."""
        return None if self.cap == UNLIMITED else self.cap

    @limit.setter
    def limit(self, limit: int | None) -> None:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ArgumentError.of("limit", limit, "a whole number of bytes from 0, or None")
        self.cap = UNLIMITED if limit is None else min(limit, UNLIMITED)

    def charge(self, nbytes: int, requested: int) -> Account | None:
        """Count a block here and in every parent, or nowhere.

        Args:
            nbytes: bytes granted.
            requested: bytes asked for.

        Returns:
            None if it was counted, else the first account, from here upwards, whose limit refuses it.
        """
        if LOCKED:
            with process.lock:
                return self._charge(nbytes, requested)
        return self._charge(nbytes, requested)

    def uncharge(self, nbytes: int, requested: int) -> None:
        """Take a block of `nbytes` granted and `requested` asked for out of this account and every parent."""
        if LOCKED:
            with process.lock:
                self._uncharge(nbytes, requested)
        else:
            self._uncharge(nbytes, requested)

    def refuses(self, nbytes: int) -> Account | None:
        """Return the account that would refuse `nbytes` more, or None; counts nothing."""
        account: Account | None = self
        while account is not None:
            if nbytes > account.cap - account.live:
                return account
            account = account.parent
        return None

    def reset_peak(self) -> None:
        """Let `peak` start again from what is live now."""
        self.peak = self.live

    def _charge(self, nbytes: int, requested: int) -> Account | None:
        # Adding comes before testing: a finaliser that allocates in between (uncompiled builds only) can then cause a
        # refusal too many, never a byte too many.
        account: Account | None = self
        while account is not None:
            account.live += nbytes
            if account.live > account.cap:
                self._back_out(account, nbytes)
                return account
            account = account.parent
        account = self
        while account is not None:
            if account.live > account.peak:
                account.peak = account.live
            account.requested += requested
            account.blocks += 1
            account.allocations += 1
            account.total_allocated += nbytes
            account = account.parent
        return None

    def _back_out(self, last: Account, nbytes: int) -> None:
        account: Account | None = self
        while account is not None:
            account.live -= nbytes
            account = None if account is last else account.parent

    def _uncharge(self, nbytes: int, requested: int) -> None:
        account: Account | None = self
        while account is not None:
            account.live -= nbytes
            account.requested -= requested
            account.blocks -= 1
            account.total_freed += nbytes
            account = account.parent
