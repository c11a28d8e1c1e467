"""NVIDIA's libraries beside the driver: found by NVIDIA's own path finder, looked at before they are used, called.

Handles, streams and threads are other files' business: here a library is a file and its functions.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, final

from tazza.drivers.cuda.coherence import Part, incoherences, owner_of
from tazza.drivers.cuda.loading import LIBRARY, is_emulated
from tazza.errors import ArgumentError, BackendError, BackendUnavailableError, OutOfMemoryError
from tazza.util.log import info

__all__ = ["NativeLibrary", "check_compiler", "check_parts", "load_library", "load_runtime"]

_MAPS = Path("/proc/self/maps")
_FINDER = "pip install 'tazza[cuda13]' (or cuda12)"


@final
class NativeLibrary:
    """A library that was found, looked at and loaded; it stays loaded.

    Attributes:
        name: as the path finder names it, for example ``"cudnn"``.
        calls: its functions.
        path: its file.
        found_via: how the path finder found it.
        owner: the distribution that brought it, with its version, ``"system"``, or the folder.
        version: its own, as three numbers, zeros where it does not say.
        unsaid: why it does not; empty where it does.
        emulated: it is one of the CUDA emulator's.
    """

    def __init__(self, kind: _Kind, calls: Any, path: str, found_via: str) -> None:
        self.name, self.calls, self.path, self.found_via = kind.name, calls, path, found_via
        self.owner = owner_of(Path(path))
        self.emulated = hasattr(calls, "emulated_library")
        self.version, self.unsaid = _version(kind, calls)
        self._kind = kind

    def call(self, name: str, *args: Any) -> None:
        """Call a function that answers with a status; pointers and sizes are given as ctypes values.

        Raises:
            BackendError, OutOfMemoryError: as the status says.
        """
        status = getattr(self.calls, name)(*args)
        if status:
            raise self._failure(name, status)

    def _failure(self, call: str, status: int) -> BackendError:
        symbol, text = self._kind.describe(self.calls, status)
        if status in self._kind.out_of_memory:
            return OutOfMemoryError(text, requested=0, backend=self.name, call=call, code=status, symbol=symbol)
        return BackendError(text, backend=self.name, call=call, code=status, symbol=symbol)

    def __repr__(self) -> str:
        version = ".".join(map(str, self.version))
        return f"<{self.name} {version} of {self.path}{', emulated' if self.emulated else ''}>"


class _Kind(NamedTuple):
    """What differs between the libraries."""

    name: str
    install: str
    describe: Callable[[Any, int], tuple[str, str]]  # the symbol and the text of a status
    out_of_memory: tuple[int, ...]
    checks: tuple[str, ...] = ()  # functions in which a part says whether the others fit


def _text(calls: Any, function: str, status: int) -> str:
    ask = getattr(calls, function)
    ask.restype = ctypes.c_char_p
    return (ask(status) or b"").decode()


def _describe_cublas(calls: Any, status: int) -> tuple[str, str]:
    return _text(calls, "cublasGetStatusName", status), _text(calls, "cublasGetStatusString", status)


def _describe_cudnn(calls: Any, status: int) -> tuple[str, str]:
    room = ctypes.create_string_buffer(1024)
    calls.cudnnGetLastErrorString(room, ctypes.c_size_t(len(room)))
    return _text(calls, "cudnnGetErrorString", status), room.value.decode(errors="replace") or "no text"


_CURAND = {
    100: "CURAND_STATUS_VERSION_MISMATCH",
    101: "CURAND_STATUS_NOT_INITIALIZED",
    102: "CURAND_STATUS_ALLOCATION_FAILED",
    103: "CURAND_STATUS_TYPE_ERROR",
    104: "CURAND_STATUS_OUT_OF_RANGE",
    201: "CURAND_STATUS_LAUNCH_FAILURE",
    202: "CURAND_STATUS_PREEXISTING_FAILURE",
    203: "CURAND_STATUS_INITIALIZATION_FAILED",
    204: "CURAND_STATUS_ARCH_MISMATCH",
    999: "CURAND_STATUS_INTERNAL_ERROR",
}  # https://docs.nvidia.com/cuda/curand/group__HOST.html; the library itself has no texts


def _describe_curand(_: Any, status: int) -> tuple[str, str]:
    return _CURAND.get(status, f"status {status}"), "the call failed"


_KINDS = {
    kind.name: kind
    for kind in (
        _Kind("cublas", "pip install nvidia-cublas (CUDA 12: nvidia-cublas-cu12)", _describe_cublas, (3,)),
        _Kind(
            "cudnn",
            "pip install nvidia-cudnn-cu13 (CUDA 12: nvidia-cudnn-cu12)",
            _describe_cudnn,
            (4004,),
            tuple(f"cudnn{part}VersionCheck" for part in ("Graph", "Ops", "Cnn", "Adv")),
        ),
        _Kind("curand", "pip install nvidia-curand (CUDA 12: nvidia-curand-cu12)", _describe_curand, (102,)),
    )
}

_loaded: dict[str, NativeLibrary] = {}
_fitting: set[str] = set()  # what was looked at and is called by others
_lock = threading.Lock()  # held while a file is loaded, which calls nothing of ours


def load_library(name: str) -> NativeLibrary:
    """Return a library, found and looked at when it is first asked for.

    Args:
        name: ``"cublas"``, ``"cudnn"`` or ``"curand"``.

    Raises:
        BackendUnavailableError: the path finder, or the library, is not there, its parts do not fit together, or it
            cannot run on the emulated driver; says which file, and what to install.
    """
    if name not in _KINDS:
        raise ArgumentError.of("name", name, f"one of {', '.join(_KINDS)}")
    with _lock:
        found = _loaded.get(name)
        if found is None:
            found = _find(_KINDS[name])
            findings = _findings(_KINDS[name], found)
            if findings:
                raise BackendUnavailableError(name, "; ".join(findings), "look at `tazza doctor`")
            _loaded[name] = found
    return found


def _find(kind: _Kind) -> NativeLibrary:
    emulator = "; on the emulator: start(libraries=True)" if is_emulated() else ""
    told, calls = _load(kind.name, kind.install + emulator)
    return NativeLibrary(kind, calls, told.abs_path, told.found_via or "")


def _load(name: str, install: str) -> tuple[Any, Any]:
    """What the path finder tells of a library, and its functions."""
    try:
        finder: Any = importlib.import_module("cuda.pathfinder")
    except ImportError as error:
        raise BackendUnavailableError(name, f"no module 'cuda.pathfinder': {error}", _FINDER) from error
    try:
        told = finder.load_nvidia_dynamic_lib(name)
        return told, ctypes.CDLL(told.abs_path)
    except (RuntimeError, OSError) as error:  # not found, or the loader refuses it
        reason = str(error).strip().splitlines()
        raise BackendUnavailableError(name, reason[0] if reason else "not found", install) from error


def load_runtime() -> None:
    """Have the CUDA runtime library in the process, for modules that look for it by its bare name.

    Raises:
        BackendUnavailableError: it is not there; says what to install.
    """
    _load("cudart", "pip install nvidia-cuda-runtime (CUDA 12: nvidia-cuda-runtime-cu12)")


def _version(kind: _Kind, calls: Any) -> tuple[tuple[int, int, int], str]:
    """What the library says, part by part, and why it does not."""
    numbers, call, unsaid = [0, 0, 0], f"{kind.name}GetProperty", ""
    for number in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of libraryPropertyType
        value = ctypes.c_int()
        status = getattr(calls, call)(number, ctypes.byref(value))
        if status:
            unsaid = f"{call} says {': '.join(kind.describe(calls, status))}"
        else:
            numbers[number] = value.value
    return (numbers[0], numbers[1], numbers[2]), unsaid


def _findings(kind: _Kind, library: NativeLibrary) -> list[str]:
    """What does not fit; empty where all does."""
    findings = []
    if is_emulated() and not library.emulated:
        findings.append(
            f"{library.path} is NVIDIA's, which does not run on the emulated driver; have the emulator start with its "
            "own: cuda_emulator.start(libraries=True)"
        )
        return findings  # its parts need the driver to be looked at
    if library.unsaid:
        findings.append(f"{library.path} does not tell its version: {library.unsaid}")
    for check in kind.checks:
        ask = getattr(library.calls, check, None)  # the emulated library is in one piece
        status = ask() if ask is not None else 0
        if status:
            symbol, text = kind.describe(library.calls, status)
            findings.append(f"{check} says {symbol}: {text}")
    return findings + _apart(kind.name, library)


def _apart(name: str, library: NativeLibrary | None = None) -> list[str]:
    """What does not fit among the files of a library, those used so far, and the driver."""
    parts = {
        str(path): Part(one, str(path), _exact(path, one, library), owner_of(path))
        for one in (name, *(_loaded.keys() - {name}))
        for path in _mapped(one)
    }
    found = incoherences(list(parts.values()), "" if is_emulated() else _served())  # which claims any version
    for one in found:
        if one.key == "cuda-sources":  # works, until one of them is upgraded: the doctor warns of it
            info("tazza.cuda", "%s", one.seen)
    return [one.seen for one in found if one.key != "cuda-sources"]


def _exact(path: Path, name: str, library: NativeLibrary | None) -> str:
    """The version of a file: its library's own, its distribution's, or that of its name."""
    known = library if library is not None and library.name == name else _loaded.get(name)
    if known is not None and os.path.realpath(known.path) == os.path.realpath(path):
        return ".".join(map(str, known.version))
    owner = owner_of(path)
    return owner.rpartition(" ")[2] if owner.startswith("nvidia-") else path.resolve().name.partition(".so.")[2]


def check_compiler() -> None:
    """Look once whether NVRTC, which its bindings have loaded, fits with the libraries in use and the driver.

    Raises:
        BackendUnavailableError: it does not; says what.
    """
    with _lock:
        findings = [] if _fitting else _apart("nvrtc")
        _fitting.add("nvrtc")
    if findings:
        _fitting.clear()
        raise BackendUnavailableError("nvrtc", "; ".join(findings), "look at `tazza doctor`")


def check_parts(name: str) -> None:
    """Look again at the files of a library in use, after another module has loaded what it found of it.

    Raises:
        BackendUnavailableError: they do not fit together; says what.
    """
    with _lock:
        findings = _apart(name, _loaded.get(name))
    if findings:
        raise BackendUnavailableError(name, "; ".join(findings), "look at `tazza doctor`")


def _served() -> str:
    """The CUDA version that the driver serves; empty where there is none. Asking needs no initialised driver."""
    version = ctypes.c_int()
    try:
        status = ctypes.CDLL(LIBRARY).cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return ""
    return "" if status else f"{version.value // 1000}.{version.value % 1000 // 10}"


def _mapped(name: str) -> list[Path]:
    """The files of a library and its parts in this process."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # this system does not tell
        return []
    paths = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if path.name.startswith(f"lib{name}") and ".so" in path.name)
