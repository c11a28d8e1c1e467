"""Arrays over addresses: what the compiled form makes is what NumPy's protocol says; and keys of layouts."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest

from tazza.hot import array_of
from tazza.hot._primitives import _call_key, call_key
from tazza.util.hostmemory import HostMemory, address_of

ARRAYS = {
    "plain": np.arange(24, dtype="f4").reshape(2, 3, 4),
    "turned": np.arange(24, dtype="i2").reshape(2, 3, 4).transpose(2, 0, 1),
    "backwards": np.arange(9, dtype="f8")[::-2],
    "scalar": np.array(3.5),
    "empty": np.empty((3, 0), "u1"),
    "swapped": np.arange(3, dtype=">i4"),
    "fields": np.zeros(3, [("a", "<f4"), ("b", "<i8")]),
    "unaligned": np.arange(17, dtype="u1")[1:].view("f8"),
    "booleans": np.array([True, False]),
}


@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_over_memory_is_what_the_protocol_says(name: str, readonly: bool) -> None:
    source = ARRAYS[name]
    memory = HostMemory(address_of(source), source.dtype, source.shape, source.strides, readonly=readonly, owner=source)
    made, expected = array_of(memory), np.asarray(memory)
    assert (made.dtype, made.shape, made.strides) == (expected.dtype, expected.shape, expected.strides)
    assert made.flags == expected.flags
    assert address_of(made) == address_of(expected)
    assert made.tobytes() == source.tobytes()
    base: object = made.base
    assert base is memory


def test_without_strides_it_lies_in_c_order() -> None:
    source = np.arange(6.0)
    made = array_of(HostMemory(address_of(source), source.dtype, (2, 3), None, owner=source))
    assert made.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert made.flags.c_contiguous
    assert made.flags.writeable


def test_no_address_is_no_memory_of_numpys() -> None:
    made = array_of(HostMemory(0, np.dtype("f4"), (0, 4), None))
    assert made.shape == (0, 4)


@pytest.mark.parametrize(
    ("shape", "strides"), [((1,) * 80, None), ((2, 2), (8,)), (("two",), None)], ids=["axes", "strides", "text"]
)
def test_what_is_no_layout_is_refused(shape: Any, strides: Any) -> None:
    source = np.arange(6.0)
    with pytest.raises((TypeError, ValueError)):
        array_of(HostMemory(address_of(source), source.dtype, shape, strides, owner=source))


def test_the_owner_lives_as_long_as_a_view() -> None:
    class Owner:
        pass

    source, owner = np.arange(6.0), Owner()
    made = array_of(HostMemory(address_of(source), source.dtype, (6,), None, owner=owner))
    seen = weakref.ref(owner)
    del owner
    view = made[2:]
    del made
    gc.collect()
    assert seen() is not None
    del view
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("call_key", [call_key, _call_key], ids=["installed", "uncompiled"])
def test_layouts_have_one_key_each(call_key: Any) -> None:
    def key(arrays: list[Any]) -> Any:
        return call_key(b"matmul", arrays, (None,), 0)

    keys = {key([array]) for array in ARRAYS.values()}
    assert len(keys) == len(ARRAYS)
    plain, turned = ARRAYS["plain"], ARRAYS["turned"]
    assert key([plain, None]) == key([plain.copy(), None])
    several: list[list[Any]] = [[plain], [plain, None], [None, plain], [plain, turned], [turned, plain], [None], []]
    assert len({key(one) for one in several}) == len(several)
    with pytest.raises((TypeError, AttributeError)):
        key([[1.0]])


@pytest.mark.parametrize("call_key", [call_key, _call_key], ids=["installed", "uncompiled"])
def test_calls_have_one_key_each(call_key: Any) -> None:
    options: list[tuple[Any, ...]] = [
        (), (None,), (None, None), (0,), (1,), (-1,), (True,), (False,), (1.0,), (0.0,), (2**40,), ("",), ("relu",),
        ("relu\0",), ("sigmoid_",), ("sigmoid_tanh_relu",), ((1, 2),), ((1,), 2), (1, 2), ((),), ((), ()), (((),),),
        ((True, 1),), ((1, True),), ((1, 1.0),), ("1",), (("1",),), ("é",),
    ]  # fmt: skip
    calls = [
        (kind, one, more) for kind in (b"a", b"b", b"a1234567", b"a12345678") for one in options for more in (0, 7)
    ]
    keys = [call_key(kind, [ARRAYS["plain"], None], one, more) for kind, one, more in calls]
    assert len(set(keys)) == len(calls)
    assert keys == [call_key(kind, [ARRAYS["plain"], None], one, more) for kind, one, more in calls]
    call_key(b"layer_norm", [], (np.float64(1e-5),), 0)  # a float too


@pytest.mark.parametrize("call_key", [call_key, _call_key], ids=["installed", "uncompiled"])
def test_what_is_no_option_has_no_key(call_key: Any) -> None:
    several: list[Any] = [[1], {}, ({},), np.ones(2)]
    for wrong in several:
        with pytest.raises(TypeError):
            call_key(b"a", [], (wrong,), 0)
