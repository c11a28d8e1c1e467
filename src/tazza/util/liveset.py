"""Objects that are known as long as they live, listed by any thread at any time."""

from __future__ import annotations

from typing import Generic, TypeVar, final
from weakref import ref

__all__ = ["LiveSet"]

T = TypeVar("T")


@final
class LiveSet(Generic[T]):
    """Weak references to objects, compared by identity.

    `weakref.WeakSet` is no choice: its iteration fails where another thread, or a finaliser in this one, adds to it
    meanwhile. Here each step is one call of a built-in set on references, which runs no other code.

    >>> class Thing: pass
    >>> things, one = LiveSet(), Thing()
    >>> things.add(one)
    >>> len(things.now())
    1
    >>> del one
    >>> things.now()
    []
    """

    def __init__(self) -> None:
        self._refs: set[ref[T]] = set()

    def add(self, item: T) -> None:
        """Know an object, whose ``__hash__`` and ``__eq__`` must be those of `object`, from now on."""
        self._refs.add(ref(item, self._refs.discard))

    def now(self) -> list[T]:
        """Return those that live now, in no order."""
        items = (one() for one in list(self._refs))
        return [item for item in items if item is not None]
