"""Reading cuda.h: which functions the driver has, in which versions, and how its errors are called.

The header itself is never copied into this project: it is NVIDIA's, and every user has one that fits.
"""

import os
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cuda_emulator.compiler import Compiler
from cuda_emulator.errors import BuildError

OLDEST_VERSION = 13000

# With this name defined, cuda.h declares every symbol under its own name: old versions, new ones, and both forms
# of what has one for the per-thread default stream.
EVERY_SYMBOL = "#define __CUDA_API_VERSION_INTERNAL\n"

_VERSION = re.compile(r"^\s*#\s*define\s+CUDA_VERSION\s+(\d+)", re.MULTILINE)
_FUNCTION = re.compile(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(([^;{}]*)\)\s*;")
_TYPEDEF = re.compile(r"\btypedef\s+CUresult\s*\(\s*\*\s*(PFN_(cu[A-Z]\w*?)_v(\d+)(_ptds|_ptsz)?)\s*\)\s*\(")
_ERRORS = re.compile(r"\btypedef\s+enum\s+cudaError_enum\s*{([^}]*)}")
_SYMBOL = re.compile(r"(cu[A-Z]\w*?)(?:_v(\d+))?(_ptds|_ptsz)?")


@dataclass(frozen=True)
class Parameter:
    """A parameter as the header writes it; ``suffix`` is what stands behind the name, as in ``x[4]``."""

    type: str
    name: str
    suffix: str = ""


@dataclass(frozen=True)
class Function:
    """An exported function, under the name of its symbol (``cuMemAlloc_v2``)."""

    symbol: str
    parameters: tuple[Parameter, ...]

    @property
    def per_thread(self) -> bool:
        """Whether NULL as a stream means the thread's own default stream here."""
        return self.symbol.endswith(("_ptds", "_ptsz"))

    @property
    def implementation(self) -> str:
        """The symbol without the mark of the per-thread default stream: both forms have one implementation."""
        return re.sub(r"_pt[ds][sz]$", "", self.symbol)


@dataclass(frozen=True)
class Version:
    """What ``cuGetProcAddress(name, version)`` answers with. ``typedef`` is the type that the header gives it."""

    name: str
    version: int
    symbol: str
    typedef: str


@dataclass(frozen=True)
class Header:
    """All that the emulator takes from cuda.h and cudaTypedefs.h."""

    version: int
    functions: tuple[Function, ...]
    versions: tuple[Version, ...]
    errors: tuple[str, ...]


def find_header(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of the first cuda.h that is new enough.

    Looked at in this order: ``CUDA_HOME``, ``CUDA_PATH``, the wheel nvidia-cuda-runtime, the toolkit that nvcc on the
    path belongs to, /usr/local/cuda.

    Raises:
        BuildError: there is none; the message lists what was found instead.
    """
    seen = []
    for folder in _candidates(os.environ if environ is None else environ):
        version = _version_in(folder)
        if version >= OLDEST_VERSION and (folder / "cudaTypedefs.h").is_file():
            return folder
        seen.append(f"  {folder}: " + (f"CUDA {version // 1000}.{version % 1000 // 10}" if version else "no cuda.h"))
    raise BuildError(
        "the emulator is compiled against cuda.h of CUDA 13.0 or newer, which was not found; "
        "`pip install nvidia-cuda-runtime` brings it, or CUDA_HOME names a toolkit\n" + "\n".join(seen)
    )


def read_header(folder: Path, compiler: Compiler) -> Header:
    """Reads the cuda.h and the cudaTypedefs.h in ``folder``.

    The compiler's preprocessor comes first, and a few patterns read what it leaves. The preprocessor is needed to build
    anyway, and it alone is right about conditional branches, continued lines, comments and the macros that rename
    functions; what it leaves is plain declarations, for which a parser of C would be one more dependency.
    Which symbol a version means is said nowhere: the header's rule is that the n-th version of a name is its n-th
    symbol (``cuMemAlloc``, ``cuMemAlloc_v2``, ...), and the generated file has the compiler compare the types.

    Raises:
        BuildError: the text is not what a CUDA header looks like.
    """
    source = EVERY_SYMBOL + "#include <cuda.h>\n#include <cudaTypedefs.h>\n"
    text = compiler.run(["-E", "-P", "-x", "c", "-I", str(folder), "-"], source)
    functions = {name: Function(name, _parameters(name, inside)) for name, inside in _FUNCTION.findall(text)}
    errors = _ERRORS.search(text)
    if not functions or not errors:
        raise BuildError(f"{folder / 'cuda.h'} declares no driver functions: not a cuda.h that the emulator can read")
    return Header(
        version=_version_in(folder),
        functions=tuple(functions.values()),
        versions=tuple(_versions(text, functions)),
        errors=tuple(re.findall(r"\b(CUDA_\w+)\s*=", errors[1])),
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            yield Path(environ[variable], "include")
    for entry in sys.path:
        yield from sorted(header.parent for header in Path(entry).glob("nvidia/*/include/cuda.h"))
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc:
        yield Path(nvcc).resolve().parent.parent / "include"
    yield Path("/usr/local/cuda/include")


def _version_in(folder: Path) -> int:
    """CUDA_VERSION of the header in ``folder``; 0 where there is none."""
    try:
        found = _VERSION.search((folder / "cuda.h").read_text(errors="replace"))
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _parameters(function: str, text: str) -> tuple[Parameter, ...]:
    text = " ".join(text.split())
    return () if text in ("", "void") else tuple(_parameter(function, part) for part in text.split(","))


def _parameter(function: str, text: str) -> Parameter:
    found = re.fullmatch(r"\s*(.*\W)(\w+)\s*((?:\[\w*\])*)\s*", text)
    if not found:
        raise BuildError(f"cuda.h: cannot read the parameter `{text}` of {function}")
    return Parameter(found[1].strip(), found[2], found[3])


def _versions(text: str, functions: Mapping[str, Function]) -> Iterator[Version]:
    symbols: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for symbol in functions:
        name, number, mark = _split(symbol)
        symbols[name, mark].append((number, symbol))
    typedefs: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for typedef, name, version, mark in _TYPEDEF.findall(text):
        typedefs[name, mark].append((int(version), typedef))
    for (name, mark), known in typedefs.items():
        having = symbols[name, mark]
        if len(known) != len(having):
            raise BuildError(f"cuda.h: {name}{mark} has {len(having)} symbols and {len(known)} versions")
        for (version, typedef), (_, symbol) in zip(sorted(known), sorted(having), strict=True):
            yield Version(name, version, symbol, typedef)


def _split(symbol: str) -> tuple[str, int, str]:
    found = _SYMBOL.fullmatch(symbol)
    assert found, symbol
    return found[1], int(found[2] or 1), found[3] or ""
