"""Copies and fills that the driver does not do in one call."""

from __future__ import annotations

import ctypes
from typing import Any

from tazza.drivers.cuda.primary import Primary

__all__ = ["copy_within", "fill"]

_SEED = 256  # bytes of a repeated pattern that come from the host; what follows is doubled on the device


def copy_within(primary: Primary, stream: Any, dst: int, src: int, nbytes: int) -> None:
    """Copy in device memory; ranges that overlap go through memory that lives as long as the copy, in stream order.

    The driver leaves an overlapping copy undefined:
    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html
    """
    if dst == src:
        return
    if abs(dst - src) >= nbytes:
        primary.call("cuMemcpyDtoDAsync", dst, src, nbytes, stream)
        return
    between = primary.call("cuMemAllocAsync", nbytes, stream, requested=nbytes)
    try:
        primary.call("cuMemcpyDtoDAsync", between, src, nbytes, stream)
        primary.call("cuMemcpyDtoDAsync", dst, between, nbytes, stream)
    finally:
        primary.free_in_order(between, stream)


def fill(primary: Primary, stream: Any, dst: int, pattern: bytes, nbytes: int) -> None:
    """Repeat a pattern: by the driver's own fills where it has one for the width, else by copies of what is there."""
    width = len(pattern)
    if len(set(pattern)) == 1:
        primary.call("cuMemsetD8Async", dst, pattern[0], nbytes, stream)
    elif width in _WIDTHS and dst % width == 0:  # they want aligned addresses
        value = int.from_bytes(pattern, "little")
        primary.call(_WIDTHS[width], dst, value, nbytes // width, stream)
    else:
        _fill_by_doubling(primary, stream, dst, pattern, nbytes)


def _fill_by_doubling(primary: Primary, stream: Any, dst: int, pattern: bytes, nbytes: int) -> None:
    first = min(nbytes, max(1, _SEED // len(pattern)) * len(pattern))
    # From pageable memory: the driver has taken its bytes when the call returns.
    # https://docs.nvidia.com/cuda/cuda-driver-api/api-sync-behavior.html
    seed = ctypes.create_string_buffer(pattern * (first // len(pattern)), first)
    primary.call("cuMemcpyHtoDAsync", dst, ctypes.addressof(seed), first, stream)
    while first < nbytes:
        step = min(first, nbytes - first)
        primary.call("cuMemcpyDtoDAsync", dst + first, dst, step, stream)
        first += step


_WIDTHS = {2: "cuMemsetD16Async", 4: "cuMemsetD32Async"}
