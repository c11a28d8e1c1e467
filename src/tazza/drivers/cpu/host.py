"""What the operating system lets this process use: processors and memory."""

from __future__ import annotations

import os
import platform
import uuid
from pathlib import Path

from tazza.drivers.cpu.cgroups import cpu_quota, memory_groups, read
from tazza.errors import ArgumentError

__all__ = [
    "available_memory",
    "cpu_quota",
    "format_cores",
    "machine_memory",
    "machine_uuid",
    "parse_cores",
    "title",
    "usable_cores",
]

ROOT = Path("/")


def usable_cores() -> tuple[int, ...]:
    """Processors in the affinity mask of this process, or all where the system has no masks."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def machine_memory(root: Path = ROOT) -> tuple[int, int]:
    """Free and total bytes of the machine, whatever this process may have of them."""
    free = total = 0
    for line in (read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
        elif line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    if not total and hasattr(os, "sysconf"):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return free, total


def available_memory(root: Path = ROOT) -> tuple[int, int]:
    """Free and total bytes: the machine's, or those of the control group that leaves the least."""
    free, total = machine_memory(root)
    for group in memory_groups(root):
        total = min(total, group.limit)
        free = min(free, group.free)
    return free, total


def machine_uuid() -> str:
    """An identity that is the same for every process on this machine until it is set up anew."""
    seed = read(ROOT / "etc/machine-id") or platform.node()
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "tazza.cpu." + seed.strip()))


def title() -> str:
    """The processor's name for people."""
    for line in (read(ROOT / "proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def format_cores(cores: tuple[int, ...]) -> str:
    """Write processors as ranges: ``(0, 1, 2, 5)`` becomes ``"0-2,5"``."""
    runs: list[list[int]] = []
    for core in cores:
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_cores(text: str) -> tuple[int, ...]:
    """Read what `format_cores` writes."""
    cores: set[int] = set()
    try:
        for piece in text.split(","):
            first, _, last = piece.partition("-")
            cores.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ArgumentError.of("device", f"cpu:0[{text}]", "processors like cpu:0[0-3] or cpu:0[1,3]") from None
    return tuple(sorted(cores))
