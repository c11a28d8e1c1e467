"""Which dtypes a device has."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from tazza.core.device import Device
from tazza.errors import ArgumentError, UnsupportedError

__all__ = ["dtype_on"]


def dtype_on(device: Device, dtype: Any) -> np.dtype[Any]:
    """Resolve a dtype that the device has.

    Raises:
        ArgumentError: it is no dtype.
        UnsupportedError: the device lacks it; names the nearest one that it has.
    """
    try:
        resolved: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        raise ArgumentError.of("dtype", dtype, "a dtype such as 'float32'") from None
    known = device.capabilities.dtypes
    if _name(resolved) not in known:
        raise UnsupportedError(f"{device} has no {resolved.name}; the nearest is {_nearest(resolved, known)}")
    return resolved


@lru_cache(64)
def _name(dtype: np.dtype[Any]) -> str:
    """The dtype's name, which NumPy puts together on every access, in microseconds."""
    return dtype.name


def _nearest(dtype: np.dtype[Any], known: Iterable[str]) -> str:
    same_kind = [np.dtype(name) for name in known if np.dtype(name).kind == dtype.kind]
    ranked = sorted(same_kind or [np.dtype("float32")], key=lambda other: abs(other.itemsize - dtype.itemsize))
    return ranked[0].name
