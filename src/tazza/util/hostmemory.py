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

    __slots__ = ("__array_interface__", "__weakref__", "owner")

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
        self.owner = owner
        self.__array_interface__ = interface = {
            "version": 3,
            "typestr": dtype.str,
            "shape": shape,
            "strides": strides,
            "data": (address, readonly),
        }
        if dtype.names is not None:
            interface["descr"] = dtype.descr

    def array(self) -> np.ndarray[Any, np.dtype[Any]]:
        """Return the array; its base is this object."""
        return np.asarray(self)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """Address of the first element; ten times cheaper than ``array.ctypes.data``."""
    return int(array.__array_interface__["data"][0])
