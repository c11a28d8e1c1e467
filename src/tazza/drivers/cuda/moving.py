"""Copies and fills that the driver does not do in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from tazza.drivers.cuda.primary import Primary
from tazza.spi import Address, Box, CopyKind

__all__ = ["copy_boxes", "copy_within", "fill"]

_SEED = 256  # bytes of a repeated pattern that come from the host; what follows is doubled on the device


def copy_within(primary: Primary, stream: Any, dst: int, src: int, nbytes: int) -> None:
    """Copy in device memory; ranges that overlap go through memory that lives as long as the copy, in stream order.

    The driver leaves an overlapping copy undefined:
    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html
    """
    if dst == src:
        return
    if abs(dst - src) >= nbytes:
        primary.check("cuMemcpyDtoDAsync")
        failed = primary.calls.copy(dst, src, nbytes, stream)
        if failed:
            primary.refuse("cuMemcpyDtoDAsync", failed)
        return
    between = primary.call("cuMemAllocAsync", nbytes, stream, requested=nbytes)
    try:
        primary.call("cuMemcpyDtoDAsync", between, src, nbytes, stream)
        primary.call("cuMemcpyDtoDAsync", dst, between, nbytes, stream)
    finally:
        primary.free_in_order(between, stream)


def copy_boxes(
    primary: Primary,
    stream: Any,
    box: Box,
    starts: Sequence[tuple[Address, Address]],
    kind: CopyKind,
    contexts: tuple[Any, ...] | None,
) -> None:
    """Copy boxes, one call for each; `contexts` are those of the target and the source where these are two devices.

    By the calls of three dimensions alone: those of two may refuse pitches that cuMemAllocPitch did not choose.
    https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html (cuMemcpy2D)
    """
    said = primary.api.CUDA_MEMCPY3D() if contexts is None else primary.api.CUDA_MEMCPY3D_PEER()
    said.WidthInBytes, said.Height, said.Depth = box.width, box.rows, box.slices
    said.dstPitch, said.dstHeight = box.dst_pitch, box.dst_rows
    said.srcPitch, said.srcHeight = box.src_pitch, box.src_rows
    types, at_host = primary.api.CUmemorytype, (kind is CopyKind.TO_HOST, kind is CopyKind.FROM_HOST)
    said.dstMemoryType, said.srcMemoryType = (
        types.CU_MEMORYTYPE_HOST if host else types.CU_MEMORYTYPE_DEVICE for host in at_host
    )
    if contexts is not None:
        said.dstContext, said.srcContext = contexts
    target, source = ("dstHost" if at_host[0] else "dstDevice"), ("srcHost" if at_host[1] else "srcDevice")
    call = "cuMemcpy3DAsync" if contexts is None else "cuMemcpy3DPeerAsync"
    for dst, src in starts:
        setattr(said, target, dst)
        setattr(said, source, src)
        primary.call(call, said, stream)


def fill(primary: Primary, stream: Any, dst: int, pattern: bytes, nbytes: int) -> None:
    """Repeat a pattern: by the driver's own fills where it has one for the width, else by copies of what is there."""
    width = len(pattern)
    if len(set(pattern)) == 1:
        primary.check("cuMemsetD8Async")
        failed = primary.calls.fill(dst, pattern[0], nbytes, stream)
        if failed:
            primary.refuse("cuMemsetD8Async", failed)
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
