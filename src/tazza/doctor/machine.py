"""The machine and what of it this process may use: processors, memory, limits."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tazza.doctor.facts import Limits, Memory, Processors
from tazza.drivers.cpu import host
from tazza.drivers.cpu.cgroups import cpu_quota, memory_groups, read

__all__ = ["examine_limits", "examine_memory", "examine_processors"]


def examine_processors(root: Path) -> Processors:
    """Count processors."""
    return Processors(os.cpu_count() or 1, len(host.usable_cores()), cpu_quota(root))


def examine_memory(root: Path) -> Memory:
    """Read the machine's memory, that of the control groups and the shared one."""
    machine_free, machine_total = host.machine_memory(root)
    free, total = host.available_memory(root)
    shared_free = shared_total = None
    if hasattr(os, "statvfs"):
        try:
            shared = os.statvfs(root / "dev/shm")
            shared_free, shared_total = shared.f_bavail * shared.f_frsize, shared.f_blocks * shared.f_frsize
        except OSError:  # this system keeps shared memory elsewhere
            pass
    overcommit = (read(root / "proc/sys/vm/overcommit_memory") or "").strip()
    return Memory(
        machine_free=machine_free,
        machine_total=machine_total,
        free=free,
        total=total,
        groups=memory_groups(root),
        shared_free=shared_free,
        shared_total=shared_total,
        overcommit=int(overcommit) if overcommit.isdigit() else None,
    )


def examine_limits(root: Path) -> Limits:
    """Read the soft limits of this process."""
    text = read(root / "proc/self/limits") or ""
    return Limits(
        address_space=_limit(text, "Max address space"),
        locked=_limit(text, "Max locked memory"),
        files=_limit(text, "Max open files"),
    )


def _limit(text: str, name: str) -> int | None:
    match = re.search(rf"^{name}\s+(\d+)\s", text, re.MULTILINE)
    return int(match[1]) if match else None  # "unlimited" is no number
