"""Segments that are not ours, not whole or left behind, and systems that refuse: each case told apart."""

from __future__ import annotations

import ctypes
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.core import segment
from tazza.errors import ArgumentError, SharedMemoryError, UsageError
from tests.unit.shared_world import ctx, directory, names, needs_names, numbers, read

__all__ = ["ctx", "directory"]

pytestmark = needs_names

PAGE = segment.PAGE
TIMEOUT = 20.0


# What is not a segment of ours -------------------------------------------------------------------------------------

NAME = "tazza-1-0123456789abcdef"


def write(directory: str, content: bytes) -> None:
    Path(directory, NAME).write_bytes(content)


def whole(count: int = 10) -> bytearray:
    header = segment.Header(8 * count, np.dtype("int64"), (count,), (8,), "numbers")
    return bytearray(header.pack().ljust(PAGE, b"\0") + bytes(PAGE))


def test_foreign_damaged_and_short_segments_are_told_apart(ctx: tz.Context, directory: str) -> None:
    def refused(content: bytes, why: str) -> None:
        write(directory, content)
        with pytest.raises(SharedMemoryError, match=why):
            ctx.memory.shared.attach(NAME)

    write(directory, bytes(whole()))
    assert read(ctx.memory.shared.attach(NAME)) == [0] * 10
    refused(b"", "not made by tazza, or not finished")
    refused(bytes(2 * PAGE), "not made by tazza, or not finished")
    refused(b"something else".ljust(2 * PAGE), "not made by tazza")
    newer = whole()
    newer[8] = segment.VERSION + 1
    refused(bytes(newer), f"format version {segment.VERSION + 1}, this tazza reads {segment.VERSION}")
    damaged = whole()
    damaged[40] ^= 1
    refused(bytes(damaged), "damaged: the checksum")
    refused(bytes(whole()[:PAGE]), "too small")
    refused(bytes(whole(2000)), "too small")
    lying = segment.Header(8, np.dtype("int64"), (1,), (8,), None)._replace(shape=(3,))
    refused(lying.pack().ljust(2 * PAGE, b"\0"), "does not fit")
    os.unlink(Path(directory, NAME))


def test_no_flipped_bit_of_the_header_goes_unnoticed() -> None:
    good = bytes(whole()[:PAGE])
    length = len(segment.Header(80, np.dtype("int64"), (10,), (8,), "numbers").pack())
    for position in range(length):
        for bit in range(8):
            damaged = bytearray(good)
            damaged[position] ^= 1 << bit
            with pytest.raises(SharedMemoryError):
                segment.Header.unpack(NAME, bytes(damaged), 2 * PAGE)


def test_a_header_that_says_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    for fields in ("[]", "{}", '{"dtype": "zz", "shape": [], "strides": [], "label": null}', "{"):
        monkeypatch.setattr("json.dumps", lambda value, text=fields: text)
        page = segment.Header(8, None, (8,), (1,), None).pack()
        with pytest.raises(SharedMemoryError, match="its header says"):
            segment.Header.unpack(NAME, page, 2 * PAGE)


def test_a_description_that_needs_more_than_a_page_is_refused(ctx: tz.Context, directory: str) -> None:
    wide = np.dtype([(f"a_rather_long_name_of_a_field_{number}", "<f8") for number in range(200)])
    with pytest.raises(ArgumentError, match="more than a page"):
        ctx.memory.shared.allocate(wide.itemsize, dtype=wide)
    labelled = ctx.memory.shared.allocate(8, label="x" * 10_000)
    assert ctx.memory.shared.attach(tz.SharedSpec.of(labelled).name).label == "x" * 200


def test_specs_that_do_not_fit(ctx: tz.Context) -> None:
    made = numbers(ctx)
    spec = tz.SharedSpec.of(made)
    for wrong in (
        replace(spec, shape=(11,)),
        replace(spec, offset=8),
        replace(spec, offset=-8),
        replace(spec, strides=(16,)),
        replace(spec, strides=(-8,)),
        replace(spec, shape=(2, 5)),
        replace(spec, dtype=None, shape=(81,), strides=(1,)),
        replace(spec, shape=None),  # type: ignore[arg-type]
    ):
        with pytest.raises(SharedMemoryError, match="has 80 bytes, into which .* does not fit"):
            ctx.memory.shared.attach(wrong)
    assert ctx.memory.shared.live == 2 * PAGE


