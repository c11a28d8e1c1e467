"""Charges: bytes that another library takes, counted in a context's account as if they were its own."""

from __future__ import annotations

import itertools
import threading
from types import TracebackType
from typing import Any, NoReturn, final

from tazza.core.pool import MemoryPool
from tazza.errors import ArgumentError, ClosedError, UsageError
from tazza.hot import Account, ForeignBlock, generation, wake
from tazza.util.text import parse_nbytes

__all__ = ["Charge"]

_numbers = itertools.count(1)


@final
class Charge:
    """Bytes that somebody else holds, counted until it is closed or dropped. Made by ``ctx.memory.charge``.

    It holds no memory itself: it makes room for what another library is about to take, and keeps limits, budgets and
    reports honest. Any thread may close it.

    >>> import tazza as tz
    >>> with tz.open("cpu", memory_limit="1MiB") as ctx:
    ...     with ctx.memory.charge("512KiB", label="a table of another library") as charge:
    ...         charge.resize("600KiB")
    ...         ctx.memory.stats().live
    614400
    """

    def __init__(self, pool: MemoryPool, account: Account, nbytes: int, label: str | None, library: str) -> None:
        self._number = 0  # for the finaliser, until it is counted
        self._pool, self._account = pool, account
        self._label, self._library = label, library
        self._generation = generation()
        pool.charge(account, nbytes)
        self._number = next(_numbers)
        self._note(nbytes)

    def _note(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._pool.runtime.charges[self._number] = ForeignBlock(
            0, nbytes, self._account, threading.get_ident(), self._library, self._label
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it counts now; 0 once closed."""
        return self._nbytes if self._number else 0

    def resize(self, nbytes: int | str) -> None:
        """Count so many bytes from now on, with the same relief as an allocation where they are more.

        Raises:
            OutOfMemoryError: a limit refuses them; nothing has changed.
            ClosedError: it was closed.
        """
        wanted = parse_nbytes(nbytes, argument="nbytes")
        if not self._number:
            raise ClosedError(f"{self!r} is closed; make another with ctx.memory.charge(nbytes)")
        more = wanted - self._nbytes
        if more <= 0:
            self._account.resize(more)
            wake()
        else:
            attempt = 0
            while (refused := self._account.resize(more)) is not None:
                if not self._pool.relieve(more, refused, attempt):
                    raise self._pool.exhausted(more, refused, self._account)
                attempt += 1
        self._note(wanted)

    def close(self) -> None:
        """Stop counting; idempotent."""
        number, self._number = self._number, 0
        if number and self._generation == generation():
            block = self._pool.runtime.charges.pop(number, None)
            if block is not None:
                self._account.uncharge(block.nbytes, block.nbytes)
                wake()

    def __enter__(self) -> Charge:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._number and self._generation == generation():
            self._pool.runtime.dropped_charges.append(self._number)
            wake()

    def __repr__(self) -> str:
        return f"<Charge of {self.nbytes} bytes for {self._label or self._library}, {self._account.name}>"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a charge cannot be pickled; make one in the process that takes the memory")


def checked_label(label: Any, argument: str = "label") -> str | None:
    """Return a label as it was given, or raise ArgumentError where it is none."""
    if label is not None and type(label) is not str:
        raise ArgumentError.of(argument, label, "a str or None")
    return label
