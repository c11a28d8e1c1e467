"""NumPy's allocations as the rest of the package sees them: those of `tazza.hot.handler`, or none where uncompiled."""

from __future__ import annotations

from tazza.hot.block import ForeignBlock

__all__ = ["HOOKED", "forget_refusal", "host_blocks", "refusal", "settle_frees"]


def _no_blocks() -> list[ForeignBlock]:
    return []


def _nothing() -> None:
    return None


HOOKED: bool
"""Whether arrays that NumPy makes itself inside a context count in its account."""

try:
    from tazza.hot.handler import forget_refusal, host_blocks, install, refusal, settle_frees
except ImportError:  # not compiled: NumPy keeps its own allocator, and its arrays are listed as outside
    HOOKED = False
    host_blocks, refusal, forget_refusal, settle_frees = _no_blocks, _nothing, _nothing, _nothing
else:
    install()
    HOOKED = True
