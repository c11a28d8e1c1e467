"""``with ctx.bind():``, inside which other libraries work on the context's device and stream.

Problem: those libraries keep their device and stream per thread. An ``await`` inside the scope would let other tasks of
the event loop run with them, and this code go on without; a scope left in another thread would set back the wrong one.

What is set is kept in a list of this thread, and undone in reverse order. Entered under a running event loop, a scope
looks at a *witness*: a callback that the loop runs as soon as it gets control, which is before it resumes this task.
Nothing can set the libraries back at that moment; the exit tells.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import Context as PythonContext
from types import TracebackType
from typing import Any, NoReturn, final

from tazza.core.adapter import adapters
from tazza.errors import UsageError
from tazza.hot import Frame, generation, top

__all__ = ["Binding"]


@final
class Binding:
    """What ``ctx.bind()`` returns; may be entered several times, also by several threads at once.

    >>> import tazza as tz
    >>> with tz.open("cpu") as ctx, ctx.bind() as bound:
    ...     tz.current() is bound
    True
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> Any:
        """Make the context current and bind the libraries; returns the context."""
        context = self._context
        context.__enter__()
        entry = _Entry(self, top())
        try:
            context.arrays.check_bindable()
            for adapter in adapters():
                undo = adapter.bind(context)
                if undo is not None:
                    entry.undos.append(undo)
        except BaseException as error:
            _add_notes(error, entry.undo())
            context.__exit__(type(error), error, error.__traceback__)
            raise
        _here.entries.append(entry)
        return context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Set everything back.

        Raises:
            UsageError: this is another thread or frame than that of the entry, or something inside awaited.
        """
        frame = top()
        entry = self._entry(frame)
        if entry is None:
            problems: list[BaseException] = [self._not_here()]
        else:
            problems = [*entry.leave(), *entry.misuse(frame)]
            if frame is entry.frame or entry.generation != generation():
                try:
                    self._context.__exit__(kind, error, trace)
                except BaseException as failure:
                    # The context may turn the body's error into another one: that one goes on in its place.
                    _add_notes(failure, problems)
                    raise
        if error is not None:
            _add_notes(error, problems)
        elif problems:
            first, *rest = problems
            _add_notes(first, rest)
            raise first

    async def __aenter__(self) -> NoReturn:
        raise UsageError(
            "ctx.bind() is a synchronous scope, as the state of other libraries belongs to the thread: "
            "use `with ctx.bind():` around code that does not await"
        )

    async def __aexit__(self, *exception: object) -> None:
        """Never called: entering raises."""

    def __repr__(self) -> str:
        return f"<binding of {self._context!r}>"

    def _entry(self, frame: Frame | None) -> _Entry | None:
        """The entry that is left: the one of this frame, else this thread's innermost."""
        own = [entry for entry in _here.entries if entry.binding is self and not entry.left]
        return next((entry for entry in own if entry.frame is frame), own[-1] if own else None)

    def _not_here(self) -> UsageError:
        return UsageError(
            f"{self!r} was not entered in this thread; what it set in the thread of its entry stays set: "
            "leave it where it was entered"
        )


class _Witness:
    """A callback that an event loop runs when it next gets control."""

    __slots__ = ("fired", "loop")

    def __init__(self, loop: Any) -> None:
        self.fired, self.loop = False, loop
        loop.call_soon(self.fire, context=PythonContext())  # empty: a copy of ours would hold what is current here

    def fire(self) -> None:
        self.fired, self.loop = True, None


@final
class _Entry:
    """One entry of a binding."""

    def __init__(self, binding: Binding, frame: Frame | None) -> None:
        self.binding, self.frame, self.generation = binding, frame, generation()
        self.undos: list[Callable[[], None]] = []
        self.left = False
        self.witness = _witness()

    def undo(self) -> list[BaseException]:
        """Set the libraries back, the last one first; returns what failed."""
        failures: list[BaseException] = []
        while self.undos:
            try:
                self.undos.pop()()
            except Exception as failure:  # the other libraries are set back nevertheless
                failures.append(failure)
        return failures

    def leave(self) -> list[BaseException]:
        """Undo this entry; one below others that are still entered is undone after them."""
        self.left = True
        failures: list[BaseException] = []
        entries = _here.entries
        while entries and entries[-1].left:
            failures += entries.pop().undo()
        return failures

    def misuse(self, frame: Frame | None) -> list[BaseException]:
        """What is wrong with leaving here."""
        if self.generation != generation():
            return []
        if self.witness is not None and self.witness.fired:
            return [
                UsageError(
                    f"something inside {self.binding!r} awaited: other tasks of the event loop ran with its libraries "
                    "bound; leave the scope before each await, or give the work to ctx.launch"
                )
            ]
        if frame is not self.frame:
            return [
                UsageError(
                    f"{self.binding!r} is not the innermost active scope; its libraries were set back, the context "
                    "stays current: leave scopes in the reverse order"
                )
            ]
        return []


class _Here(threading.local):
    """What is bound in this thread, innermost last, and the witness that its event loop has not run yet."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.witness: _Witness | None = None


_here = _Here()


def _witness() -> _Witness | None:
    """The witness of the loop that runs in this thread, or None. One at a time: many scopes do not fill the loop."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:  # then no loop runs
        return None
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # none runs in this thread
        return None
    if _here.witness is None or _here.witness.loop is not loop:
        _here.witness = _Witness(loop)
    return _here.witness


def _add_notes(error: BaseException, problems: list[BaseException]) -> None:
    for problem in problems:
        error.add_note(f"leaving ctx.bind() also failed: {type(problem).__name__}: {problem}")
