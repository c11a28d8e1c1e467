"""Foreign memory: what an object of another library says about its bytes, by whichever protocol it speaks.

Asked in this order: NumPy arrays directly, DLPack, the buffer protocol, the array interface, and on CUDA devices
``__cuda_array_interface__``. Interfaces of other devices are recognised, so that the refusal can say what came. Nothing
here copies or converts.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tazza.core import dlpack
from tazza.core.device import Device
from tazza.core.dtypes import dtype_on
from tazza.core.stream import Stream
from tazza.errors import ArgumentError, BackendError, DeviceLostError, UnsupportedError, WrongDeviceError
from tazza.hot._layout import Layout, lent_layout
from tazza.util.hostmemory import address_of

__all__ = ["Foreign", "describe"]

_HOST = "host"
_PROTOCOLS = "a Buffer, a NumPy array, or something with DLPack, a buffer or an array interface"
_REFUSALS = (BufferError, TypeError, ValueError, RuntimeError, AttributeError)


class Foreign(NamedTuple):
    """Memory of an object, checked, and what keeps it.

    Attributes:
        protocol: the one that it was found by.
        owner: keeps the memory.
        address: of element ``[0, 0, ...]``.
        layout: shape, strides in bytes, and how many bytes.
        readonly: the owner forbids writing, or elements share bytes.
        copied: the owner made a copy for this, in spite of what was asked.
        release: to be called once when the memory is unused; None where dropping the owner is enough.
        producer: runner over the owner's stream, which we come after and which has to come after us; None where the
            owner orders its own, or is ready.
    """

    protocol: str
    owner: object
    address: int
    dtype: np.dtype[Any]
    layout: Layout
    readonly: bool
    copied: bool = False
    release: Callable[[], None] | None = None
    producer: Any = None


def describe(obj: Any, stream: Stream) -> Foreign:
    """Find the memory of `obj` for work on `stream`.

    Raises:
        WrongDeviceError: it is memory of another device.
        UnsupportedError: its dtype or protocol is none that the device has.
        ArgumentError: it has no memory to lend, refuses, or describes what cannot be.
    """
    if not isinstance(obj, np.ndarray):
        if hasattr(obj, "__dlpack__") and hasattr(obj, "__dlpack_device__"):
            return _from_dlpack(obj, stream)
        view = _memory_view(obj)
        if view is not None:
            return _from_array(obj, _array(obj, view), "buffer", stream)
        if hasattr(obj, "__array_interface__"):
            return _from_array(obj, _array(obj, _Interface(obj)), "array interface", stream)
        if stream.device.capabilities.exports == "cuda" and hasattr(obj, "__cuda_array_interface__"):
            return _from_cuda_interface(obj, stream)
        raise _no_host_memory(obj, stream.device)
    return _from_array(obj, obj, "NumPy", stream)


# DLPack ------------------------------------------------------------------------------------------------------------


def _from_dlpack(obj: Any, stream: Stream) -> Foreign:
    device = _announced(obj)
    _check_domain(obj, device, stream.device)
    if device[0] in dlpack.HOST_TYPES and hasattr(obj, "block_until_ready"):
        obj.block_until_ready()  # JAX computes behind the caller, on hosts too, and has no stream that one could name
    tensor = dlpack.take(_capsule(obj, _stream_for(device[0], stream)), device)
    try:
        dtype = tensor.dtype
        if not _is_among(stream.device.capabilities.dtypes, dtype):
            dtype_on(stream.device, dtype)  # raises
        strides = None if tensor.strides is None else tuple(step * dtype.itemsize for step in tensor.strides)
        layout, overlapping = lent_layout(tensor.address, tensor.shape, strides, dtype.itemsize)
    except (ArgumentError, UnsupportedError):
        tensor.managed.release()
        raise
    readonly = tensor.readonly or tensor.copied or overlapping
    held = tensor.managed
    return Foreign("DLPack", held, tensor.address, dtype, layout, readonly, tensor.copied, held.release)


def _announced(obj: Any) -> tuple[int, int]:
    try:
        kind, number = obj.__dlpack_device__()
        return operator.index(kind), operator.index(number)
    except _REFUSALS as error:
        raise ArgumentError(f"obj: {_name(obj)} does not say where its memory is: {error}") from error


def _check_domain(obj: object, device: tuple[int, int], here: Device) -> None:
    kind, number = device
    if kind in dlpack.HOST_TYPES:
        if here.memory_domain != _HOST:
            raise _own_memory(obj, here)
    elif dlpack.DEVICE_KINDS.get(kind) != here.kind or number != here.info.ordinal:
        there = f"{dlpack.DEVICE_KINDS.get(kind, f'DLPack device type {kind}')}:{number}"
        raise _elsewhere(obj, there, here)


def _stream_for(kind: int, stream: Stream) -> Any:
    """What the producer is told to be ready for: our stream, in the producer's spelling. Never the producer's default.

    | device | value |
    |---|---|
    | host | None: there are no streams, and the caller is in order |
    | CUDA | the handle; 1 for the legacy default stream, whose handle 0 the standard forbids |
    | ROCm | the handle; 0 is the default stream |
    | others | the native queue itself |
    """
    if kind in dlpack.HOST_TYPES:
        return None
    native: Any = stream.native
    if dlpack.DEVICE_KINDS[kind] not in ("cuda", "rocm"):
        return native
    handle = int(native)
    return 1 if handle == 0 and dlpack.DEVICE_KINDS[kind] == "cuda" else handle


def _capsule(obj: Any, stream: Any) -> object:
    try:
        try:
            return obj.__dlpack__(stream=stream, max_version=dlpack.VERSION, copy=False)
        except TypeError as error:
            if type(error) is not TypeError:  # the library's own: a refusal
                raise
            # A producer from before DLPack 1.0 does not know the keywords; any other mistake comes again.
            return obj.__dlpack__(stream=stream)
    except _REFUSALS as error:
        raise ArgumentError(f"obj: {_name(obj)} does not lend its memory: {error}") from error


# CUDA array interface ----------------------------------------------------------------------------------------------


def _from_cuda_interface(obj: Any, stream: Stream) -> Foreign:
    """Memory by version 2 or 3 of https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html."""
    here = stream.device
    try:
        told = obj.__cuda_array_interface__
        shape = tuple(map(operator.index, told["shape"]))
        dtype = np.dtype(told["typestr"])
        address, readonly = int(told["data"][0]), bool(told["data"][1])
        strides = told.get("strides")
        strides = None if strides is None else tuple(map(operator.index, strides))
        version, queue, mask = operator.index(told["version"]), told.get("stream"), told.get("mask")
    except (*_REFUSALS, KeyError, IndexError) as error:
        raise ArgumentError(f"obj: the __cuda_array_interface__ of {_name(obj)} cannot be read: {error!r}") from error
    if version < 2 or (queue is not None and (isinstance(queue, bool) or not isinstance(queue, int) or queue < 1)):
        expected = "version 2 or 3, with None or the handle of a stream, of which 0 is none"
        raise ArgumentError.of("obj.__cuda_array_interface__", f"version {version}, stream {queue!r}", expected)
    if mask is not None:
        raise UnsupportedError(f"obj: {_name(obj)} is masked; borrow its data and its mask each by itself")
    if not _is_among(here.capabilities.dtypes, dtype):
        dtype_on(here, dtype)  # raises
    layout, overlapping = lent_layout(address, shape, strides, dtype.itemsize)
    if layout.nbytes:
        _check_owner(obj, address, stream)
    producer = None if queue is None else stream.runtime.exports.runner_of(queue)
    return Foreign("CUDA array interface", obj, address, dtype, layout, readonly or overlapping, producer=producer)


def _check_owner(obj: object, address: int, stream: Stream) -> None:
    runtime, here = stream.runtime, stream.device
    try:
        owner = runtime.driver.memory_owner(runtime.info, address)
    except DeviceLostError:
        raise
    except BackendError as error:
        raise ArgumentError(f"obj: {_name(obj)} is no memory that {here} knows: {error}") from error
    except UnsupportedError as error:
        raise UnsupportedError(f"obj: {_name(obj)} offers only __cuda_array_interface__, and {error}") from error
    if owner != runtime.info:
        raise _elsewhere(obj, owner.name, here)


# Host memory -------------------------------------------------------------------------------------------------------


class _Interface:
    """An array interface by itself: NumPy would rather call the object's other methods, which may copy."""

    def __init__(self, obj: Any) -> None:
        self._owner = obj
        self.__array_interface__ = obj.__array_interface__


