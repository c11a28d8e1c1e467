"""What the host lets a process use, read from planted system files: both versions of control groups, nested ones."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from tazza.drivers.cpu import host
from tazza.drivers.cpu.cgroups import MemoryGroup, memory_groups
from tazza.errors import ArgumentError

GIB = 2**30
MEMINFO = f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {48 * 2**20} kB\n"
MOUNT_2 = "41 31 0:29 {root} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
MOUNT_1 = "35 31 0:32 {root} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
NO_LIMIT_1 = 9223372036854771712


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write files of a fake system below `root`, a machine with 64 GiB of which 48 are free."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group_2(path: str, limit: str, used: int, cache: int = 0) -> dict[str, str]:
    """The memory files of a group of version 2; half of its cache is in active use."""
    stat = f"anon 1\nfile {cache}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
    return {
        f"{path}/memory.max": f"{limit}\n",
        f"{path}/memory.current": f"{used}\n",
        f"{path}/memory.stat": stat,
    }


def group_1(path: str, limit: int, used: int, *, cache: int = 0, above: int = NO_LIMIT_1) -> dict[str, str]:
    """The memory files of a group of version 1; `above` is the minimum that the kernel knows."""
    stat = f"total_cache {cache}\ntotal_inactive_file {cache}\ntotal_active_file 0\nhierarchical_memory_limit {above}\n"
    return {
        f"{path}/memory.limit_in_bytes": f"{limit}\n",
        f"{path}/memory.usage_in_bytes": f"{used}\n",
        f"{path}/memory.use_hierarchy": "1\n",
        f"{path}/memory.stat": stat,
    }


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    root = plant(tmp_path, {})
    assert host.available_memory(root) == host.machine_memory(root) == (48 * GIB, 64 * GIB)
    assert host.cpu_quota(root) is None
    assert memory_groups(root) == ()


def test_version_2_own_group(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": MOUNT_2.format(root="/")}
    files |= group_2("sys/fs/cgroup/job", str(8 * GIB), 5 * GIB, cache=2 * GIB)
    files |= {"sys/fs/cgroup/job/cpu.max": "150000 100000\n"}
    root = plant(tmp_path, files)
    assert memory_groups(root) == (MemoryGroup(str(root / "sys/fs/cgroup/job"), 8 * GIB, 5 * GIB, 2 * GIB),)
    assert host.available_memory(root) == (5 * GIB, 8 * GIB)  # file cache is given back when memory is short
    assert host.machine_memory(root) == (48 * GIB, 64 * GIB)
    assert host.cpu_quota(root) == 1.5


@pytest.mark.parametrize("tight", ["", "/slice", "/slice/service", "/slice/service/pod"])
def test_version_2_the_tightest_group_above_binds(tmp_path: Path, tight: str) -> None:
    files = {"proc/self/cgroup": "0::/slice/service/pod\n", "proc/self/mountinfo": MOUNT_2.format(root="/")}
    for path in ("", "/slice", "/slice/service", "/slice/service/pod"):
        limit, used = (2 * GIB, GIB) if path == tight else (16 * GIB, 3 * GIB)
        files |= group_2(f"sys/fs/cgroup{path}", str(limit), used)
        files[f"sys/fs/cgroup{path}/cpu.max"] = "50000 100000" if path == tight else "max 100000"
    root = plant(tmp_path, files)
    assert host.available_memory(root) == (GIB, 2 * GIB)
    assert host.cpu_quota(root) == 0.5
    assert [Path(group.path).name for group in memory_groups(root)] == ["pod", "service", "slice", "cgroup"]


def test_the_least_free_group_need_not_be_the_smallest(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": MOUNT_2.format(root="/")}
    files |= group_2("sys/fs/cgroup/a/b", str(4 * GIB), GIB) | group_2("sys/fs/cgroup/a", str(8 * GIB), 7 * GIB)
    assert host.available_memory(plant(tmp_path, files)) == (GIB, 4 * GIB)


@pytest.mark.parametrize("limit", ["max", "", "nonsense"])
def test_version_2_without_a_limit(tmp_path: Path, limit: str) -> None:
    files = {"proc/self/cgroup": "0::/job\n", "proc/self/mountinfo": MOUNT_2.format(root="/")}
    files |= group_2("sys/fs/cgroup/job", limit, GIB) | {"sys/fs/cgroup/job/cpu.max": f"{limit} 100000"}
    root = plant(tmp_path, files)
    assert host.available_memory(root) == (48 * GIB, 64 * GIB)
    assert host.cpu_quota(root) is None


def test_a_group_that_is_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    files = group_2("sys/fs/cgroup", str(GIB), GIB + 4096)
    assert host.available_memory(plant(tmp_path, files)) == (0, GIB)


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("/", "/"),  # in a namespace of control groups
        ("/docker/1a", "/docker/1a"),  # without: the mount begins at the own group
        ("/../../outside", "/"),  # a process that was moved into the container
        ("/docker/1ab", "/docker/1a"),  # alike, not below
        ("/gone", "/"),
    ],
)
def test_containers_show_their_group_at_the_mount(tmp_path: Path, path: str, mounted: str) -> None:
    files = {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": MOUNT_2.format(root=mounted)}
    files |= group_2("sys/fs/cgroup", str(2 * GIB), GIB)
    assert host.available_memory(plant(tmp_path, files)) == (GIB, 2 * GIB)


def version_1(path: str, mounted: str = "/") -> dict[str, str]:
    """Version 1 for memory and processor time, version 2 mounted beside it without controllers."""
    mounts = [MOUNT_1.format(root=mounted, name=name) for name in ("memory", "cpu", "cpuset")]
    return {
        "proc/self/cgroup": f"9:name=systemd:/\n4:memory:{path}\n2:cpu,cpuacct:{path}\n0::/\nnonsense\n",
        "proc/self/mountinfo": "nonsense\n1 2 - x\n" + MOUNT_2.format(root="/") + "".join(mounts),
        "sys/fs/cgroup/memory.max": "4096\n",  # of the other version: not this controller's
        "sys/fs/cgroup/memory.current": "0\n",
        "sys/fs/cgroup/cpu.max": "1000 100000\n",
    }


def test_version_1(tmp_path: Path) -> None:
    files = version_1("/a/b") | group_1("sys/fs/cgroup/memory/a/b", 4 * GIB, 3 * GIB, cache=GIB)
    files |= group_1("sys/fs/cgroup/memory/a", 6 * GIB, 5 * GIB) | group_1("sys/fs/cgroup/memory", NO_LIMIT_1, 9 * GIB)
    for path, quota in (("", -1), ("/a", 100000), ("/a/b", 300000)):
        files[f"sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us"] = f"{quota}\n"
        files[f"sys/fs/cgroup/cpu{path}/cpu.cfs_period_us"] = "50000\n"
    root = plant(tmp_path, files)
    assert [(group.limit, group.used, group.cache) for group in memory_groups(root)] == [
        (4 * GIB, 3 * GIB, GIB),
        (6 * GIB, 5 * GIB, 0),
    ]
    assert host.available_memory(root) == (GIB, 4 * GIB)
    assert host.cpu_quota(root) == 2.0


def test_version_1_without_limits(tmp_path: Path) -> None:
    root = plant(tmp_path, version_1("/a") | group_1("sys/fs/cgroup/memory/a", NO_LIMIT_1, GIB))
    assert host.available_memory(root) == (48 * GIB, 64 * GIB)
    assert host.cpu_quota(root) is None


def test_version_1_knows_limits_of_groups_that_the_container_hides(tmp_path: Path) -> None:
    files = version_1("/docker/1a", "/docker/1a")
    files |= group_1("sys/fs/cgroup/memory", NO_LIMIT_1, GIB, above=3 * GIB)
    assert host.available_memory(plant(tmp_path, files)) == (2 * GIB, 3 * GIB)


def test_version_1_groups_without_hierarchy_do_not_bind_what_is_below(tmp_path: Path) -> None:
    files = version_1("/a/b") | group_1("sys/fs/cgroup/memory/a/b", 4 * GIB, GIB)
    files |= group_1("sys/fs/cgroup/memory/a", GIB, GIB) | {"sys/fs/cgroup/memory/a/memory.use_hierarchy": "0\n"}
    assert host.available_memory(plant(tmp_path, files)) == (3 * GIB, 4 * GIB)


def test_mount_points_with_spaces(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "41 31 0:29 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
        **group_2("my groups", str(GIB), 0),
    }
    assert host.available_memory(plant(tmp_path, files)) == (GIB, GIB)


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    free, total = host.machine_memory(tmp_path)
    assert free == total > 0


def test_this_system() -> None:
    free, total = host.available_memory()
    assert 0 <= free <= total <= host.machine_memory()[1]
    assert (host.cpu_quota() or 1) > 0
    assert host.title()
    assert host.machine_uuid() == host.machine_uuid()


def test_cores_as_ranges() -> None:
    assert host.parse_cores(host.format_cores((0, 1, 2, 5))) == (0, 1, 2, 5)
    assert set(host.usable_cores())


@pytest.mark.parametrize("text", ["", "a", "1,,2"])
def test_cores_that_are_none(text: str) -> None:
    with pytest.raises(ArgumentError, match="processors like"):
        host.parse_cores(text)


def test_a_name_for_the_processor_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ROOT", tmp_path)
    assert host.title() == (platform.processor() or platform.machine())


def test_every_core_where_the_system_has_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert host.usable_cores() == (0, 1, 2)
