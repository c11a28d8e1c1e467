"""What cannot be raised where it happens becomes one named warning."""

from __future__ import annotations

import sys
import warnings
from typing import cast

__all__ = ["report"]


def report(message: str, category: type[Warning], *, error: BaseException | None = None) -> None:
    """Warn; safe in finalisers, helper threads and at interpreter exit.

    Where the user turned the warning into an error nobody could catch it here, so it goes to `sys.unraisablehook`.
    """
    text = message
    if error is not None:  # its notes say in which task, and where
        text = "\n".join([f"{message}: {type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    try:
        warnings.warn(text, category, stacklevel=2)
    except category as raised:
        sys.unraisablehook(cast("sys.UnraisableHookArgs", _Unraisable(raised)))


class _Unraisable:
    """The argument that `sys.unraisablehook` expects; the interpreter's own class cannot be made from Python."""

    def __init__(self, error: BaseException) -> None:
        self.exc_type, self.exc_value, self.exc_traceback = type(error), error, error.__traceback__
        self.err_msg, self.object = "Unraisable tazza warning", None
