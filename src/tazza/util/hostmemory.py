"""NumPy arrays over host addresses."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["HostMemory", "address_of"]


class HostMemory:
    """The base object of an array that is made over an address; weakly referable, so that its end can be seen.

    Args:
        address: first byte of element ``[0, 0, ...]``.
        owner: kept alive as long as any view of the memory.
    """

    __slots__ = ("__weakref__", "address", "dtype", "owner", "readonly", "shape", "strides")

    def __init__(
        self,
        address: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
        *,
        readonly: bool = False,
        owner: object = None,
    ) -> None:
        self.address, self.dtype, self.shape, self.strides = address, dtype, shape, strides
        self.readonly, self.owner = readonly, owner

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's protocol, https://numpy.org/doc/stable/reference/arrays.interface.html."""
        interface: dict[str, Any] = {
            "version": 3,
            "typestr": self.dtype.str,
            "shape": self.shape,
            "strides": self.strides,
            "data": (self.address, self.readonly),
        }
        if self.dtype.names is not None:
            interface["descr"] = self.dtype.descr
        return interface

    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return the array; its base is this object. `tazza.hot.array_of` is the same, faster where it is compiled."""
        return np.asarray(self)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the first element; ten times cheaper than ``array.ctypes.data``."""
    return int(array.__array_interface__["data"][0])
