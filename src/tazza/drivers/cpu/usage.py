"""Who uses the host's memory: this process, the file cache, the kernel, other processes.

The figures are those of the tightest control group that limits this process, else the machine's. Source: the kernel's
documentation of ``/proc`` (filesystems/proc) and of control groups (admin-guide/cgroup-v1/memory, cgroup-v2).
"""

from __future__ import annotations

import ctypes
import mmap
import re
from pathlib import Path
from typing import Any

from tazza.drivers.cpu.cgroups import memory_groups, read
from tazza.drivers.cpu.host import machine_memory
from tazza.spi import MemoryUse

__all__ = ["memory_use", "resident"]

_ROOT = Path("/")


def memory_use(root: Path = _ROOT) -> MemoryUse:
    """Divide what is used; the parts are empty where the system does not tell."""
    groups = memory_groups(root)
    own = _fields(read(root / "proc/self/status"))
    process = own["RssAnon"] + own["RssShmem"] if "RssAnon" in own else None
    if groups:
        tightest = min(groups, key=lambda group: group.limit)
        total, used = tightest.limit, tightest.used
        processes, parts = _group_parts(Path(tightest.path))
    else:
        meminfo = _fields(read(root / "proc/meminfo"))
        if "MemFree" not in meminfo:
            free, total = machine_memory(root)
            return MemoryUse(total, total - free, process)
        total, used = meminfo["MemTotal"], meminfo["MemTotal"] - meminfo["MemFree"]
        processes, parts = _machine_parts(meminfo)
        parts["kernel: free in processors' lists"] = _listed_pages(read(root / "proc/zoneinfo"))
    if process is not None:
        parts["other processes"] = max(0, processes - process)
    return MemoryUse(total, used, process, parts)


def _machine_parts(meminfo: dict[str, int]) -> tuple[int, dict[str, int]]:
    """What all processes hold together, and the other parts."""
    shared = meminfo.get("Shmem", 0)
    kernel = ("Slab", "KernelStack", "PageTables", "SecPageTables", "Percpu", "VmallocUsed", "Bounce", "Hugetlb")
    return meminfo.get("AnonPages", 0) + shared, {
        "file cache": sum(meminfo.get(name, 0) for name in ("Cached", "Buffers", "SwapCached")) - shared,
        "kernel": sum(meminfo.get(name, 0) for name in kernel),
    }


def _listed_pages(zoneinfo: str | None) -> int:
    """Bytes of free pages that each processor keeps for itself: ``MemFree`` does not count them."""
    counts = re.findall(r"^\s+count:\s+(\d+)$", zoneinfo or "", re.MULTILINE)
    return sum(map(int, counts)) * mmap.PAGESIZE


def _group_parts(folder: Path) -> tuple[int, dict[str, int]]:
    stat: dict[str, int] = {}
    for line in (read(folder / "memory.stat") or "").splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            stat[name] = int(number)
    if "anon" in stat:  # version 2
        shared, cache, processes = stat.get("shmem", 0), stat.get("file", 0), stat["anon"]
        kernel = stat.get("kernel", sum(stat.get(name, 0) for name in ("slab", "kernel_stack", "pagetables", "percpu")))
    else:
        shared, cache, processes = (stat.get(f"total_{name}", 0) for name in ("shmem", "cache", "rss"))
        kernel = int(read(folder / "memory.kmem.usage_in_bytes") or 0)
    return processes + shared, {"file cache": cache - shared, "kernel": kernel}


def _fields(text: str | None) -> dict[str, int]:
    """Read lines of ``Name:   12 kB`` as bytes."""
    found = {}
    for line in (text or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def resident(address: int, nbytes: int) -> int:
    """Bytes of a range whose pages are in memory; all of them where the system does not tell.

    Pages at both ends count in full. Source: mincore(2); for private memory it tells the pages that were touched.
    """
    mincore: Any = getattr(_libc, "mincore", None)
    if mincore is None or nbytes == 0:
        return nbytes
    page = mmap.PAGESIZE
    first = address & -page
    pages = -(-(address + nbytes - first) // page)
    flags = ctypes.create_string_buffer(pages)
    if mincore(ctypes.c_void_p(first), ctypes.c_size_t(pages * page), flags) != 0:
        return nbytes  # unmapped meanwhile, or not allowed: granted bytes are the best figure there is
    touched = sum(flags.raw[:pages].translate(_LOWEST_BIT)) * page
    return min(nbytes, touched)


_LOWEST_BIT = bytes(value & 1 for value in range(256))

try:
    _libc: Any = ctypes.CDLL(None)
except (OSError, TypeError):  # Windows has no such library
    _libc = None
