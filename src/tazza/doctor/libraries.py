"""Native libraries that matter: those loaded into a process, and those that would be found, each with its owner."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tazza.doctor.distributions import Installed
from tazza.doctor.facts import Library
from tazza.drivers.cpu.cgroups import read

__all__ = ["Owners", "find_libraries", "identify", "loader_folders", "parse_maps", "version_in_name"]

# Patterns for the name of the file up to ".so"; the families are in the order in which they are shown.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (r"lib(scipy_)?openblas\w*(-r[\d.]+)?(\.dev)?", "BLAS", "OpenBLAS"),
    (r"(lib)?mkl_(rt|core)(\.\d)?", "BLAS", "MKL"),
    (r"libblis(-mt|64)?", "BLAS", "BLIS"),
    (r"libflexiblas", "BLAS", "FlexiBLAS"),
    (r"lib[st]?atlas", "BLAS", "ATLAS"),
    (r"libblas(64)?", "BLAS", "reference BLAS"),
    (r"libgomp", "OpenMP", "libgomp"),
    (r"libomp(\d+\w*)?", "OpenMP", "libomp"),
    (r"libiomp5(md)?", "OpenMP", "libiomp5"),
    (r"vcomp\d+", "OpenMP", "vcomp"),
    (r"libdnnl", "oneDNN", "oneDNN"),
    (r"libcuda|nvcuda", "CUDA driver", "libcuda"),
    (r"libnvidia-ml", "CUDA driver", "NVML"),
    (r"libcudart|cudart64_\d+", "CUDA runtime", "cudart"),
    (r"libnvrtc", "CUDA runtime", "NVRTC"),
    (r"libcudnn", "cuDNN", "cuDNN"),
    (r"libcudnn_(?P<part>\w+)", "cuDNN", "cuDNN"),
    (r"libcublas", "cuBLAS", "cuBLAS"),
    (r"libcublaslt", "cuBLAS", "cuBLASLt"),
    (r"libcurand", "cuRAND", "cuRAND"),
    (r"libnccl", "NCCL", "NCCL"),
    (r"libsycl", "SYCL", "SYCL runtime"),
    (r"libur_loader", "SYCL", "unified runtime"),
    (r"libze_loader", "SYCL", "Level Zero"),
    (r"libopencl", "OpenCL", "OpenCL loader"),
    (r"libpocl", "OpenCL", "PoCL"),
    (r"libarrow", "Arrow", "Arrow"),
    (r"(lib)?onnxruntime(_pybind11_state)?", "ONNX Runtime", "ONNX Runtime"),
    (r"libtorch_(cpu|cuda)", "PyTorch", "PyTorch"),
    (r"libjax_common|xla_extension", "JAX", "XLA"),
)
_HASH = r"(?:-[0-9a-f]{8}){0,2}"  # what wheels put behind a name to make it their own
_FILE = re.compile(
    rf"(?P<stem>.+?){_HASH}(?:\.(?:cpython|abi3|cp\d)[\w-]*)?(?:\.so(?:\.[\d.]+)?|(?:\.\d+)*\.dylib|\.dll|\.pyd)"
)
_SUFFIXES = (".so", ".dylib", ".dll")
_DEFAULT_FOLDERS = (
    *("lib64", "usr/lib64", "lib", "usr/lib", "usr/local/lib", "usr/local/cuda/lib64", "usr/lib/wsl/lib"),
    *(f"{top}/{machine}-linux-gnu" for top in ("lib", "usr/lib") for machine in ("x86_64", "aarch64")),
)


def identify(file_name: str) -> tuple[str, str] | None:
    """The family and the name of a library by its file's name, or None for one that does not matter.

    >>> identify("libscipy_openblas64_-32a4b2a6.so"), identify("libgomp-e985bcbb.so.1.0.0"), identify("libz.so.1")
    (('BLAS', 'OpenBLAS'), ('OpenMP', 'libgomp'), None)
    """
    file = _FILE.fullmatch(file_name.lower())
    if file is None:
        return None
    for pattern, family, name in _KNOWN:
        match = re.fullmatch(pattern, file["stem"])
        if match:
            part = match.groupdict().get("part")
            return family, f"{name} {part}" if part else name
    return None


def version_in_name(path: str) -> str:
    """The version that the name of a file states after ``.so``, links followed, or an empty string."""
    match = re.search(r"\.so\.(\d+(?:\.\d+)*)$", os.path.realpath(path))
    return match[1] if match else ""


def parse_maps(text: str) -> dict[str, bool]:
    """The files in a process's memory map, each with whether it was deleted since."""
    found: dict[str, bool] = {}
    for line in text.splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith("/"):
            path = fields[5].removesuffix(" (deleted)")
            found[path] = path != fields[5]
    return found


