"""Checks of threads, memory and limits: does what the libraries assume fit what this process may use?"""

from __future__ import annotations

from collections.abc import Iterator

from tazza.doctor.facts import Facts
from tazza.doctor.findings import Finding, found
from tazza.util.text import format_nbytes

__all__ = ["CHECKS", "THREAD_VARIABLES"]

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_MIB = 2**20
_SHORT = 0.1  # of the total
_SHM = 64 * _MIB  # what Docker gives
_MEMLOCK = 64 * _MIB
_FILES = 1024


def check_pools(facts: Facts) -> Iterator[Finding]:
    """No pool has more threads than can run, nor all of them together."""
    capacity = facts.processors.capacity
    fix = f"tz.limit_threads({capacity}), or OMP_NUM_THREADS={capacity} before the start"
    large = [pool for pool in facts.pools if pool.threads > capacity]
    total = sum(pool.threads for pool in facts.pools)
    for pool in large:
        seen = f"{pool.name} uses {pool.threads} threads where {capacity} can run ({pool.path})"
        yield found("threads-oversubscribed", seen, fix)
    if total > capacity and not large and len(facts.pools) > 1:
        seen = f"{len(facts.pools)} pools have {total} threads together where {capacity} can run"
        share = max(1, capacity // len(facts.pools))
        yield found("threads-sum", seen, f"tz.limit_threads({share}) where they work at the same time")


def check_settings(facts: Facts) -> Iterator[Finding]:
    """Variables for thread counts are numbers, fit the processors and agree."""
    capacity, counts = facts.processors.capacity, {}
    for name in THREAD_VARIABLES:
        value = facts.variable(name)
        first = value.split(",")[0].strip()  # OMP_NUM_THREADS may state one count for each level
        if not value:
            continue
        if not first.isdigit() or int(first) < 1:
            yield found("threads-setting", f"{name}={value}", f"{name}={capacity}, or unset it")
            continue
        counts[name] = int(first)
        if int(first) > capacity:
            seen = f"{name}={value} where {capacity} threads can run"
            yield found("threads-oversubscribed", seen, f"{name}={capacity}")
    if len(set(counts.values())) > 1:
        seen = ", ".join(f"{name}={count}" for name, count in counts.items())
        yield found("threads-disagree", seen, "set OMP_NUM_THREADS alone, which all of them respect")


def check_quota(facts: Facts) -> Iterator[Finding]:
    """The control groups let every processor be used."""
    processors = facts.processors
    if processors.quota is not None and processors.quota < processors.usable:
        seen = f"{processors.quota:g} processors' worth of time on {processors.usable} processors"
        yield found("cpu-quota", seen, f"OMP_NUM_THREADS={processors.capacity} before the start")


def check_memory(facts: Facts) -> Iterator[Finding]:
    """The control groups' memory is the machine's, and some is left."""
    memory = facts.memory
    if memory.total < memory.machine_total:
        group = min(memory.groups, key=lambda group: group.limit)
        seen = f"{format_nbytes(memory.total)} of the machine's {format_nbytes(memory.machine_total)} ({group.path})"
        fix = f"nothing for tazza, which goes by it; else memory_limit=, or raise {group.path}"
        yield found("memory-limit", seen, fix)
    if memory.free < _SHORT * memory.total:
        seen = f"{format_nbytes(memory.free)} of {format_nbytes(memory.total)} are left"
        yield found("memory-short", seen, "end other programs, or raise the limit of the control group")
    if memory.overcommit == 2:
        yield found("overcommit-strict", "vm.overcommit_memory is 2", "sysctl vm.overcommit_memory=0")


def check_shared(facts: Facts) -> Iterator[Finding]:
    """Shared memory is more than a container's default."""
    total = facts.memory.shared_total
    if total is not None and total <= _SHM:
        seen = f"/dev/shm has {format_nbytes(total)}, {format_nbytes(facts.memory.shared_free or 0)} free"
        yield found("shm-small", seen, "docker run --shm-size=1g, or an emptyDir of medium Memory at /dev/shm")


def check_limits(facts: Facts) -> Iterator[Finding]:
    """Limits of the process are no narrower than libraries expect."""
    limits = facts.limits
    if limits.address_space is not None:
        yield found("address-space", f"{format_nbytes(limits.address_space)} of addresses", "ulimit -v unlimited")
    if limits.locked is not None and limits.locked < _MEMLOCK:
        fix = "ulimit -l unlimited where you use RDMA or lock memory; else nothing"
        yield found("memlock", f"{format_nbytes(limits.locked)} of locked memory", fix)
    if limits.files is not None and limits.files < _FILES:
        yield found("few-files", f"{limits.files} open files", f"ulimit -n {4 * _FILES}")


CHECKS = (check_pools, check_settings, check_quota, check_memory, check_shared, check_limits)
