"""Shared segments against a model: who owns a name, who has it mapped, what is charged, what the bytes are."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

import tazza as tz
from tazza.core import segment
from tazza.errors import SharedMemoryError
from tests.unit.shared_world import SHM, needs_names

pytestmark = needs_names

PAGE = segment.PAGE
FULL = os.environ.get("TAZZA_FULL") == "1"
LIMIT = 40 * PAGE


class SharedMachine(RuleBasedStateMachine):
    """One process that creates, attaches, writes, closes, sweeps and litters; every mapping is a page or more."""

    buffers: Bundle[Any] = Bundle("buffers")

    def __init__(self) -> None:
        super().__init__()
        self.before = segment._DIRECTORY
        self.directory = tempfile.mkdtemp(prefix="tazza-tests-", dir=SHM)
        segment._DIRECTORY = self.directory  # type: ignore[misc]
        self.ctx = tz.context("cpu", memory_limit=LIMIT)
        self.named: set[str] = set()  # names that are there
        self.litter: set[str] = set()  # of those, the ones that nobody has
        self.contents: dict[str, bytes] = {}  # what each segment holds
        self.charged = 0
        self.open: list[tz.Buffer] = []

    @property
    def shared(self) -> tz.SharedMemory:
        return self.ctx.memory.shared

    @rule(target=buffers, count=st.integers(0, 3 * PAGE))
    def create(self, count: int) -> Any:
        nbytes = PAGE + -(-count // PAGE) * PAGE
        self.named -= self.litter if self.charged + nbytes <= LIMIT else set()
        if self.charged + nbytes > LIMIT:
            with pytest.raises(tz.OutOfMemoryError):
                self.shared.allocate(count)
            return multiple()
        self.litter.clear()
        made = self.shared.allocate(count)
        name = tz.SharedSpec.of(made).name
        assert name not in self.contents, "a name is never used again"
        self.named.add(name)
        self.contents[name] = bytes(count)
        self.charged += nbytes
        self.open.append(made)
        return made, name, nbytes, True

    @rule(target=buffers, entry=buffers, by_name=st.booleans(), readonly=st.booleans())
    def attach(self, entry: Any, by_name: bool, readonly: bool) -> Any:
        buffer, name, nbytes, _ = entry
        spec = name if by_name else tz.SharedSpec.of(buffer)
        readonly = readonly or (not by_name and buffer.readonly)
        if name not in self.named or self.charged + nbytes > LIMIT:
            with pytest.raises(tz.OutOfMemoryError if name in self.named else SharedMemoryError):
                self.shared.attach(spec, readonly=readonly)
            return multiple()
        self.charged += nbytes
        there = self.shared.attach(spec, readonly=readonly)
        self.open.append(there)
        return there, name, nbytes, False

    @rule(entry=buffers, data=st.data())
    def write(self, entry: Any, data: st.DataObject) -> None:
        buffer, name, _, _ = entry
        content = self.contents[name]
        if buffer.readonly or not content:
            return
        start = data.draw(st.integers(0, len(content) - 1))
        written = data.draw(st.binary(max_size=min(16, len(content) - start)))
        self.ctx.copy(buffer[start : start + len(written)], written)
        self.contents[name] = content[:start] + written + content[start + len(written) :]

    @rule(entry=buffers)
    def read(self, entry: Any) -> None:
        buffer, name, _, _ = entry
        found = bytearray(len(buffer))
        self.ctx.copy(found, buffer)
        assert found == self.contents[name]

    @rule(entry=consumes(buffers))
    def close(self, entry: Any) -> None:
        buffer, name, nbytes, owned = entry
        buffer.close()
        self.charged -= nbytes
        if owned:
            self.named.discard(name)

    @precondition(lambda self: len(self.litter) < 3)
    @rule(whole=st.booleans())
    def a_process_dies(self, whole: bool) -> None:
        name = f"tazza-{len(self.contents) + 2}-{os.urandom(8).hex()}"
        header = segment.Header(8, None, (8,), (1,), None).pack().ljust(2 * PAGE, b"\0")
        Path(self.directory, name).write_bytes(header if whole else b"")
        self.named.add(name)
        self.litter.add(name)

    @rule()
    def sweep(self) -> None:
        assert set(self.shared.sweep()) == self.litter
        self.named -= self.litter
        self.litter.clear()

    @invariant()
    def names_are_right(self) -> None:
        assert set(os.listdir(self.directory)) == self.named

    @invariant()
    def charges_are_right(self) -> None:
        assert self.shared.live == self.shared.reserved == self.ctx.memory.stats().live == self.charged <= LIMIT
        mapped = sum(one.nbytes for one in segment._open.segments.values() if one.name in self.contents)
        assert mapped == self.charged

    def teardown(self) -> None:
        for buffer in self.open:
            buffer.close()
        self.ctx.close()
        left = set(os.listdir(self.directory)) - self.litter
        segment._DIRECTORY = self.before  # type: ignore[misc]
        shutil.rmtree(self.directory)
        assert not left


TestSharedMachine = SharedMachine.TestCase
TestSharedMachine.settings = settings(max_examples=300 if FULL else 20, stateful_step_count=30)