def test_bad_input(ctx: tz.Context, directory: str) -> None:
    shared = ctx.memory.shared
    for bad in ("", "tazza", "../passwd", "tazza-1-0123456789abcdef/x", "/tazza-1-0123456789abcdef", 5, None, b"x"):
        with pytest.raises(ArgumentError, match="name: got|spec: got"):
            shared.attach(bad)  # type: ignore[arg-type]
    for other in (ctx.allocate(8), ctx.memory.pinned.allocate(8), np.zeros(3), None):
        with pytest.raises(ArgumentError, match=r"ctx\.memory\.shared made"):
            tz.SharedSpec.of(other)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="nbytes"):
        shared.allocate(-1)
    with pytest.raises(ArgumentError, match="label"):
        shared.allocate(8, label=3)  # type: ignore[arg-type]
    made = shared.allocate(8)
    with pytest.raises(UsageError, match="cannot be pickled"):
        pickle.dumps(made)
    assert "SharedMemory of" in repr(shared)
    supply = made.block.pool.source.supply
    assert repr(supply.segments[made.block.address]) == f"<Segment {tz.SharedSpec.of(made).name}, made here: 8 bytes>"


def test_things_that_are_no_files(ctx: tz.Context, directory: str) -> None:
    path = Path(directory, NAME)
    path.mkdir()
    with pytest.raises(SharedMemoryError, match="cannot be attached"):
        ctx.memory.shared.attach(NAME)
    assert ctx.memory.shared.sweep() == ()
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(SharedMemoryError, match="another kind of file"):
        ctx.memory.shared.attach(NAME)
    assert ctx.memory.shared.sweep() == ()
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(SharedMemoryError, match="cannot be attached"):
        ctx.memory.shared.attach(NAME)
    assert ctx.memory.shared.sweep() == ()
    path.unlink()


# Sweeping ----------------------------------------------------------------------------------------------------------


def test_a_sweep_removes_what_nobody_has(ctx: tz.Context, directory: str) -> None:
    made = numbers(ctx)
    write(directory, b"")  # a process that died before it had its lock
    Path(directory, "tazza-notes.txt").write_text("a user's own")
    assert ctx.memory.shared.sweep() == (NAME,)
    assert names(directory) == sorted(["tazza-notes.txt", tz.SharedSpec.of(made).name])
    Path(directory, "tazza-notes.txt").unlink()


def test_every_new_segment_sweeps(ctx: tz.Context, directory: str) -> None:
    write(directory, bytes(whole()))
    made = numbers(ctx)
    assert names(directory) == [tz.SharedSpec.of(made).name]


def test_another_users_segments_are_his(ctx: tz.Context, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, bytes(whole()))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert ctx.memory.shared.sweep() == ()
    monkeypatch.undo()
    monkeypatch.setattr(segment, "_DIRECTORY", directory)
    assert ctx.memory.shared.sweep() == (NAME,)


def test_a_sweeper_between_creation_and_lock(ctx: tz.Context, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the lock, or has had it and the file is gone: the creator takes another name."""
    lock, steps = segment._lock, iter(["has it", "had it"])

    def meddled(descriptor: int, *, exclusive: bool = False) -> bool:
        step = None if exclusive else next(steps, None)
        if step == "had it":
            [name] = names(directory)
            os.unlink(Path(directory, name))
        return step != "has it" and lock(descriptor, exclusive=exclusive)

    monkeypatch.setattr(segment, "_lock", meddled)
    made = numbers(ctx)
    assert names(directory) == [tz.SharedSpec.of(made).name]
    assert next(steps, None) is None
    monkeypatch.setattr(segment, "_lock", lambda descriptor, exclusive=False: False)
    with pytest.raises(tz.OutOfMemoryError):
        ctx.memory.shared.allocate(8)
    with pytest.raises(SharedMemoryError, match="no segment"):
        ctx.memory.shared.attach(tz.SharedSpec.of(made))
    monkeypatch.setattr(segment, "_lock", lock)
    assert names(directory) == [tz.SharedSpec.of(made).name]


# What the system refuses -------------------------------------------------------------------------------------------


def test_a_creation_that_fails_leaves_nothing(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(tz.OutOfMemoryError, match="has no room"):
        segment.create(segment.Header(2**50, None, (2**50,), (1,), None))
    monkeypatch.setattr(segment._libc(), "mmap", lambda *args: ctypes.c_void_p(-1).value)
    with pytest.raises(tz.OutOfMemoryError) as caught:
        segment.create(segment.Header(8, None, (8,), (1,), None))
    assert caught.value.call == "mmap"
    assert names(directory) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_cannot_be_written(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(tz.OutOfMemoryError, match="No space left"):
            segment.create(segment.Header(8, None, (8,), (1,), None))


def test_a_system_that_cannot_take_memory_ahead(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with tz.open("cpu") as ctx:
        made = numbers(ctx)
        assert read(made) == list(range(10))
        made.close()


def test_a_system_without_names_and_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "fcntl", None)
    with tz.open("cpu") as ctx:
        for use in (
            lambda: ctx.memory.shared.allocate(8),
            lambda: ctx.memory.shared.attach(NAME),
            lambda: ctx.memory.shared.sweep(),
        ):
            with pytest.raises(tz.errors.UnsupportedError, match="/dev/shm"):
                use()
