"""The findings that the doctor knows: their keys, how bad each is, and why it matters."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import final

__all__ = ["KINDS", "Finding", "Kind", "Severity", "found"]


class Severity(enum.StrEnum):
    """How bad a finding is; the worst first.

    An error breaks programs or makes them wrong, a warning costs speed or memory or breaks some programs, a note is
    good to know.

    Example:
        >>> [severity.value for severity in Severity]
        ['error', 'warning', 'note']
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@final
@dataclass(frozen=True, slots=True)
class Kind:
    """What all findings of one key have in common: how bad they are, and why they matter."""

    severity: Severity
    why: str


@final
@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or good to know.

    Attributes:
        key: its kind, the same in every version, for example ``"openmp-mixed"``.
        severity: how bad it is.
        seen: what was found here.
        why: why it matters.
        fix: a command or a setting, or an empty string where nothing needs to be done.
        family: the family of libraries that it is about, or an empty string.

    Example:
        >>> found("uncompiled", "no compiled files", "pip install --force-reinstall tazza").severity.value
        'warning'
    """

    key: str
    severity: Severity
    seen: str
    why: str
    fix: str
    family: str = ""


def found(key: str, seen: str, fix: str, *, family: str = "") -> Finding:
    """Make a finding of a known kind."""
    kind = KINDS[key]
    return Finding(key, kind.severity, seen, kind.why, fix, family)


def _error(why: str) -> Kind:
    return Kind(Severity.ERROR, why)


def _warning(why: str) -> Kind:
    return Kind(Severity.WARNING, why)


def _note(why: str) -> Kind:
    return Kind(Severity.NOTE, why)


KINDS: dict[str, Kind] = {
    # Libraries
    "openmp-clash": _error("Two runtimes of the LLVM kind abort with `OMP: Error #15`, or deadlock."),
    "openmp-mixed": _warning(
        "Each OpenMP runtime has its own threads: they compete, and some pairs hang after a fork."
    ),
    "openmp-copies": _warning("Each copy has its own threads: together they oversubscribe the processors."),
    "blas-mixed": _warning(
        "Different BLAS libraries give different bits for one product, and each has its own threads."
    ),
    "blas-copies": _note("Each copy has its own threads and workspace; a limit must be set on all of them."),
    "library-copies": _warning(
        "Two versions in one process: which one a symbol is taken from depends on import order."
    ),
    "cudnn-mixed": _error(
        "Parts of cuDNN of different versions crash, or fail with a mismatch at the first convolution."
    ),
    "cudnn-several": _warning("The loader may mix their parts, depending on the folder that comes first."),
    "cudnn-broken": _error("cuDNN itself says that its parts do not fit, so convolutions fail or crash."),
    "cuda-majors": _error(
        "Libraries for different CUDA versions share no handle, stream or kernel, and the driver may serve only one."
    ),
    "cuda-split": _error("Parts of two installations of one library are loaded: which is called is chance."),
    "cuda-sources": _warning(
        "Libraries from wheels and from the system are upgraded apart, and then no longer fit together."
    ),
    "library-deleted": _warning("The package was replaced under the running process: what it loads next does not fit."),
    "library-path": _warning(
        "LD_LIBRARY_PATH comes before what packages bring: they run with a library not built for them."
    ),
    "preload": _note("LD_PRELOAD puts a library in front of all others, in every program."),
    "preload-missing": _warning("The loader skips a preloaded file that is not there, with one line at each start."),
    # Packages
    "package-shadowed": _error(
        "The import takes something else than what is installed, often a local file of that name."
    ),
    "package-missing": _error("The installation is broken: metadata without a module."),
    "package-twice": _warning("Several installations of one module overwrite or hide each other."),
    "package-version": _error("Files of two versions are mixed, as after an interrupted upgrade."),
    "requirement-unmet": _warning("The package runs with a version that it was not made for."),
    "import-failed": _error("Programs that use the module do not start."),
    "import-crashed": _error("The import ends the process: a native library is broken or does not fit another one."),
    "import-hung": _error("The import does not come back: often a driver or a file system that does not answer."),
    # Threads
    "threads-oversubscribed": _warning(
        "More threads than processors: they take turns, and spinning ones waste the turns."
    ),
    "threads-sum": _note("Pools that work at the same time oversubscribe the processors."),
    "threads-setting": _warning("A count that is no positive number is ignored or refused, depending on the library."),
    "threads-disagree": _note("Libraries use different numbers of threads, and results change bits with the number."),
    "cpu-quota": _note(
        "Libraries count processors, not the quota: too many threads are stopped for part of each period."
    ),
    # Memory and limits
    "memory-limit": _note("Libraries that go by the machine's memory take too much and the process is killed."),
    "memory-short": _warning("The next large allocation fails, or the process is killed."),
    "overcommit-strict": _warning(
        "Reserved memory counts as used: large arenas and forks of large processes fail early."
    ),
    "address-space": _warning(
        "CUDA and memory maps reserve far more addresses than they use, and fail under this limit."
    ),
    "memlock": _note("Pinned memory and RDMA need locked pages; CUDA's own pinned memory is not bound by this limit."),
    "few-files": _warning("Data loaders and shared memory need a descriptor for each file and block."),
    "shm-small": _warning(
        "Shared memory of this size is full after few batches; the process then dies with a bus error."
    ),
    # NVIDIA driver
    "driver-absent": _note("CUDA devices cannot be used here; the CPU and simulated devices can."),
    "driver-unused": _note("The driver's library is installed where there is no device, as in images made for GPUs."),
    "driver-no-library": _error("There is a device that no program can reach."),
    "driver-mismatch": _error("The kernel module and the library must be of one version, else every call fails."),
    "driver-failed": _error("No CUDA program can start."),
    "driver-crashed": _error("Every CUDA program ends when it initialises the driver."),
    "driver-hung": _error("Every CUDA program hangs when it initialises the driver."),
    "driver-old": _error("The driver does not serve the CUDA version that the package was built for."),
    # Python and tazza
    "uncompiled": _warning("Frames and pools run as plain Python, several times slower."),
    "stale-build": _warning("The compiled files are run, not the newer source beside them."),
    "backend-unusable": _note("Its devices are missing from `tazza devices`."),
    "python-debug": _warning("A debug build is several times slower and needs packages built for it."),
    "free-threaded": _note("Without the global lock, each package must be safe for threads by itself."),
    "fork-threads": _note(
        "A forked child has one thread: locks that others held stay held, OpenMP and CUDA do not work."
    ),
    "environment-invalid": _error("tazza refuses the value when it first needs it."),
    "environment-unknown": _warning("A misspelt variable has no effect."),
    "environment-set": _note("It changes what tazza does in this process."),
    "old-libc": _warning("Current wheels need glibc 2.28 or newer; pip then takes old versions or compiles."),
}
