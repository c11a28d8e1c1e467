# cython: language_level=3, annotation_typing=False
"""Frames: which context, stream and account are current, for each Python context (thread, asyncio task).

One ContextVar holds the top frame; frames are immutable and linked to their parents, so nothing is stored on the shared
context object and one context can be entered from many threads at once. Leaving resets the variable with the token that
the frame keeps: Python refuses such a reset in another thread or asyncio context than the entry's, and the owner test
refuses an exit that is not on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, Self, TypeVar

from tazza.errors import NoCurrentContextError, UsageError
from tazza.hot import _native
from tazza.hot.process import process

try:
    import cython  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    from tazza.hot import _cython as cython

__all__ = ["Frame", "Scope", "current", "frame_of", "run_in", "set_default", "top"]

T = TypeVar("T")
S = TypeVar("S", bound="Scope")


@cython.freelist(16)
@cython.cclass
class Frame:
    """What is current inside one scope. Immutable for users; `token` and `generation` belong to this module.

    Attributes:
        owner: the `Scope` that pushed it; only the owner's exit may remove it.
        context: the current context.
        stream: the current stream of that context.
        account: the account that allocations of that context are charged to.
        task: the task that runs here, or None.
        parent: the frame below, or None.

    >>> Frame("owner", "context", None, None, None, None).context
    'context'
    """

    __slots__ = ("__weakref__", "account", "context", "generation", "owner", "parent", "stream", "task", "token")

    def __init__(self, owner: Any, context: Any, stream: Any, account: Any, task: Any, parent: Frame | None) -> None:
        self.owner = owner
        self.context = context
        self.stream = stream
        self.account = account
        self.task = task
        self.parent = parent
        self.generation = process.generation
        self.token: Token[Frame | None] | None = None


def make_frame(owner: Any, context: Any, stream: Any, account: Any, task: Any, parent: Frame | None) -> Frame:
    """Return ``Frame(...)``; compiled, this skips the packing of arguments that a call of the class costs."""
    frame = Frame.__new__(Frame)
    frame.owner = owner
    frame.context = context
    frame.stream = stream
    frame.account = account
    frame.task = task
    frame.parent = parent
    frame.generation = process.generation
    frame.token = None
    return frame


class Default:
    """Holder of what the process has once: the frame that `set_default` sets, and what a first entry calls.

    Attributes:
        frame: the default frame, or None.
        first_entry: called whenever a Python context gets its first frame; set by `tazza.hot.handler`.
    """

    __slots__ = ("first_entry", "frame")

    def __init__(self) -> None:
        self.frame: Frame | None = None
        self.first_entry = _native.no_entry()


_current: ContextVar[Frame | None] = ContextVar("tazza_frame", default=None)
_default = Default()
_set = _current.set


class Scope:
    """Base of whatever can be entered with ``with``: contexts, ``ctx.on(stream)``, budgets.

    Subclasses implement `_frame`. A scope may be entered several times, also by several threads at once.

    >>> class Marked(Scope):
    ...     def _frame(self, parent):
    ...         return Frame(self, "a context", None, None, None, parent)
    >>> with Marked():
    ...     current()
    'a context'
    """

    def __enter__(self) -> Self:
        """Push a frame of this scope and return the scope."""
        _push(self._frame(top()))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove this scope's frame; never swallows an exception.

        Raises:
            UsageError: another scope is innermost here, or the scope was entered in another thread or asyncio context.
        """
        _pop(self)

    def _frame(self, parent: Frame | None) -> Frame:
        raise NotImplementedError(f"{type(self).__name__} must implement _frame(parent)")


def top() -> Frame | None:
    """Return the innermost frame here, else the process-wide default frame, else None.

    Frames of the process before a fork do not count.
    """
    frame = _native.get_variable(_current)
    if frame is None or frame.generation != process.generation:
        frame = _default.frame
        if frame is not None and frame.generation != process.generation:
            return None
    return frame


def current() -> Any:
    """Return the current context.

    Raises:
        NoCurrentContextError: no context is current here; none is ever chosen implicitly.
    """
    frame = top()
    if frame is None:
        raise _no_context()
    return frame.context


def frame_of(context: object) -> Frame | None:
    """Return the innermost frame here whose context is `context`, or None; the default frame is looked at last."""
    frame = top()
    while frame is not None:
        if frame.context is context:
            return frame
        frame = frame.parent
    fallback = _default.frame
    if fallback is not None and fallback.context is context and fallback.generation == process.generation:
        return fallback
    return None


def set_default(frame: Frame | None) -> None:
    """Make `frame` the one that counts wherever no scope is entered, in every thread; None removes it."""
    if frame is not None:
        _native.call_entry(_default.first_entry)
    _default.frame = frame


def set_first_entry(entry: _native.Entry) -> None:
    """Have `entry` called whenever a Python context gets its first frame; for `tazza.hot.handler`."""
    _default.first_entry = entry


def run_in(frame: Frame | None, function: Callable[..., T], args: Sequence[Any], kwargs: Mapping[str, Any]) -> T:
    """Call ``function(*args, **kwargs)`` with `frame` on top (None: with nothing entered) and restore what was there.

    Setting the previous value back needs no token, so one frame can be run in by several threads at once, nested too.
    """
    previous = _native.get_variable(_current)
    if previous is None and frame is not None:
        _native.call_entry(_default.first_entry)
    _set(frame)
    try:
        return function(*args, **kwargs)
    finally:
        _set(previous)


def _push(frame: Frame) -> None:
    if frame.parent is None or frame.parent is _default.frame:
        _native.call_entry(_default.first_entry)
    frame.token = _native.set_variable(_current, frame)


def _pop(scope: Scope) -> None:
    frame = _native.get_variable(_current)
    if frame is None or frame.owner is not scope:
        if frame is not None and frame.generation != process.generation:
            return
        raise _not_innermost(scope, frame)
    if frame.generation != process.generation:
        return
    token = frame.token
    if token is None:
        raise _not_here(scope)
    try:
        _native.reset_variable(_current, token)
    except (ValueError, RuntimeError) as error:
        raise _not_here(scope) from error
    frame.token = None  # the token refers to this Python context and that to the frame: a cycle without this


def _no_context() -> NoCurrentContextError:
    return NoCurrentContextError(
        "no context is current here; enter one around this code (`with ctx:`), in a notebook make one the default "
        "with tz.use(ctx), and wrap a function for another thread with tz.carry(fn)"
    )


def _not_innermost(scope: Scope, frame: Frame | None) -> UsageError:
    innermost = "no scope is active here" if frame is None else f"that is {frame.owner!r}"
    return UsageError(f"{scope!r} is not the innermost active scope ({innermost}); leave scopes in the reverse order")


def _not_here(scope: Scope) -> UsageError:
    return UsageError(
        f"{scope!r} was left in another thread or asyncio context than it was entered in; leave it where it was "
        "entered, and give each thread or task its own `with`"
    )
