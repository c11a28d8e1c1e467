"""What a launched function does with its arguments, as the user says it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from tazza.core.arraylib import map_leaves
from tazza.core.task import Task
from tazza.errors import ArgumentError
from tazza.hot import Buffer

__all__ = ["Accesses", "accesses", "buffers_of", "kernel"]

F = TypeVar("F", bound=Callable[..., Any])


class Accesses(NamedTuple):
    """Names of parameters, or None where nothing was said: reads and writes all."""

    reads: frozenset[str]
    writes: frozenset[str]


def kernel(*, reads: Iterable[str] = (), writes: Iterable[str] = ()) -> Callable[[F], F]:
    """Say which parameters a function reads and writes when it is launched; unsaid is both for all.

    For the race checker and the trace; order never uses it. Parameters that are named in neither are not touched.

    >>> import tazza as tz
    >>> @tz.kernel(reads=("x",), writes=("out",))
    ... def double(x, out):
    ...     out[...] = 2 * x
    """

    def decorate(function: F) -> F:
        function.__tazza_accesses__ = _checked(function, reads, writes)  # type: ignore[attr-defined]
        return function

    return decorate


def accesses(
    function: Callable[..., Any], reads: Iterable[str] | None, writes: Iterable[str] | None
) -> Accesses | None:
    """What a launch says, else what the function's decorator said, else None.

    Raises:
        ArgumentError: a name is no parameter of the function.
    """
    if reads is None and writes is None:
        return getattr(function, "__tazza_accesses__", None)
    return _checked(function, reads or (), writes or ())


def buffers_of(
    function: Callable[..., Any], args: tuple[Any, ...], said: Accesses | None
) -> tuple[tuple[Buffer, ...], tuple[Buffer, ...]]:
    """The buffers among the arguments that the function reads, and those that it writes."""
    if said is None:
        both = tuple(_buffers(args))
        return both, both
    bound = inspect.signature(function).bind(*args).arguments
    read, written = (
        tuple(_buffers([bound[name] for name in bound if name in names])) for names in (said.reads, said.writes)
    )
    return read, written


def _checked(function: Callable[..., Any], reads: Iterable[str], writes: Iterable[str]) -> Accesses:
    said = Accesses(frozenset(reads), frozenset(writes))
    parameters = inspect.signature(function).parameters
    for name in sorted(said.reads | said.writes):
        if name not in parameters:
            raise ArgumentError.of("reads/writes", name, f"parameters of the function: {', '.join(parameters)}")
    return said


def _buffers(value: Any) -> list[Buffer]:
    found: list[Buffer] = []
    map_leaves(partial(_collect, found), value)
    return found


def _collect(found: list[Buffer], leaf: Any) -> None:
    # Not a nested function that names itself: that is a cycle, which would hold the buffers until the next collection.
    if isinstance(leaf, Task) and leaf.poll():
        map_leaves(partial(_collect, found), leaf.peek())
    elif isinstance(leaf, Buffer):
        found.append(leaf)
