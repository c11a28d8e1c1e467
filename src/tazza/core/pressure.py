"""What users do when memory runs short: handlers, called in the order of their priority."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

from tazza.errors import CleanupWarning
from tazza.hot import Account
from tazza.util.report import report

__all__ = ["Handler", "Pressure", "ask"]

_numbers = itertools.count(1)

Handler = Callable[[int], object]
"""Called with the bytes that are wanted; frees what it can. What it returns does not matter."""


class _Entry(NamedTuple):
    priority: int
    number: int
    account: Account
    handler: Handler


@final
class Pressure:
    """The handlers of one device's contexts."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()
        self._reported: set[int] = set()

    def add(self, account: Account, handler: Handler, priority: int) -> Callable[[], None]:
        """Have `handler` called where memory under `account` is short; returns what removes it."""
        with self._lock:
            entry = _Entry(priority, next(_numbers), account, handler)
            self._entries = [*self._entries, entry]

        def remove() -> None:
            with self._lock:
                self._entries = [kept for kept in self._entries if kept is not entry]

        return remove

    def call(self, entry: _Entry, nbytes: int) -> None:
        """Call one handler; what it raises is reported once."""
        try:
            entry.handler(nbytes)
        except Exception as error:  # the next one may help all the same
            self._report(entry, error)

    def entries(self) -> list[_Entry]:
        """The handlers, at one moment."""
        return self._entries

    def _report(self, entry: _Entry, error: Exception) -> None:
        with self._lock:
            if entry.number in self._reported:
                return
            self._reported.add(entry.number)
        name: Any = getattr(entry.handler, "__qualname__", entry.handler)
        report(f"memory pressure handler {name!r} failed and stays registered", CleanupWarning, error=error)


def ask(pressures: Iterable[Pressure], nbytes: int, refused: Account | None, is_enough: Callable[[], bool]) -> None:
    """Call the handlers that can help, in the order of their priority, until it is enough; no lock is held.

    Args:
        pressures: of every device that lies in the memory.
        nbytes: bytes wanted.
        refused: the account whose limit was met, whose own handlers and those of the accounts above it can help; None
            where the device is full and every handler can.
        is_enough: asked after each handler.
    """
    found = [(pressure, entry) for pressure in pressures for entry in pressure.entries()]
    for pressure, entry in sorted(found, key=lambda one: (-one[1].priority, one[1].number)):
        if refused is None or refused.counts_in(entry.account):
            pressure.call(entry, nbytes)
            if is_enough():
                return
