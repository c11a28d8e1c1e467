"""Any layout that NumPy can make goes through a borrow and back, by every protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import tazza as tz

CPU = tz.context("cpu")
DTYPES = ["bool", "int8", "uint16", "int32", "uint64", "float16", "float32", "float64", "complex64", "complex128"]


class OnlyDLPack:
    """Hides everything of an array but DLPack."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> object:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class OnlyInterface:
    """Hides everything of an array but its interface."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.owner, self.__array_interface__ = array, array.__array_interface__


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of up to four axes, sliced with any steps, transposed, and sometimes read-only."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    count = int(np.prod(shape))
    array = np.arange(count).astype(dtype).reshape(shape)
    if shape:
        array = array[draw(npst.basic_indices(shape, allow_newaxis=True, allow_ellipsis=False))]
    if not isinstance(array, np.ndarray):
        array = np.array(array)
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


def whole(array: np.ndarray[Any, Any]) -> Any:
    return array


PROTOCOLS: dict[str, Callable[[Any], Any]] = {
    "NumPy": whole,
    "DLPack": OnlyDLPack,
    "array interface": OnlyInterface,
    "buffer": memoryview,
}


@given(arrays(), st.sampled_from(list(PROTOCOLS)))
def test_round_trip(array: np.ndarray[Any, Any], protocol: str) -> None:
    if protocol == "buffer" and array.dtype == "float16" and array.ndim == 0:
        protocol = "NumPy"
    loan = tz.borrow(PROTOCOLS[protocol](array), stream=CPU.own_stream)
    with loan as x:
        assert loan.protocol == protocol
        assert (x.dtype, x.shape) == (array.dtype, array.shape)
        seen = np.asarray(x)
        assert np.array_equal(seen, array)
        assert seen.flags.writeable == array.flags.writeable or array.size == 0
        steps = [s for s, n in zip(array.strides, array.shape, strict=True) if n > 1]
        assert array.size == 0 or [s for s, n in zip(x.strides, x.shape, strict=True) if n > 1] == steps
        if array.size:
            assert seen.__array_interface__["data"][0] == array.__array_interface__["data"][0]
        del seen
        again = tz.borrow(x, stream=CPU.own_stream)
        with again as y:
            assert (again.protocol, y.strides, y.readonly) == ("tazza", x.strides, x.readonly)
            if not x.readonly:
                CPU.fill(y, 1)
                assert (array == 1).all()


@given(arrays(), st.booleans())
def test_round_trip_through_our_own_capsules(array: np.ndarray[Any, Any], versioned: bool) -> None:
    with tz.borrow(array, stream=CPU.own_stream) as x:
        if x.readonly and not versioned:
            with pytest.raises(BufferError):
                x.__dlpack__()
            return
        capsule = x.__dlpack__(max_version=(1, 0) if versioned else None)
        assert repr(capsule).split('"')[1] == ("dltensor_versioned" if versioned else "dltensor")

        class Once:
            def __dlpack__(self, **_: Any) -> object:
                return capsule

            def __dlpack_device__(self) -> tuple[int, int]:
                return x.__dlpack_device__()

        with tz.borrow(Once(), stream=CPU.own_stream) as y:
            assert (y.shape, y.dtype, y.readonly) == (x.shape, x.dtype, x.readonly or not versioned)
            assert ctx_values(y) == array.tolist()


def ctx_values(x: tz.Buffer) -> Any:
    return CPU.launch(lambda v: v.tolist(), x).result()
