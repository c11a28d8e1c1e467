"""Checks of the native libraries: does what is loaded into one process fit together?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from tazza.doctor.facts import Facts, Library
from tazza.doctor.findings import Finding, found
from tazza.doctor.versions import numbers, same_release
from tazza.drivers.cuda.coherence import Part, incoherences

__all__ = ["CHECKS"]

_LLVM = frozenset({"libomp", "libiomp5"})


def check_openmp(facts: Facts) -> Iterator[Finding]:
    """One OpenMP runtime, once."""
    loaded = facts.loaded("OpenMP")
    names = sorted({library.name for library in loaded})
    if len(names) > 1:
        key = "openmp-clash" if set(names) >= _LLVM else "openmp-mixed"
        fix = (
            "install the packages from one source, all wheels or all conda; with MKL set MKL_THREADING_LAYER=GNU; "
            "limit each with tz.limit_threads(n)"
        )
        yield found(key, _owned(loaded), fix, family="OpenMP")
    for name in names:
        copies = [library for library in loaded if library.name == name]
        if len(copies) > 1:
            fix = "call tz.limit_threads(n), which sets every copy, or set OMP_NUM_THREADS before the start"
            yield found("openmp-copies", _owned(copies), fix, family="OpenMP")


def check_blas(facts: Facts) -> Iterator[Finding]:
    """One BLAS, once; wheels of NumPy and SciPy bring a copy each, which is no more than a note."""
    loaded = facts.loaded("BLAS")
    names = sorted({library.name for library in loaded})
    if len(names) > 1:
        fix = 'install NumPy and SciPy from one source (conda: `conda install "libblas=*=*mkl"` or `*openblas`)'
        yield found("blas-mixed", _owned(loaded), fix, family="BLAS")
    elif len({library.owner for library in loaded}) > 1:
        yield found("blas-copies", _owned(loaded), "tz.limit_threads(n) sets every copy", family="BLAS")


def check_copies(facts: Facts) -> Iterator[Finding]:
    """No library of a device or an array format in two versions."""
    for name in sorted({library.name for library in facts.libraries if library.family not in {"OpenMP", "BLAS"}}):
        loaded = [library for library in facts.libraries if library.name == name and library.loaded]
        if len(loaded) > 1 and not _agree(loaded) and loaded[0].family != "cuDNN":
            fix = f"keep one: pip list shows the packages that bring it ({', '.join(_owners(loaded))})"
            yield found("library-copies", _owned(loaded), fix, family=loaded[0].family)


def check_cudnn(facts: Facts) -> Iterator[Finding]:
    """All parts of cuDNN of one version: those loaded, and those that lie in one folder."""
    parts = [library for library in facts.libraries if library.family == "cuDNN"]
    fix = "pip install --force-reinstall the one nvidia-cudnn package that your framework requires; remove the other"
    loaded = [library for library in parts if library.loaded]
    folders = {os.path.dirname(library.path) for library in parts}
    sets = [[library for library in parts if os.path.dirname(library.path) == folder] for folder in sorted(folders)]
    for group in (loaded, *([] if loaded else sets)):
        for one in incoherences(_parts(group)):
            if one.key == "cudnn-mixed":
                yield found(one.key, one.seen, fix, family="cuDNN")
                return
    if not _agree(parts):
        yield found("cudnn-several", _owned(parts), "unset LD_LIBRARY_PATH, or remove one of them", family="cuDNN")
    driver = facts.driver
    if driver.cudnn_state in {"crashed", "hung", "failed"} and driver.cudnn_version:
        seen = f"{driver.cudnn}, version {driver.cudnn_version}: {driver.cudnn_detail}"
        yield found("cudnn-broken", seen, fix, family="cuDNN")


def check_cuda(facts: Facts) -> Iterator[Finding]:
    """cuBLAS, cuDNN, cuRAND and NVRTC of one CUDA and one kind of installation, which the driver serves.

    Those that are loaded; where none is, those that there are.
    """
    parts = [library for library in facts.libraries if _nvidias(library)]
    loaded = [library for library in parts if library.loaded]
    for one in incoherences(_parts(loaded or parts), facts.driver.cuda, loaded=bool(loaded)):
        if one.key in _FIXES:
            yield found(one.key, one.seen, _FIXES[one.key], family="CUDA libraries")


_FIXES = {
    "cuda-majors": "install all for one CUDA: pip install 'tazza[cuda13]' or 'tazza[cuda12]' in a fresh environment",
    "cuda-sources": "take all from wheels, or all from the system; unset LD_LIBRARY_PATH",
    "cuda-split": "keep one installation: unset LD_LIBRARY_PATH, or pip uninstall the other",
    "driver-old": "update the driver, or install the libraries for the CUDA version that it serves",
}


def _nvidias(library: Library) -> str:
    """The name of one of NVIDIA's libraries that programs call beside the driver, or an empty string."""
    families = {"cuBLAS": "cublas", "cuDNN": "cudnn", "cuRAND": "curand"}
    return "nvrtc" if library.name == "NVRTC" else families.get(library.family, "")


def _parts(libraries: Iterable[Library]) -> list[Part]:
    return [Part(_nvidias(one), one.path, _version(one), one.owner) for one in libraries]


def check_deleted(facts: Facts) -> Iterator[Finding]:
    """No loaded library whose file is gone."""
    for library in facts.libraries:
        if library.deleted:
            yield found("library-deleted", library.path, "restart the process", family=library.family)


def check_library_path(facts: Facts) -> Iterator[Finding]:
    """LD_LIBRARY_PATH does not put a library in front of one that a package brought."""
    folders = [os.path.realpath(folder) for folder in facts.variable("LD_LIBRARY_PATH").split(":") if folder]
    for library in facts.libraries:
        inside = any(os.path.realpath(library.path).startswith(folder + os.sep) for folder in folders)
        rivals = [
            other
            for other in facts.libraries
            if other.name == library.name and other.owner != library.owner and _brought(other)
        ]
        if inside and rivals and library.family != "CUDA driver":
            seen = f"{library.path} before {rivals[0].path} ({rivals[0].owner})"
            yield found("library-path", seen, "unset LD_LIBRARY_PATH", family=library.family)


def check_preload(facts: Facts) -> Iterator[Finding]:
    """What LD_PRELOAD names, and that it is there."""
    for path, exists in facts.preloaded:
        if exists:
            yield found("preload", path, "unset LD_PRELOAD unless you need it")
        else:
            yield found("preload-missing", path, "unset LD_PRELOAD, or correct its path")


def _brought(library: Library) -> bool:
    return library.owner != "system" and not library.owner.startswith("/")


def _agree(libraries: Iterable[Library]) -> bool:
    versions = [version for version in map(_version, libraries) if version]
    return all(same_release(one, other) for one in versions for other in versions)


def _version(library: Library) -> str:
    """The most exact version: the file's, or that of an NVIDIA package whose file names state one number only."""
    if len(numbers(library.version)) < 2 and library.owner.startswith("nvidia-"):
        return library.owner.rpartition(" ")[2]
    return library.version


def _owners(libraries: Iterable[Library]) -> list[str]:
    return sorted({library.owner for library in libraries})


def _owned(libraries: Iterable[Library]) -> str:
    return ", ".join(f"{library.name} of {library.owner}" for library in libraries)


CHECKS = (
    *(check_openmp, check_blas, check_copies, check_cudnn, check_cuda, check_deleted),
    *(check_library_path, check_preload),
)