def _memory_view(obj: Any) -> memoryview | None:
    try:
        return memoryview(obj)
    except TypeError:  # no buffer protocol
        return None
    except (BufferError, ValueError) as error:
        raise ArgumentError(f"obj: {_name(obj)} does not lend its memory: {error}") from error


def _array(obj: object, exporter: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(exporter, copy=False)
    except _REFUSALS as error:
        raise ArgumentError(f"obj: the memory of {_name(obj)} is not what NumPy can read: {error}") from error


def _from_array(obj: object, array: np.ndarray[Any, Any], protocol: str, stream: Stream) -> Foreign:
    here = stream.device
    if here.memory_domain != _HOST:
        raise _own_memory(obj, here)
    dtype = array.dtype
    if not _is_among(here.capabilities.dtypes, dtype):
        dtype_on(here, dtype)  # raises
    address = address_of(array)
    layout, overlapping = lent_layout(address, array.shape, array.strides, dtype.itemsize)
    return Foreign(protocol, array, address, dtype, layout, overlapping or not array.flags.writeable)


# Refusals ----------------------------------------------------------------------------------------------------------


def _no_host_memory(obj: object, here: Device) -> Exception:
    for attribute, kind in (("__cuda_array_interface__", "cuda"), ("__sycl_usm_array_interface__", "sycl")):
        if hasattr(obj, attribute):
            if here.kind != kind:
                return _elsewhere(obj, f"a {kind} device", here)
            return UnsupportedError(
                f"obj: {_name(obj)} offers only {attribute}, which {here} does not read; "
                "borrow it from a library that has DLPack"
            )
    return ArgumentError.of("obj", obj, f"{_PROTOCOLS}; ctx.asarray(obj) makes an array of anything else")


def _own_memory(obj: object, here: Device) -> WrongDeviceError:
    return WrongDeviceError(
        f"obj: {_name(obj)} is host memory and {here} has its own, and borrowing never copies; "
        f"ctx.asarray(obj) of a context on {here} makes a copy there"
    )


def _elsewhere(obj: object, there: str, here: Device) -> WrongDeviceError:
    return WrongDeviceError(
        f"obj: {_name(obj)} is memory of {there}, not of {here}; borrow it with a stream of a context on {there}, "
        f"or have its own library copy it to the host and use ctx.asarray of a context on {here}"
    )


@functools.lru_cache(maxsize=64)
def _is_among(known: frozenset[str], dtype: np.dtype[Any]) -> bool:
    return dtype.name in known  # NumPy makes up the name each time


def _name(obj: object) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}".removeprefix("builtins.")