def loader_folders(root: Path, environ: Mapping[str, str]) -> list[Path]:
    """The folders in which the system's loader looks, in its order, each once."""
    search = [Path(folder) for folder in environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    search += _configured(root, root / "etc/ld.so.conf", depth=0)
    search += [root / folder for folder in _DEFAULT_FOLDERS]
    unique = {os.path.realpath(folder): folder for folder in reversed(search)}
    return [folder for folder in reversed(unique.values()) if folder.is_dir()]


def _configured(root: Path, file: Path, *, depth: int) -> list[Path]:
    folders: list[Path] = []
    for raw in (read(file) or "").splitlines():
        line = raw.partition("#")[0].strip()
        if line.startswith("include ") and depth < 4:
            pattern = line.removeprefix("include ").strip().lstrip("/")
            for included in sorted((root if line[8:].strip().startswith("/") else file.parent).glob(pattern)):
                folders += _configured(root, included, depth=depth + 1)
        elif line.startswith("/"):
            folders.append(root / line.lstrip("/"))
    return folders


class Owners:
    """Which distribution installed a file, from the lists that the installer kept."""

    def __init__(self, distributions: Iterable[Installed], root: Path) -> None:
        self._root = root
        self._owner: dict[str, str] = {}
        self._folders: set[str] = set()
        for distribution in distributions:
            folder = os.path.realpath(distribution.folder)
            self._folders.add(folder)
            for line in distribution.read("RECORD").splitlines():
                if any(suffix in line for suffix in _SUFFIXES):
                    path = line.rsplit(",", 2)[0].strip('"')
                    self._owner[os.path.normpath(os.path.join(folder, path))] = str(distribution)

    def __iter__(self) -> Iterator[str]:
        """The native files of every distribution."""
        return iter(self._owner)

    def of(self, path: str) -> str:
        """The distribution with its version, ``"system"``, or the folder of another installation."""
        real = os.path.realpath(path)
        owner = self._owner.get(os.path.normpath(path)) or self._owner.get(real)
        if owner:
            return owner
        for folder in self._folders:
            if real.startswith(folder + os.sep):
                return f"{Path(real).relative_to(folder).parts[0]} (not listed by any distribution)"
        inside = real.removeprefix(os.path.realpath(self._root)).lstrip("/")
        return "system" if inside.startswith(("usr/", "lib", "opt/")) else str(Path(path).parent)


def find_libraries(
    loaded: Mapping[str, bool], versions: Mapping[str, str], folders: Iterable[Path], owners: Owners
) -> tuple[Library, ...]:
    """The libraries that matter, loaded ones first, each file once.

    Args:
        loaded: files in the process's memory, each with whether it was deleted since.
        versions: what the libraries themselves say, by path.
        folders: where the loader looks.
        owners: who installed what.
    """
    found: dict[str, Library] = {}
    for path in sorted(loaded):
        what = identify(os.path.basename(path))
        if what is not None:
            version = versions.get(os.path.realpath(path)) or version_in_name(path)
            found[os.path.realpath(path)] = Library(*what, path, version, owners.of(path), True, loaded[path])
    candidates = sorted(path for path in owners if identify(os.path.basename(path)))
    for folder in folders:
        candidates += sorted(_listed(folder))
    for path in candidates:
        real = os.path.realpath(path)
        what = identify(os.path.basename(real)) or identify(os.path.basename(path))
        if what is not None and real not in found and os.path.isfile(real):
            found[real] = Library(*what, path, version_in_name(path), owners.of(path), False)
    order = {family: place for place, (_, family, _) in enumerate(_KNOWN)}
    return tuple(sorted(found.values(), key=lambda one: (not one.loaded, order[one.family], one.name, one.path)))


def _listed(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:  # gone or not ours to read: the loader will not read it either
        return []
    return [str(folder / name) for name in names if identify(name)]
