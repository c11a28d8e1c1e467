"""Scopes besides the context's own, and frames that travel."""

from __future__ import annotations

from typing import Any, final

from tazza.core.stream import Stream
from tazza.hot import Frame, Scope, frame_of

__all__ = ["StreamScope", "flattened"]


@final
class StreamScope(Scope):
    """What ``ctx.on(stream)`` returns; changes the frame only, never the thread."""

    def __init__(self, context: Any, stream: Stream) -> None:
        self._context, self._stream = context, stream

    def _frame(self, parent: Frame | None) -> Frame:
        inner = frame_of(self._context)
        account = self._context.account if inner is None else inner.account
        return Frame(self, self._context, self._stream, account, None if parent is None else parent.task, parent)

    def __repr__(self) -> str:
        return f"<scope of {self._stream!r}>"


def flattened(frame: Frame | None) -> Frame | None:
    """Copy a chain of frames for another thread, keeping the innermost of each context.

    Tasks that launch tasks would grow the chain for ever. The running task is left out: it does not run there.
    """
    innermost: dict[int, Frame] = {}
    while frame is not None:
        innermost.setdefault(id(frame.context), frame)
        frame = frame.parent
    chain: Frame | None = None
    for kept in reversed(innermost.values()):
        chain = Frame(None, kept.context, kept.stream, kept.account, None, chain)
    return chain
