"""Where in the user's program something happened: call sites without frames."""

from __future__ import annotations

import sys
from types import CodeType, FrameType

__all__ = ["Site", "capture", "written"]

Site = tuple[tuple[CodeType, int], ...]
"""Code and line of each frame, innermost first. Holds no frame, so that nothing in one is kept alive."""

_OURS = ("tazza.", "numpy.")


def capture(depth: int = 8) -> Site:
    """Return where the caller was called from: the innermost `depth` frames outside of tazza and NumPy."""
    frame: FrameType | None = sys._getframe(1)
    site: list[tuple[CodeType, int]] = []
    while frame is not None and len(site) < depth:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(_OURS):
            site.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(site)


def written(site: Site) -> tuple[str, ...]:
    """Return a site as text, ``"file:line function"`` for each frame."""
    return tuple(f"{code.co_filename}:{line} {code.co_qualname}" for code, line in site)
