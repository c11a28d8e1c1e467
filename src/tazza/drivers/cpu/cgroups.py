"""What the control groups of this process allow: memory and processor time, of version 1 and 2.

A group binds everything below it, so the limits that hold are those of the process's own group and of every group
above it that this container shows. A system may have both versions mounted; a controller belongs to one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["MemoryGroup", "cpu_quota", "memory_groups", "read"]

_UNLIMITED = 1 << 62  # version 1 writes "no limit" as the largest number of pages


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A control group that limits memory.

    Attributes:
        path: of its folder, as the system shows it.
        limit: bytes that it may use.
        used: bytes charged to it, file cache included.
        cache: bytes of that which the kernel takes back when memory is short: the file cache.
    """

    path: str
    limit: int
    used: int
    cache: int

    @property
    def free(self) -> int:
        """Bytes that can still be had in this group."""
        return max(0, self.limit - max(0, self.used - self.cache))


def memory_groups(root: Path = Path("/")) -> tuple[MemoryGroup, ...]:
    """The groups that limit this process's memory, its own first; none where nothing is limited.

    Args:
        root: where the file system begins; for tests.
    """
    version, folders = _groups("memory", root)
    found = _memory_2(folders) if version == 2 else _memory_1(folders)
    return tuple(found)


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the tightest group allows, or None without a limit."""
    version, folders = _groups("cpu", root)
    quotas: list[float] = []
    for folder in folders:
        if version == 2:
            words = (read(folder / "cpu.max") or "").split()
        else:
            words = [read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        quota, period = (_number(word) for word in words) if len(words) == 2 else (None, None)
        if quota and period and quota > 0:
            quotas.append(quota / period)
    return min(quotas, default=None)


def read(path: Path) -> str | None:
    """The text of a file of the system, or None where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace")
    except OSError:  # not this system, or hidden in this container: the caller has another source
        return None


def _memory_2(folders: list[Path]) -> Iterator[MemoryGroup]:
    for folder in folders:
        limit, used = _number(read(folder / "memory.max")), _number(read(folder / "memory.current"))
        if limit is not None and used is not None:
            yield MemoryGroup(str(folder), limit, used, _cache(folder, ""))


def _memory_1(folders: list[Path]) -> Iterator[MemoryGroup]:
    for position, folder in enumerate(folders):
        limit = _number(read(folder / "memory.limit_in_bytes"))
        used = _number(read(folder / "memory.usage_in_bytes"))
        if position and read(folder / "memory.use_hierarchy") == "0\n":
            return  # it neither counts nor limits the groups below it
        if not position and limit is not None:
            # The kernel's own minimum also knows the groups above that a container does not show.
            limit = min(limit, _statistic(folder, "hierarchical_memory_limit") or limit)
        if limit is not None and used is not None and limit < _UNLIMITED:
            yield MemoryGroup(str(folder), limit, used, _cache(folder, "total_"))


def _cache(folder: Path, prefix: str) -> int:
    return sum(_statistic(folder, f"{prefix}{state}_file") or 0 for state in ("active", "inactive"))


def _statistic(folder: Path, name: str) -> int | None:
    match = re.search(rf"^{name} (\d+)$", read(folder / "memory.stat") or "", re.MULTILINE)
    return int(match[1]) if match else None


def _number(text: str | None) -> int | None:
    try:
        return int(text or "")
    except ValueError:  # "max", or a file that is not there: no limit
        return None


def _groups(controller: str, root: Path) -> tuple[int, list[Path]]:
    """The version of a controller's hierarchy, and the folders of this process's group and of those above it."""
    version, path = 2, "/"
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, shown = line.partition(":")[2].partition(":")
        if controller in controllers.split(","):
            version, path = 1, shown
            break
        if not controllers and shown:
            path = shown
    top, mounted = _mount(controller if version == 1 else None, root)
    # In a container the mount may begin at the process's own group, or the path may lead out of what is mounted.
    group = PurePosixPath(path)
    own = top / group.relative_to(mounted) if group.is_relative_to(mounted) and ".." not in group.parts else top
    own = own if own.is_dir() else top
    return version, [own, *(parent for parent in own.parents if parent.is_relative_to(top))]


def _mount(controller: str | None, root: Path) -> tuple[Path, str]:
    """Where a hierarchy is mounted (version 2 for None), and which of its groups stands there."""
    for line in (read(root / "proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if len(fields) < 5 or len(source) < 3:
            continue
        if source[0] == ("cgroup2" if controller is None else "cgroup") and (
            controller is None or controller in source[2].split(",")
        ):
            return root / _unescape(fields[4]).lstrip("/"), _unescape(fields[3])
    return root / "sys/fs/cgroup" / (controller or ""), "/"


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
