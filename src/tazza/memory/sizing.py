"""How much to grant, and how much to reserve at once.

A request is granted in whole alignment units and nothing more: coarser classes would count against the user's limit
what the user did not ask for. Small blocks share segments; a large one gets a segment of its own size, which larger
and smaller ones may reuse later. The figures were chosen on the traces in ``benchmarks/traces``: there the bytes
reserved stay below 1.12 of the bytes live at the peak.
"""

from __future__ import annotations

__all__ = ["ALWAYS_LARGE", "LARGEST", "round_up", "segment_nbytes", "small_below", "surplus"]

LARGEST = 1 << 62
"""No request may be larger, in bytes."""

_SMALLEST_SEGMENT = 16 << 10
_LARGEST_SEGMENT = 2 << 20  # for small blocks
_SLACK = 10  # a tenth of the live peak may be reserved beyond it before idle segments are given back


def round_up(nbytes: int, unit: int) -> int:
    """Return the least multiple of `unit` (a power of two) that is not below `nbytes`.

    >>> round_up(1, 64), round_up(64, 64), round_up(0, 64)
    (64, 64, 0)
    """
    return (nbytes + unit - 1) & -unit


ALWAYS_LARGE = 64 << 10
"""Blocks of this many bytes and more count as large whatever else is live."""


def small_below(peak: int) -> int:
    """Return the size from which blocks count as large, given the most bytes that were live at once.

    >>> small_below(0), small_below(1 << 20), small_below(1 << 30)
    (4096, 32768, 65536)
    """
    return min(max(peak >> 5, 4 << 10), ALWAYS_LARGE)


def segment_nbytes(granted: int, peak: int, alignment: int) -> int:
    """Return how many bytes to reserve for a request of `granted` bytes.

    Args:
        granted: the request in whole alignment units.
        peak: the most bytes that were live at once.
        alignment: the alignment unit in bytes.

    >>> segment_nbytes(64, 0, 64), segment_nbytes(10 << 20, 0, 64), segment_nbytes(64, 64 << 20, 64)
    (16384, 10485760, 1048576)
    """
    if granted >= small_below(peak):
        return granted
    return max(granted, round_up(min(max(peak >> 6, _SMALLEST_SEGMENT), _LARGEST_SEGMENT), alignment))


def surplus(reserved: int, granted: int, peak: int) -> int:
    """Return how many reserved bytes to give back before `granted` more are reserved.

    Args:
        reserved: bytes that the pool has reserved.
        granted: bytes about to be reserved.
        peak: the most bytes that were live at once.
    """
    return max(0, reserved + granted - peak - peak // _SLACK)
