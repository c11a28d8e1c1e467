# cython: language_level=3, annotation_typing=False
"""The one instrumentation point: what happens to memory and streams passes here when somebody listens.

Hot code tests ``point.listeners is not None`` before it builds an `Operation`: that test is the whole cost while nobody
listens. Accounts, breadcrumbs, traces and the race checker are listeners.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from tazza.errors import CleanupWarning
from tazza.hot.process import after_fork
from tazza.util.report import report

__all__ = ["Operation", "Point", "emit", "listen", "point"]


class Operation(NamedTuple):
    """One thing that happened, or is about to be queued.

    Attributes:
        kind: at submission ``copy``, ``fill``, ``kernel``, ``launch``, ``record`` or ``wait``; when it happens
            ``allocate``, ``free``, ``oom`` (a refusal) or ``host_access``; when submitted work really runs, in the
            thread that runs it, ``begin`` and ``end``. Standing still, of a stream or of a host thread, has a
            ``begin`` and an ``end`` too.
        stream: the stream it belongs to, or None.
        label: the user's name for it, or None.
        nbytes: its size in bytes.
        reads: the buffers (or arrays) that it reads.
        writes: the buffers (or arrays) that it writes.
        subject: the object that it is about: a Buffer, Task or Event; for ``free`` the block, as the Buffer is gone;
            for ``oom`` the account; for NumPy's arrays a `ForeignBlock`. For ``begin`` and ``end`` the submission that
            runs, or the Event or Task that the stream stands still for; without a stream, what the host thread waits
            for. A begin is always followed by its end. On a device without host functions, what is in its own queues
            has neither.

    >>> Operation("fill", nbytes=64).kind
    'fill'
    """

    kind: str
    stream: Any = None
    label: str | None = None
    nbytes: int = 0
    reads: tuple[Any, ...] = ()
    writes: tuple[Any, ...] = ()
    subject: Any = None


Listener = Callable[[Operation], object]


class Point:
    """Holder of the listeners: None while nobody listens, else a tuple that is replaced and never changed."""

    __slots__ = ("listeners",)

    def __init__(self) -> None:
        self.listeners: tuple[Listener, ...] | None = None


point = Point()
_lock = threading.Lock()
_reported: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Call `listener` with every later `Operation`, in the thread in which it happens.

    Args:
        listener: must be quick and must not wait. What it raises is reported once, as a `CleanupWarning`.

    Returns:
        A function that unsubscribes it; calling that again does nothing.

    >>> seen = []
    >>> stop = listen(seen.append)
    >>> emit(Operation("record"))
    >>> stop()
    >>> [operation.kind for operation in seen]
    ['record']
    """
    subscribed = True

    def unsubscribe() -> None:
        nonlocal subscribed
        with _lock:
            if subscribed:
                subscribed = False
                _drop(listener)

    with _lock:
        point.listeners = (*(point.listeners or ()), listener)
    return unsubscribe


def emit(operation: Operation) -> None:
    """Give `operation` to every listener; a listener that raises keeps listening and never stops the work."""
    for listener in point.listeners or ():
        try:
            listener(operation)
        except Exception as error:  # any failure of a listener: reported by name, the work itself goes on
            _report(listener, error)


def _drop(listener: Listener) -> None:
    remaining = list(point.listeners or ())
    remaining.remove(listener)
    point.listeners = tuple(remaining) or None
    if listener in _reported:
        _reported.remove(listener)


def _report(listener: Listener, error: Exception) -> None:
    with _lock:
        if listener in _reported:
            return
        _reported.append(listener)
    report(f"hook listener {listener!r} failed and stays subscribed", CleanupWarning, error=error)


@after_fork
def _renew() -> None:
    global _lock
    _lock = threading.Lock()
