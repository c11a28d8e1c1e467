# cython: language_level=3, annotation_typing=False
"""Accounts: who holds how many bytes, and how many they may hold."""

from __future__ import annotations

from typing import Any

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
    memory that a stream may still use ("pending"). An account with a reserve counts in its parent as the larger of its
    live bytes and the reserve: what is reserved here nobody else can take.

    Args:
        name: shown in errors and reports.
        limit: the most bytes that may be live at once, or None.
        parent: the account that this one's bytes count in too.

    Attributes:
        name, parent: as given.
        pool: the `Pool` whose source relieves it, the parent's unless said otherwise.
        hosted: its bytes are the host's, so that arrays which NumPy allocates count in it.
        patience: seconds that an allocation which this account refuses may wait for room; 0 does not wait.
        reserve: bytes set aside in the parent.
        live: bytes granted now.
        peak: the highest `live` since creation or `reset_peak`.
        requested: bytes asked for now; less than `live`, which is rounded to the alignment.
        blocks: blocks live now.
        allocations: blocks ever granted.
        total_allocated: bytes ever granted, or set aside for others below.
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
        "hosted",
        "live",
        "name",
        "ooms",
        "parent",
        "patience",
        "peak",
        "pool",
        "requested",
        "reserve",
        "total_allocated",
    )

    def __init__(self, name: str, limit: int | None = None, parent: Account | None = None) -> None:
        self.name = name
        self.parent = parent
        self.pool: Any = None if parent is None else parent.pool
        self.hosted: bool = parent is not None and parent.hosted
        self.patience = 0.0
        self.reserve = 0
        self.live = self.peak = self.requested = self.blocks = 0
        self.allocations = self.total_allocated = self.ooms = 0
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

    @property
    def total_freed(self) -> int:
        """Bytes ever given back."""
        return self.total_allocated - self.live

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the accounts that are charged, below the device's: the context's first."""
        names: list[str] = []
        account: Account | None = self
        while account is not None and account.parent is not None:
            names.append(account.name)
            account = account.parent
        return tuple(reversed(names))

    def counts_in(self, above: Account) -> bool:
        """Tell whether this account is `above` or below it."""
        account: Account | None = self
        while account is not None and account is not above:
            account = account.parent
        return account is above

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
                return self._charge(nbytes, requested, 1)
        return self._charge(nbytes, requested, 1)

    def uncharge(self, nbytes: int, requested: int) -> None:
        """Take a block of `nbytes` granted and `requested` asked for out of this account and every parent."""
        if LOCKED:
            with process.lock:
                self._uncharge(nbytes, requested, 1, None)
        else:
            self._uncharge(nbytes, requested, 1, None)

    def resize(self, nbytes: int) -> Account | None:
        """Count `nbytes` more, or fewer if below 0, for a block that is charged; returns what `charge` does."""
        if LOCKED:
            with process.lock:
                return self._resize(nbytes)
        return self._resize(nbytes)

    def set_aside(self, nbytes: int) -> Account | None:
        """Make `nbytes` the reserve; returns None, or the first parent whose limit refuses it and changes nothing."""
        if LOCKED:
            with process.lock:
                return self._set_aside(nbytes)
        return self._set_aside(nbytes)

    def refuses(self, nbytes: int) -> Account | None:
        """Return the account that would refuse `nbytes` more, or None; counts nothing."""
        account: Account | None = self
        while account is not None:
            if nbytes > account.cap - account.live:
                return account
            if account.reserve:
                nbytes = max(0, account.live + nbytes - max(account.live, account.reserve))
            account = account.parent
        return None

    def reset_peak(self) -> None:
        """Let `peak` start again from what is live now."""
        self.peak = self.live

    def _resize(self, nbytes: int) -> Account | None:
        if nbytes < 0:
            self._uncharge(-nbytes, -nbytes, 0, None)
            return None
        return self._charge(nbytes, nbytes, 0)

    def _set_aside(self, nbytes: int) -> Account | None:
        more = _above(self.live, nbytes) - _above(self.live, self.reserve)
        if self.parent is not None:
            if more <= 0:
                self.parent._uncharge(-more, 0, 0, None)
            else:
                refused = self.parent._charge(more, 0, 0)
                if refused is not None:
                    return refused
        self.reserve = nbytes
        return None

    def _charge(self, nbytes: int, requested: int, blocks: int) -> Account | None:
        # Adding comes before testing: a finaliser that allocates in between (uncompiled builds only) can then cause a
        # refusal too many, never a byte too many.
        account: Account | None = self
        rest = nbytes
        while account is not None:
            account.live += rest
            if account.live > account.cap:
                self._uncharge(nbytes, 0, 0, account)
                return account
            if account.reserve:
                rest = _above(account.live, account.reserve) - _above(account.live - rest, account.reserve)
            account = account.parent
        account = self
        while account is not None:
            if account.live > account.peak:
                account.peak = account.live
            account.requested += requested
            account.blocks += blocks
            account.allocations += blocks
            account.total_allocated += nbytes
            account = account.parent
        return None

    def _uncharge(self, nbytes: int, requested: int, blocks: int, last: Account | None) -> None:
        """Take bytes out from here up to and including `last`, or all the way."""
        account: Account | None = self
        while account is not None:
            account.live -= nbytes
            account.requested -= requested
            account.blocks -= blocks
            if account.reserve:
                nbytes = _above(account.live + nbytes, account.reserve) - _above(account.live, account.reserve)
            account = None if account is last else account.parent


def _above(live: int, reserve: int) -> int:
    """The bytes that an account counts in its parent."""
    return live if live > reserve else reserve
