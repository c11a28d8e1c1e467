"""Out-of-memory errors on their way out of a context: NumPy's become tazza's, others get the account as a note."""

from __future__ import annotations

import math
from typing import Any

from tazza.core.adapter import adapters
from tazza.core.completion import keep_without_frames
from tazza.errors import LeakWarning, OutOfMemoryError
from tazza.hot import forget_refusal, refusal
from tazza.util.report import report
from tazza.util.text import format_nbytes

__all__ = ["explain", "report_leaks"]

_HOLDERS = 5


def explain(context: Any, error: BaseException) -> None:
    """Say what is known of an exception that leaves ``with context:``; raises where it turns into another one.

    The frames below the scope are let go of, as what they hold could otherwise not be freed by whoever catches the
    error: their call sites stay, as text.
    """
    if isinstance(error, OutOfMemoryError):
        keep_without_frames(error, repr(context))
        return
    if isinstance(error, MemoryError):
        refused = _refusal_of(context, error)
        if refused is not None:
            forget_refusal()
            keep_without_frames(error, repr(context))
            raise refused from error
    if isinstance(error, MemoryError) or any(adapter.is_out_of_memory(error) for adapter in adapters()):
        error.add_note(_account(context))


def report_leaks(context: Any) -> None:
    """Say at its close what a context's memory is still used for: as a warning where somebody records, else in the log.

    Arrays may outlive their context on purpose, which is why silence is the rule.
    """
    import logging  # late: it costs as much as a third of the core

    logger = logging.getLogger("tazza.memory")
    recorded = context._runtime.recording is not None
    if not recorded and not logger.isEnabledFor(logging.INFO):
        return
    leaks = context.memory.leaks()
    if not leaks:
        return
    lines = [
        f"  {format_nbytes(block.nbytes)} {block.label or 'unlabelled'} ({block.library}), from "
        f"{block.site[0] if block.site else 'an unrecorded place'}"
        for block in leaks[:_HOLDERS]
    ]
    total = format_nbytes(sum(block.nbytes for block in leaks))
    message = f"{context!r} leaves {total} in {len(leaks)} block(s) live:\n" + "\n".join(lines)
    if recorded:
        report(message, LeakWarning)
    else:
        logger.info(message)


def _refusal_of(context: Any, error: MemoryError) -> OutOfMemoryError | None:
    """Find the refusal of an account of this context that NumPy's error is the answer to.

    Its error for a new array names shape and dtype. A plain one, of a resize or an iterator, does not: it must be the
    first thing that happened since.
    """
    kept = refusal()
    if kept is None or not kept[1].counts_in(context.account):
        return None
    refused, _, is_last = kept
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is None or dtype is None:
        return refused if is_last else None
    nbytes = math.prod(map(int, shape)) * int(dtype.itemsize)
    return refused if nbytes == refused.requested else None


def _account(context: Any) -> str:
    figures = context.memory.stats()
    limit = "no limit" if figures.limit is None else f"a limit of {format_nbytes(figures.limit)}"
    held = ", ".join(f"{label} {format_nbytes(nbytes)}" for label, nbytes, _ in context.memory.holders(_HOLDERS))
    return (
        f"{context!r} holds {format_nbytes(figures.live)}, at most {format_nbytes(figures.peak)}, with {limit}; "
        f"largest holders: {held or 'none'}"
    )
