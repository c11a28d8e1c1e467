"""DLPack capsules that lie: refused by a typed error, before their memory is touched, their deleter called once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core import dlpack
from tazza.errors import ArgumentError, UnsupportedError
from tests.borrow.producers import Claim, Producer


@pytest.fixture(autouse=True)
def ctx() -> Iterator[tz.Context]:
    with tz.open("cpu") as made:
        yield made


HOSTILE: dict[str, tuple[Claim, type[Exception], str]] = {
    "major 2": (Claim(version=(2, 0)), ArgumentError, r"got 'DLPack 2\.0'.*a capsule of DLPack 1\.x"),
    "major 0": (Claim(version=(0, 8)), ArgumentError, r"got 'DLPack 0\.8'"),
    "name": (Claim(name=b"tensor"), ArgumentError, r"got b'tensor'.*a capsule named 'dltensor'"),
    "used": (Claim(name=b"used_dltensor"), ArgumentError, "consumed before"),
    "other device": (Claim(device=(2, 0)), ArgumentError, r"got 'memory of device \(2, 0\)'.*\(1, 0\) as announced"),
    "negative rank": (Claim(ndim=-1), ArgumentError, "got '-1 axes'.*0 to 64 axes"),
    "absurd rank": (Claim(ndim=2**31 - 1), ArgumentError, "got '2147483647 axes'"),
    "65 axes": (Claim(shape=(1,) * 65), ArgumentError, "got '65 axes'"),
    "no shape": (Claim(no_shape=True), ArgumentError, "1 axes.*and their lengths"),
    "negative length": (Claim(shape=(2, -1)), ArgumentError, r"obj: got \(2, -1\).*without negative lengths"),
    "negative lengths": (Claim(shape=(-2, -2)), ArgumentError, "without negative lengths"),
    "absurd length": (Claim(shape=(2**62,)), ArgumentError, r"at most 2\*\*62 bytes"),
    "absurd product": (Claim(shape=(2**31, 2**31, 2**31)), ArgumentError, r"at most 2\*\*62 bytes"),
    "absurd product of none": (Claim(shape=(2**62, 2**62, 0)), ArgumentError, r"at most 2\*\*62 bytes"),
    "absurd stride": (Claim(shape=(2,), strides=(2**62,)), ArgumentError, r"at most 2\*\*62 bytes"),
    "before the first address": (Claim(shape=(2,), strides=(-(2**50),)), ArgumentError, "memory that can exist"),
    "null": (Claim(data=0), ArgumentError, "memory that can exist"),
    "null and an offset": (Claim(data=0, byte_offset=8), ArgumentError, "got 'byte_offset 8 without data'"),
    "absurd offset": (Claim(byte_offset=2**64 - 1), ArgumentError, "memory that can exist"),
    "lanes": (Claim(lanes=4), UnsupportedError, "elements of 4 lanes"),
    "no lanes": (Claim(lanes=0), UnsupportedError, "elements of 0 lanes"),
    "bfloat16": (Claim(code=4, bits=16), UnsupportedError, "type 4 and 16 bits.*the nearest is float32"),
    "float8": (Claim(code=10, bits=8), UnsupportedError, "the nearest is float16"),
    "int4": (Claim(code=0, bits=4), UnsupportedError, "the nearest is int8"),
    "float80": (Claim(code=2, bits=80), UnsupportedError, "the nearest is float32"),
    "opaque": (Claim(code=3, bits=64), UnsupportedError, "type 3 and 64 bits"),
    "odd bool": (Claim(code=6, bits=1), UnsupportedError, "the nearest is bool"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_and_released_once(ctx: tz.Context, name: str) -> None:
    claim, kind, message = HOSTILE[name]
    producer = Producer(claim)
    with pytest.raises(kind, match=message):
        tz.borrow(producer).__enter__()
    ctx.synchronize()
    assert len(producer.deleted) == (name != "used"), "somebody else's duty" if name == "used" else "not once"


@pytest.mark.parametrize("name", [n for n, (c, _, _) in HOSTILE.items() if c.version == (1, 0) and not c.name])
def test_refused_of_the_old_version_too(ctx: tz.Context, name: str) -> None:
    claim, kind, message = HOSTILE[name]
    producer = Producer(Claim(**vars(claim) | {"version": None}))
    with pytest.raises(kind, match=message):
        tz.borrow(producer).__enter__()
    assert len(producer.deleted) == 1


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule_is_consumed_once(version: tuple[int, int] | None) -> None:
    producer = Producer(Claim(version=version), reuses=True)
    with tz.borrow(producer):
        with pytest.raises(ArgumentError, match="the capsule was consumed before; its memory has another owner"):
            tz.borrow(producer).__enter__()
        assert producer.deleted == []
    with pytest.raises(ArgumentError, match="consumed before"):
        tz.borrow(producer).__enter__()
    assert len(producer.deleted) == 1


def test_several_threads_consume_a_capsule_once(ctx: tz.Context) -> None:
    for _ in range(20):
        producer = Producer(reuses=True)
        start, outcomes = threading.Barrier(4), list[str]()

        def attempt(producer: Producer = producer, start: threading.Barrier = start, to: list[str] = outcomes) -> None:
            start.wait(10)
            try:
                with tz.borrow(producer, stream=ctx.own_stream):
                    to.append("lent")
            except ArgumentError:
                to.append("refused")

        threads = [threading.Thread(target=attempt) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(outcomes) == ["lent", "refused", "refused", "refused"]
        assert len(producer.deleted) == 1


def test_something_that_is_no_capsule() -> None:
    class Odd:
        def __dlpack__(self, **_: Any) -> object:
            return "capsule"

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    with pytest.raises(ArgumentError, match=r"obj\.__dlpack__\(\): got 'capsule' \(str\), expected a capsule"):
        tz.borrow(Odd()).__enter__()


def test_what_true_capsules_say(ctx: tz.Context) -> None:
    """Offsets, strides, flags; sizes and strides that mean nothing are not looked at."""
    producer = Producer(Claim(shape=(2, 2), strides=(1, 2), byte_offset=16), nbytes=32)
    producer.floats[:] = range(8)
    with tz.borrow(producer) as x:
        assert (x.address - producer.memory.address, x.strides) == (16, (4, 8))
        assert ctx.launch(lambda v: v.tolist(), x).result() == [[4.0, 6.0], [5.0, 7.0]]
    cases: list[tuple[Claim, tuple[Any, ...]]] = [
        (Claim(shape=()), ((), (), 4, False)),
        (Claim(shape=(), no_shape=True), ((), (), 4, False)),
        (Claim(shape=(0,), data=0), ((0,), (4,), 0, False)),
        (Claim(shape=(3, 0), strides=(2**62, 5)), ((3, 0), (4, 4), 0, False)),
        (Claim(shape=(1, 2), strides=(2**62, 1)), ((1, 2), (8, 4), 8, False)),
        (Claim(shape=(4, 1)), ((4, 1), (4, 4), 16, False)),
        (Claim(shape=(2, 2), strides=(0, 1)), ((2, 2), (0, 4), 8, True)),  # overlapping
        (Claim(shape=(4,), strides=(-1,), byte_offset=12), ((4,), (-4,), 16, False)),
        (Claim(flags=1), ((4,), (4,), 16, True)),
        (Claim(flags=1 << 40), ((4,), (4,), 16, False)),  # flags of later versions
        (Claim(version=(1, 9)), ((4,), (4,), 16, False)),
        (Claim(device=(3, 5)), ((4,), (4,), 16, False)),  # pinned for CUDA: the host's
        (Claim(no_deleter=True), ((4,), (4,), 16, False)),
    ]
    for claim, expected in cases:
        producer = Producer(claim, announced=claim.device)
        with tz.borrow(producer) as x:
            assert (x.shape, x.strides, x.nbytes, x.readonly) == expected, claim
            assert x.nbytes == 0 or np.asarray(x).strides == x.strides
        assert len(producer.deleted) == (not claim.no_deleter)


def test_a_copy_is_reported_and_read_only() -> None:
    loan = tz.borrow(Producer(Claim(flags=2)))
    with loan as x:
        assert (loan.is_copied, x.readonly) == (True, True)


DTYPES = {
    (0, 8): "int8",
    (0, 16): "int16",
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (1, 16): "uint16",
    (1, 32): "uint32",
    (1, 64): "uint64",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (5, 64): "complex64",
    (5, 128): "complex128",
    (6, 8): "bool",
}


@pytest.mark.parametrize("kind", DTYPES)
def test_dtypes(kind: tuple[int, int]) -> None:
    with tz.borrow(Producer(Claim(shape=(1,), code=kind[0], bits=kind[1]))) as x:
        assert x.dtype == np.dtype(DTYPES[kind])
    with pytest.raises(UnsupportedError, match="lanes"):
        tz.borrow(Producer(Claim(shape=(1,), code=kind[0], bits=kind[1], lanes=2))).__enter__()


def test_a_dtype_that_the_device_lacks_gives_the_capsule_back(ctx: tz.Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(device: object, dtype: object) -> object:
        raise UnsupportedError(f"{device} has no {dtype}; the nearest is float16")

    monkeypatch.setattr("tazza.core.foreign.dtype_on", lacking)
    monkeypatch.setattr("tazza.core.foreign._is_among", lambda known, dtype: False)
    producer = Producer()
    with pytest.raises(UnsupportedError, match="the nearest is float16"):
        tz.borrow(producer).__enter__()
    assert len(producer.deleted) == 1


def test_a_tensor_is_released_once() -> None:
    producer = Producer()
    tensor = dlpack.take(producer.__dlpack__(), (1, 0))
    tensor.managed.release()
    tensor.managed.release()
    assert len(producer.deleted) == 1
