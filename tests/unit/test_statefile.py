"""The file format of saved state: round trips, every kind of damage, and death while writing."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tazza.core import statefile
from tazza.errors import ArgumentError, CheckpointError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
dtypes = st.sampled_from(["?", "i1", "<u8", ">i4", "<f2", "<f4", ">f8", "<c16"])
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@settings(max_examples=60, deadline=None)
@given(header=st.dictionaries(st.text(), json_values, max_size=3), content=st.dictionaries(st.text(), arrays))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], content: dict[str, np.ndarray[Any, Any]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.trip"
    statefile.write(path, header, content)
    got_header, got = statefile.read(path)
    assert got_header == header
    assert list(got) == list(content)
    for name, array in content.items():
        assert got[name].shape == array.shape
        assert got[name].dtype == array.dtype.newbyteorder("=")
        assert got[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()
        assert got[name].flags.writeable
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith(".tmp")] == []


def test_strided_arrays_and_offsets(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 6)
    statefile.write(tmp_path / "s", {}, {"a": array.T, "b": array[::2, ::-3], "c": np.broadcast_to(1.5, (2, 3))})
    _, got = statefile.read(tmp_path / "s")
    assert np.array_equal(got["a"], array.T)
    assert np.array_equal(got["b"], array[::2, ::-3])
    assert np.array_equal(got["c"], np.full((2, 3), 1.5))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    statefile.write(path, {"step": 7}, {"w": np.arange(5, dtype=np.float32), "n": np.array(3)})
    return path


def test_every_flipped_bit_is_refused(saved: Path) -> None:
    """Every bit of head and text, and some of the arrays; 'nothing is lost': the file stays as it is."""
    good = saved.read_bytes()
    for position in range(len(good)):
        for bit in range(8) if position < 96 else (position % 8,):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            saved.write_bytes(bad)
            with pytest.raises(CheckpointError, match="state"):
                statefile.read(saved)
            assert saved.read_bytes() == bad


def test_every_truncation_is_refused(saved: Path) -> None:
    good = saved.read_bytes()
    for length in range(len(good)):
        saved.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="truncated" if length else "not a tazza state file"):
            statefile.read(saved)


def test_trailing_bytes_are_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        statefile.read(saved)


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x93NUMPY" + bytes(100), b"tazza\n" + bytes(90)])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a tazza state file"):
        statefile.read(tmp_path / "f")


def forge(path: Path, text: bytes, *, version: int = statefile.VERSION) -> None:
    """Write a file whose length and digest are right, whatever its content is."""
    head = struct.pack("<12sIQQ", b"tazza state\n", version, 64 + len(text), len(text))
    path.write_bytes(head + hashlib.sha256(head + text).digest() + text)


@pytest.mark.parametrize(
    "text",
    [
        b"no json",
        b"[]",
        b"{}",
        b'{"header": 3, "arrays": []}',
        b'{"header": {}, "arrays": [["a", "<f4", [1000], 0]]}',
        b'{"header": {}, "arrays": [["a", "<f4", [-1], 0]]}',
        b'{"header": {}, "arrays": [["a", "<f4", [0], -64]]}',
        b'{"header": {}, "arrays": [["a", "O", [0], 0]]}',
        b'{"header": {}, "arrays": [["a", "nonsense", [0], 0]]}',
        b'{"header": {}, "arrays": [["a", "<f4", "xy", 0]]}',
    ],
)
def test_forged_content_is_refused(tmp_path: Path, text: bytes) -> None:
    forge(tmp_path / "f", text)
    with pytest.raises(CheckpointError, match="not a saved state"):
        statefile.read(tmp_path / "f")


def test_another_version_is_refused(tmp_path: Path) -> None:
    forge(tmp_path / "f", b"{}", version=99)
    with pytest.raises(CheckpointError, match="version 99"):
        statefile.read(tmp_path / "f")


def test_what_cannot_be_written_changes_nothing(saved: Path) -> None:
    good = saved.read_bytes()
    with pytest.raises(ArgumentError, match="header"):
        statefile.write(saved, {"a": object()}, {})
    with pytest.raises(ArgumentError, match=r"arrays\['o'\]"):
        statefile.write(saved, {}, {"o": np.array([object()])})
    with pytest.raises(FileNotFoundError):
        statefile.write(saved.parent / "missing" / "file", {}, {})
    with pytest.raises(FileNotFoundError):
        statefile.read(saved.parent / "missing")
    assert saved.read_bytes() == good
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failure_while_writing_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    good = saved.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        statefile.write(saved, {"step": 8}, {})
    monkeypatch.undo()
    assert saved.read_bytes() == good
    assert list(saved.parent.iterdir()) == [saved], "the temporary file was left behind"


def test_a_symbolic_link_is_followed(saved: Path) -> None:
    link = saved.parent / "link"
    link.symlink_to(saved)
    statefile.write(link, {"step": 8}, {})
    assert link.is_symlink()
    assert statefile.read(saved)[0] == {"step": 8}
