"""Build the stand-in for ``libcuda.so.1`` (`stub.c`) with the system's compiler; kept by its content.

It is loaded in the planner's process only, and only after the real library failed to load there.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from tazza.errors import BackendUnavailableError
from tazza.util.files import replace_file

__all__ = ["build_stub", "default_cache"]

SOURCE = Path(__file__).with_name("stub.c")
NAME = "libcuda.so.1"
_FLAGS = ("-shared", "-fPIC", "-O2", f"-Wl,-soname,{NAME}")
_HINT = "install a C compiler (CC names it), or NVIDIA's driver library libcuda.so.1, which needs no GPU"


def default_cache() -> Path:
    """The folder of this user's caches for tazza."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tazza"


def build_stub(cache: Path, *, timeout: float) -> Path:
    """Return the path of the stand-in, built where the cache has none of this source, compiler and flags.

    Args:
        cache: folder that is made where it is missing; two processes may build at once, and one file is kept.
        timeout: seconds that the compiler may take.

    Raises:
        BackendUnavailableError: there is no compiler, it fails, or the folder cannot be written to.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    key = hashlib.sha256(SOURCE.read_bytes() + repr((compiler, _FLAGS)).encode()).hexdigest()[:16]
    folder = cache / f"no-cuda-driver-{key}"
    library = folder / NAME
    if library.is_file():
        return library
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / NAME
            _compile([*compiler, *_FLAGS, "-o", str(built), str(SOURCE)], timeout)
            replace_file(library, [built.read_bytes()])
    except OSError as error:
        raise BackendUnavailableError(
            "cudnn", f"the stand-in for {NAME} cannot be kept in {cache}: {error}", "name another folder with cache="
        ) from error
    return library


def _compile(command: list[str], timeout: float) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise BackendUnavailableError("cudnn", f"{command[0]} took more than {timeout:g} s", _HINT) from None
    except OSError as error:
        raise BackendUnavailableError("cudnn", f"no {NAME} and no compiler for a stand-in: {error}", _HINT) from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        reason = f"{command[0]} cannot build the stand-in for {NAME}: {said[-1] if said else 'no reason given'}"
        raise BackendUnavailableError("cudnn", reason, _HINT)
