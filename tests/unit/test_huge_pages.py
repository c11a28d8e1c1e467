"""Large memory of the CPU lies under huge pages as far as it fills them, and takes no more memory than without."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tazza.drivers.cpu import pages
from tazza.drivers.cpu.driver import CpuDriver

MIB = 2**20
HUGE = 2 * MIB
SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
needs_huge_pages = pytest.mark.skipif(
    not SIZE.exists() or int(SIZE.read_text()) != HUGE, reason="this system has no huge pages of 2 MiB"
)


def flags_of(address: int) -> set[str]:
    """The flags of the kernel's map around an address: ``VmFlags`` of docs.kernel.org/filesystems/proc.html."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            begin, end = (int(one, 16) for one in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return set(rest)
    raise AssertionError(f"nothing is mapped at {address:#x}")


@needs_huge_pages
def test_large_memory_asks_for_the_huge_pages_that_it_fills() -> None:
    driver = CpuDriver()
    [device] = driver.devices()
    address = driver.memory_allocate(device, 5 * MIB)
    try:
        assert "hg" in flags_of(address)
        assert "hg" in flags_of(address + 4 * MIB - 1)
        assert "hg" not in flags_of(address + 4 * MIB)
    finally:
        driver.memory_free(device, address)


@needs_huge_pages
def test_what_is_beyond_takes_no_memory() -> None:
    driver = CpuDriver()
    [device] = driver.devices()
    address = driver.memory_allocate(device, 5 * MIB)
    try:
        driver.fill(device, None, address, b"\1", 5 * MIB)
        assert driver.memory_resident(device, address, 6 * MIB) == 5 * MIB
    finally:
        driver.memory_free(device, address)


@needs_huge_pages
@pytest.mark.parametrize(("nbytes", "length"), [(HUGE - 1, HUGE - 1), (HUGE, HUGE), (HUGE + 1, 2 * HUGE)])
def test_maps_with_huge_pages_have_a_length_of_whole_ones(nbytes: int, length: int) -> None:
    with pages.map_private(nbytes) as memory:
        assert len(memory) == length


def test_a_refusal_leaves_memory_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_HUGE_PAGE", HUGE)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1, raising=False)  # advice that no kernel knows: EINVAL
    with pages.map_private(HUGE + 1) as memory:
        memory[HUGE] = 7
        assert (memory[0], memory[HUGE]) == (0, 7)


def test_systems_without_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_HUGE_PAGE", 0)
    with pages.map_private(HUGE + 1) as memory:
        assert len(memory) == HUGE + 1
    monkeypatch.setattr(Path, "read_text", missing)
    assert pages._huge_page() == 0
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert pages._huge_page() == 0


def missing(path: Path) -> str:
    """As of a kernel that tells nothing of huge pages."""
    raise FileNotFoundError(path)


def test_freed_pinned_memory_leaves_the_count_of_what_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    monkeypatch.setattr(pages, "lock", lambda address, nbytes, locked: counts.append(locked))
    driver = CpuDriver()
    [device] = driver.devices()
    first, second = (driver.pinned_allocate(device, nbytes) for nbytes in (5 * MIB, MIB))
    driver.pinned_free(device, first)
    third = driver.pinned_allocate(device, MIB)
    for address in (second, third):
        driver.pinned_free(device, address)
    assert counts == [0, 5 * MIB, MIB]
