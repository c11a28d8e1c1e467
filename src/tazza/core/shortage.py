"""Out-of-memory errors on their way out of a context: NumPy's become tazza's, others get the account as a note."""

from __future__ import annotations

import logging
from typing import Any

from tazza.core.adapter import adapters
from tazza.core.completion import keep_without_frames
from tazza.errors import LeakWarning, OutOfMemoryError
from tazza.hot import refusal
from tazza.util.report import report
from tazza.util.text import format_nbytes

__all__ = ["explain", "report_leaks"]

_HOLDERS = 5
_logger = logging.getLogger("tazza.memory")


def explain(context: Any, error: BaseException) -> None:
    """Say what is known of an exception that leaves ``with context:``; raises where it turns into another one.

    The frames below the scope are let go of, as what they hold could otherwise not be freed by whoever catches the
    error: their call sites stay, as text.
    """
    if isinstance(error, OutOfMemoryError):
        keep_without_frames(error, repr(context))
        return
    if isinstance(error, MemoryError):
        refused = refusal()
        if refused is not None and _is_about(error, refused):
            keep_without_frames(error, repr(context))
            raise refused from error
    if isinstance(error, MemoryError) or any(adapter.is_out_of_memory(error) for adapter in adapters()):
        error.add_note(_account(context))


def report_leaks(context: Any) -> None:
    """Say at its close what a context's memory is still used for: as a warning where somebody records, else in the log.

    Arrays may outlive their context on purpose, which is why silence is the rule.
    """
    recorded = context._runtime.recording is not None
    if not recorded and not _logger.isEnabledFor(logging.INFO):
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
        _logger.info(message)


def _is_about(error: MemoryError, refused: OutOfMemoryError) -> bool:
    """Tell whether NumPy's error answers this refusal; plain ones, of a resize or an iterator, name no size."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is None or dtype is None:
        return True
    nbytes = int(dtype.itemsize)
    for extent in shape:
        nbytes *= int(extent)
    return nbytes == refused.requested


def _account(context: Any) -> str:
    figures = context.memory.stats()
    limit = "no limit" if figures.limit is None else f"a limit of {format_nbytes(figures.limit)}"
    held = ", ".join(f"{label} {format_nbytes(nbytes)}" for label, nbytes, _ in context.memory.holders(_HOLDERS))
    return (
        f"{context!r} holds {format_nbytes(figures.live)}, at most {format_nbytes(figures.peak)}, with {limit}; "
        f"largest holders: {held or 'none'}"
    )
