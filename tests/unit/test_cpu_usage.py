"""Who uses the host's memory, from planted files of both kinds of control group and of none."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from tazza.drivers.cpu.usage import memory_use, resident

STATUS = "Name:\tpython\nRssAnon:\t    3000 kB\nRssFile:\t 9 kB\nRssShmem:\t    1000 kB\n"
MEMINFO = (
    "MemTotal: 100000 kB\nMemFree: 40000 kB\nMemAvailable: 70000 kB\nBuffers: 1000 kB\nCached: 20000 kB\n"
    "SwapCached: 0 kB\nAnonPages: 9000 kB\nShmem: 5000 kB\nSlab: 4000 kB\nKernelStack: 100 kB\nPageTables: 50 kB\n"
)
ZONEINFO = (
    "Node 0, zone Normal\n  pages free 5\n  pagesets\n    cpu: 0\n              count:    3\n              high: 9\n"
)


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_limits(tmp_path: Path) -> None:
    root = plant(tmp_path, {"proc/self/status": STATUS, "proc/meminfo": MEMINFO, "proc/zoneinfo": ZONEINFO})
    use = memory_use(root)
    assert (use.total, use.used, use.process) == (100_000 << 10, 60_000 << 10, 4000 << 10)
    assert dict(use.parts) == {
        "file cache": (20_000 + 1000 - 5000) << 10,
        "kernel": 4150 << 10,
        "kernel: free in processors' lists": 3 * mmap.PAGESIZE,
        "other processes": (9000 + 5000 - 4000) << 10,
    }


def test_a_control_group_of_version_2(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/box"
    root = plant(
        tmp_path,
        {
            "proc/self/status": STATUS,
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "proc/meminfo": MEMINFO,
            f"{group}/memory.max": "50000000\n",
            f"{group}/memory.current": "30000000\n",
            f"{group}/memory.stat": "anon 9000000\nfile 12000000\nkernel 2000000\nshmem 1500000\ninactive_file 5\n",
        },
    )
    use = memory_use(root)
    assert (use.total, use.used) == (50_000_000, 30_000_000)
    assert dict(use.parts) == {
        "file cache": 10_500_000,
        "kernel": 2_000_000,
        "other processes": 9_000_000 + 1_500_000 - (4000 << 10),
    }


def test_a_control_group_of_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/box"
    root = plant(
        tmp_path,
        {
            "proc/self/status": STATUS,
            "proc/self/cgroup": "4:memory:/box\n",
            "proc/self/mountinfo": "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            "proc/meminfo": MEMINFO,
            f"{group}/memory.limit_in_bytes": "60000000\n",
            f"{group}/memory.usage_in_bytes": "20000000\n",
            f"{group}/memory.kmem.usage_in_bytes": "700000\n",
            f"{group}/memory.stat": "hierarchical_memory_limit 60000000\ntotal_cache 6000000\ntotal_rss 9000000\n"
            "total_shmem 1000000\n",
        },
    )
    use = memory_use(root)
    assert (use.total, use.used) == (60_000_000, 20_000_000)
    assert dict(use.parts) == {
        "file cache": 5_000_000,
        "kernel": 700_000,
        "other processes": 10_000_000 - (4000 << 10),
    }


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    use = memory_use(tmp_path)
    assert use.process is None
    assert dict(use.parts) == {}
    assert use.used <= use.total


@pytest.mark.skipif(sys.platform != "linux", reason="mincore tells of private memory on Linux")
def test_only_touched_pages_are_resident() -> None:
    memory = mmap.mmap(-1, 16 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    handle = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(handle)
    assert resident(address, 16 * mmap.PAGESIZE) == 0
    memory[5 * mmap.PAGESIZE] = 1
    memory[9 * mmap.PAGESIZE] = 1
    assert resident(address, 16 * mmap.PAGESIZE) == 2 * mmap.PAGESIZE
    assert resident(address + 5 * mmap.PAGESIZE + 100, 10) == 10
    assert resident(address, 0) == 0
    assert resident(1 << 46, 100) == 100, "unmapped: what was granted is the best figure there is"
    del handle
    memory.close()
