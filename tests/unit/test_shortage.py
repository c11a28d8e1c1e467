"""Out-of-memory errors of others on their way out of a context, and what is still live at its close."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

import tazza as tz
from tazza.core import registry
from tazza.core.adapter import Adapter, ForeignMemory, adapters


class FakeAdapter(Adapter):
    """A library that says what it is asked here."""

    def memory(self, device: tz.Device) -> ForeignMemory | None:
        if self.library.fails:
            raise RuntimeError("no figures")
        return ForeignMemory(1000, 200, "counted by hand")

    def trim(self, device: tz.Device) -> None:
        self.library.trimmed += 1
        if self.library.fails:
            raise RuntimeError("no trim")

    def is_out_of_memory(self, error: BaseException) -> bool:
        return isinstance(error, RuntimeError) and "fakelib is full" in str(error)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A library that is imported, with an adapter that a third party registered."""
    made = ModuleType("fakelib")
    made.fails, made.trimmed = False, 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fakelib", made)
    known = registry._all_adapters()
    monkeypatch.setitem(known, "fakelib", f"{__name__}:FakeAdapter")
    monkeypatch.setattr("tazza.core.adapter._loaded.made", {})
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or ModuleType(__name__))
    monkeypatch.setattr(sys.modules[__name__], "FakeAdapter", FakeAdapter, raising=False)
    return made


def test_a_librarys_error_gets_the_account_as_a_note(library: ModuleType) -> None:
    assert "fakelib" in [adapter.name for adapter in adapters()]
    with pytest.raises(RuntimeError, match="fakelib is full") as caught:
        with tz.open("cpu", memory_limit="1MiB") as ctx:
            kept = ctx.allocate(1 << 19, label="weights")
            raise RuntimeError("fakelib is full")
    assert len(caught.value.__notes__) == 1
    assert "holds 512.0 KiB, at most 512.0 KiB, with a limit of 1.0 MiB" in caught.value.__notes__[0]
    assert "weights 512.0 KiB" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="another") as other:
        with tz.open("cpu"):
            raise RuntimeError("another")
    assert not hasattr(other.value, "__notes__")
    del kept


def test_a_plain_memory_error_gets_the_note_too() -> None:
    with pytest.raises(MemoryError) as caught, tz.open("cpu"):
        bytearray(1 << 62)
    assert "with no limit; largest holders: none" in caught.value.__notes__[0]


def test_what_a_library_holds_is_a_heading(library: ModuleType) -> None:
    with tz.open("cpu") as ctx:
        found = {heading.name: heading for heading in ctx.memory.snapshot().headings}
        assert found["foreign: fakelib"].nbytes == 1200
        assert found["foreign: fakelib"].note == "counted by hand"
        library.fails = True  # type: ignore[attr-defined]
        with pytest.warns(tz.errors.CleanupWarning, match="fakelib could not say.*no figures"):
            found = {heading.name: heading for heading in ctx.memory.snapshot().headings}
        assert "foreign: fakelib" not in found


def test_a_full_device_asks_libraries_to_give_back(library: ModuleType) -> None:
    from tazza.testing import simulate

    with simulate(devices=1, memory="64KiB"), tz.open("sim:0") as ctx:
        with pytest.raises(tz.OutOfMemoryError):
            ctx.allocate(1 << 20)
        assert library.trimmed == 1
        library.fails = True  # type: ignore[attr-defined]
        with pytest.warns(tz.errors.CleanupWarning, match="fakelib could not give"), pytest.raises(MemoryError):
            ctx.allocate(1 << 20)


def test_what_is_live_at_the_close_is_told_with_its_origin(caplog: pytest.LogCaptureFixture) -> None:
    ctx = tz.context("cpu")
    with ctx, ctx.memory.record():
        kept = ctx.allocate(4096, label="forgotten")
        with pytest.warns(
            tz.errors.LeakWarning, match=r"leaves 4.0 KiB in 1 block.*\n  4.0 KiB forgotten .*test_shortage.py"
        ):
            ctx.close()
    assert ctx.memory.leaks()[0].label == "forgotten"
    quiet = tz.context("cpu")
    also = quiet.allocate(64)
    with caplog.at_level(logging.INFO, "tazza.memory"):
        quiet.close()
    assert "an unrecorded place" in caplog.text
    del kept, also
    assert ctx.memory.leaks() == ()
