"""What was found out about this process, its libraries and its machine: plain values that the checks judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from tazza.drivers.cpu.cgroups import MemoryGroup

__all__ = [
    "Backend",
    "Driver",
    "Facts",
    "Imported",
    "Library",
    "Limits",
    "Memory",
    "Package",
    "Processors",
    "Python",
    "Tazza",
    "ThreadPool",
    "Variable",
]


@final
@dataclass(frozen=True, slots=True)
class Library:
    """A native library.

    Attributes:
        family: what it is for: ``"BLAS"``, ``"OpenMP"``, ``"cuDNN"``, ...
        name: which one, for example ``"OpenBLAS"``.
        path: of its file.
        version: as the library or its file name says, or an empty string.
        owner: the Python distribution that brought it, ``"system"``, or the folder of another installation.
        loaded: in the examined process; else only found where the loader or a package would find it.
        deleted: its file was removed or replaced after it had been loaded.

    Example:
        >>> Library("BLAS", "OpenBLAS", "/usr/lib/libopenblas.so.0", "0.3.30", "system", loaded=True).deleted
        False
    """

    family: str
    name: str
    path: str
    version: str
    owner: str
    loaded: bool
    deleted: bool = False


@final
@dataclass(frozen=True, slots=True)
class ThreadPool:
    """The threads of a native library: its name, its file, and how many threads it uses."""

    name: str
    path: str
    threads: int


@final
@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that matters for devices and arrays.

    Attributes:
        module: the name that programs import.
        distributions: what the metadata list for it, as ``"name version"``, the first on the path first.
        folders: where each of these is installed.
        version: the first one's version, or an empty string.
        path: the file that an import would take, or an empty string.
        file_version: the version written in that file's package, or an empty string.
        shadowed: the import would take something that no distribution installed.
        missing: the metadata are there, the module is not.
        cuda: the CUDA version it was built for, or an empty string.
        unmet: requirements on other packages of this list that the installed ones do not meet.
    """

    module: str
    distributions: tuple[str, ...]
    folders: tuple[str, ...]
    version: str
    path: str
    file_version: str = ""
    shadowed: bool = False
    missing: bool = False
    cuda: str = ""
    unmet: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Imported:
    """A module that was imported in a child process.

    Attributes:
        module: its name.
        state: ``"fine"``, ``"failed"``, ``"crashed"``, ``"hung"`` or ``"not reached"``.
        detail: the error, or what the child wrote last.
        version, path: as the module says.
    """

    module: str
    state: str
    detail: str = ""
    version: str = ""
    path: str = ""


@final
@dataclass(frozen=True, slots=True)
class Processors:
    """Processors of the machine, those this process may use, and the time that its control groups allow."""

    machine: int
    usable: int
    quota: float | None

    @property
    def capacity(self) -> int:
        """How many threads can run at once for long."""
        return self.usable if self.quota is None else max(1, min(self.usable, round(self.quota)))


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory; None for what this system does not say.

    Attributes:
        machine_free, machine_total: of the machine.
        free, total: what tazza goes by: those of the control group that leaves the least.
        groups: control groups that limit this process, its own first.
        shared_free, shared_total: of ``/dev/shm``, where named shared memory lives.
        overcommit: ``vm.overcommit_memory``.
    """

    machine_free: int
    machine_total: int
    free: int
    total: int
    groups: tuple[MemoryGroup, ...] = ()
    shared_free: int | None = None
    shared_total: int | None = None
    overcommit: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """Soft limits of the process; None where there is none or the system does not say.

    Attributes:
        address_space: bytes of address space (``ulimit -v``).
        locked: bytes of locked memory (``ulimit -l``).
        files: open files (``ulimit -n``).
    """

    address_space: int | None = None
    locked: int | None = None
    files: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver and cuDNN, tried in child processes that make no CUDA context.

    Attributes:
        library: the driver library that the loader would take, or an empty string.
        library_version: from its file name.
        module_version: of the kernel module, or an empty string where it is not loaded.
        nodes: device files are there.
        state: ``"absent"``, ``"fine"``, ``"failed"``, ``"crashed"`` or ``"hung"``.
        call: the call that did not go well.
        detail: what it returned or wrote.
        code: the number that it returned, 0 where none did.
        cuda: the newest CUDA version that the driver serves, as ``"12.4"``.
        devices: how many it found.
        emulated: it is an emulator's, which stands in for NVIDIA's.
        cudnn: the cuDNN library that was tried, or an empty string.
        cudnn_version: what it said.
        cudnn_state: as `state`.
        cudnn_detail: its own checks of its parts that did not succeed, or what it wrote.
    """

    library: str = ""
    library_version: str = ""
    module_version: str = ""
    nodes: bool = False
    state: str = "absent"
    call: str = ""
    detail: str = ""
    code: int = 0
    cuda: str = ""
    devices: int = 0
    emulated: bool = False
    cudnn: str = ""
    cudnn_version: str = ""
    cudnn_state: str = "absent"
    cudnn_detail: str = ""


@final
@dataclass(frozen=True, slots=True)
class Python:
    """The interpreter.

    Attributes:
        version, platform, libc: as texts; `libc` like ``"glibc 2.36"`` or an empty string.
        debug: a debug build.
        free_threaded: a build without the global lock; `gil` says whether the lock is on all the same.
        gil: the global lock is on.
        start_method: how ``multiprocessing`` starts processes.
        threads: of the examined process, or None where the system does not say.
    """

    version: str
    platform: str
    libc: str
    debug: bool = False
    free_threaded: bool = False
    gil: bool = True
    start_method: str = "spawn"
    threads: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable of tazza that is set; `problem` says why its value is refused."""

    name: str
    value: str
    known: bool
    problem: str = ""


@final
@dataclass(frozen=True, slots=True)
class Backend:
    """A backend of tazza and, where it cannot be used, why and what to do."""

    name: str
    usable: bool
    reason: str = ""
    hint: str = ""


@final
@dataclass(frozen=True, slots=True)
class Tazza:
    """This installation.

    Attributes:
        version: of the package.
        compiled: its hot path is.
        stale: compiled files that are older than their source.
        backends: all that are known.
        variables: its environment variables that are set.
        known_variables: the names of all that it knows.
    """

    version: str
    compiled: bool
    stale: tuple[str, ...] = ()
    backends: tuple[Backend, ...] = ()
    variables: tuple[Variable, ...] = ()
    known_variables: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was found out; the checks know nothing else.

    Attributes:
        subject: the process that was looked at, in words.
        environment: variables that steer native libraries, those that are set.
        preloaded: the files that ``LD_PRELOAD`` names, each with whether it exists.
        unknown: what this system does not let a process find out, each with the reason.

    Example:
        >>> import tazza.doctor
        >>> facts = tazza.doctor.examine().facts
        >>> facts.subject, facts.processors.capacity > 0
        ('this process', True)
    """

    subject: str
    python: Python
    tazza: Tazza
    processors: Processors
    memory: Memory
    limits: Limits = Limits()
    driver: Driver = Driver()
    libraries: tuple[Library, ...] = ()
    pools: tuple[ThreadPool, ...] = ()
    packages: tuple[Package, ...] = ()
    imports: tuple[Imported, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    preloaded: tuple[tuple[str, bool], ...] = ()
    unknown: tuple[str, ...] = ()

    def variable(self, name: str) -> str:
        """The value of a variable in `environment`, or an empty string."""
        return dict(self.environment).get(name, "")

    def loaded(self, family: str) -> tuple[Library, ...]:
        """The libraries of one family that are loaded, by path."""
        return tuple(library for library in self.libraries if library.family == family and library.loaded)
