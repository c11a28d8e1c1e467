"""Which context is current, and how it travels into threads and callbacks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from tazza.core.arraylib import is_array
from tazza.core.context import Context
from tazza.core.event import Waitable
from tazza.core.runtime import live_runtimes
from tazza.core.scope import flattened
from tazza.core.stream import Stream
from tazza.core.task import Task
from tazza.errors import ArgumentError, NoCurrentContextError, UsageError
from tazza.hot import Account, Buffer, Frame, Scope, run_in, set_default, top
from tazza.hot import current as _current

__all__ = ["carry", "context_of", "current", "use"]

F = TypeVar("F", bound=Callable[..., Any])


current = cast(Callable[[], Context], _current)  # itself, not a wrapper: it is called around every operation


def use(ctx: Context | None) -> None:
    """Make a context current wherever none is entered, in every thread, until ``use(None)``: for notebooks.

    Raises:
        ArgumentError: not a context.
    """
    if ctx is None:
        set_default(None)
    elif isinstance(ctx, Context):
        ctx.own_stream.runtime.check_process()
        set_default(Frame(ctx, ctx, ctx.stream0, ctx.account, None, None))
    else:
        raise ArgumentError.of("ctx", ctx, "a Context, or None")


def carry(function: F) -> F:
    """Wrap a function so that it runs under what is current here: context, stream, budgets.

    The wrapper may be called in any thread, in several at once, sync or async; nothing else of this Python context is
    carried. For thread pools: ``executor.submit(tz.carry(work), item)``.

    Raises:
        NoCurrentContextError: nothing is current here.
        ArgumentError: not a function, or a generator function, whose body does not run when it is called.
    """
    if not callable(function):
        raise ArgumentError.of("function", function, "a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ArgumentError.of("function", function, "a function that is no generator; enter the context in its body")
    frame = top()
    if frame is None:
        raise NoCurrentContextError("carry() captures what is current here, and nothing is; use it inside `with ctx:`")
    carried = cast(Frame, flattened(frame))

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            with _Carried(carried):
                return await function(*args, **kwargs)

        return cast(F, run_async)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return run_in(carried, function, args, kwargs)

    return cast(F, run)


class _Carried(Scope):
    """The carried frame as a scope of its own for each call of an async function."""

    def __init__(self, frame: Frame) -> None:
        self._carried = frame

    def _frame(self, parent: Frame | None) -> Frame:
        carried = self._carried
        return Frame(self, carried.context, carried.stream, carried.account, carried.task, carried.parent)


def context_of(x: object) -> Context:
    """Find the context that a Buffer, an array in its memory, a Task, a Stream or an Event belongs to.

    Raises:
        UsageError: it belongs to none that is alive: foreign memory, or the context is gone.
    """
    found: object = None
    if isinstance(x, Context):
        found = x
    elif isinstance(x, (Task, Stream)):
        found = x.context
    elif isinstance(x, Waitable):
        found = None if x.stream is None else x.stream.context
    elif isinstance(x, Buffer):
        found = _owner_of(x)
    elif is_array(x):
        origins = (ctx.arrays.origin(x) for runtime in live_runtimes() for ctx in runtime.contexts())
        origin = next((buffer for buffer in origins if buffer is not None), None)
        found = None if origin is None else _owner_of(origin)
    if not isinstance(found, Context):
        raise UsageError(f"{type(x).__name__} belongs to no live context; bring it into one with ctx.asarray(x)")
    return found


def _owner_of(buffer: Buffer) -> Context | None:
    account: Account | None = buffer.block.account
    owners = {id(ctx.account): ctx for ctx in buffer.block.owner.contexts()}
    while account is not None and id(account) not in owners:  # the innermost: a context may count in another one
        account = account.parent
    return None if account is None else cast(Context, owners[id(account)])
