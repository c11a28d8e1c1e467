"""Building libcuda.so.1: once for each combination of sources, header, compiler and flags, then found in the cache.

``library()`` is safe under processes that build at the same time: each builds in a folder of its own, and the whole
folder is renamed into place; who comes second throws its own away.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from cuda_emulator.compiler import content_key, find_c_compiler
from cuda_emulator.errors import BuildError
from cuda_emulator.generate import generate
from cuda_emulator.header import find_header, read_header

SOURCES = Path(__file__).parent / "c"
NAME = "libcuda.so.1"

_FLAGS = (
    *("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-D_GNU_SOURCE"),
    # glibc's checked longjmp refuses to leave the stack of a kernel's fiber, which is how a fault in a kernel ends.
    "-U_FORTIFY_SOURCE",
    f"-Wl,-soname,{NAME}",
    "-Wl,-z,defs",
)


def library() -> Path:
    """The path of the emulator's libcuda.so.1, built if need be (half a minute of one core, once).

    Raises:
        BuildError: no compiler, no header, or the compiler refuses; the message says which.
    """
    compiler, include = find_c_compiler(), find_header()
    flags = (*_FLAGS, *os.environ.get("CUDA_EMULATOR_CFLAGS", "").split())
    sources = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h", ".map"))
    key = content_key(
        compiler.version,
        *compiler.command,
        *flags,
        *((include / name).read_bytes() for name in ("cuda.h", "cudaTypedefs.h")),
        *(part for path in sources for part in (path.name, path.read_bytes())),
        *((Path(__file__).parent / name).read_bytes() for name in ("header.py", "generate.py")),
    )

    def build(folder: Path) -> None:
        for name, text in generate(read_header(include, compiler)).items():
            (folder / name).write_text(text)
        code = [str(path) for path in sources if path.suffix == ".c"]
        compiler.run(
            [
                *flags,
                f"-Wl,--version-script={SOURCES / 'exports.map'}",
                *("-I", str(folder), "-I", str(SOURCES), "-isystem", str(include)),
                *("-o", str(folder / NAME)),
                *(*code, str(folder / "calls.c")),
                *("-ldl", "-lm"),
            ]
        )

    return cached(f"driver-{key}", build) / NAME


def cache_folder() -> Path:
    """Where built things are kept: ``CUDA_EMULATOR_CACHE``, else ``cuda-emulator`` in the user's cache folder."""
    told = os.environ.get("CUDA_EMULATOR_CACHE")
    if told:
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cuda-emulator"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cache's folder ``name``; where it is not there yet, ``build`` fills it first.

    Raises:
        BuildError: the cache cannot be written.
    """
    target = cache_folder() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=target.parent))
    except OSError as error:
        raise BuildError(f"the cache cannot be written ({error}); CUDA_EMULATOR_CACHE names another folder") from error
    try:
        build(fresh)
        try:
            fresh.rename(target)
        except OSError:
            # A folder that is not empty is never replaced: another process was first, with the same content.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target
