"""Compile the hot path where a compiler is at hand; everything else is in pyproject.toml.

That is ``src/tazza/hot``, and what a backend has beside it for calling its library by addresses.

On Linux the door for PyTorch's CUDA memory (``src/tazza/adapters/torch_memory.cpp``) is compiled too, by itself: where
there is no C++ compiler only ``tazza.adapters.torch.own_process`` is missing, and says so.

The same ``.py`` files run with and without compilation (docs/design/0002-hot-path.md). The environment decides:

* ``TAZZA_COMPILE`` unset: compile; a missing or failing compiler leaves a working pure-Python install and says so.
* ``TAZZA_COMPILE=0``: do not compile.
* ``TAZZA_COMPILE=1``: compile all of it; a failure fails the installation.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

HOT = Path("src/tazza/hot")
BESIDE = (Path("src/tazza/drivers/cuda/calls.pyx"),)
CHOICE = os.environ.get("TAZZA_COMPILE", "")
REQUIRED = CHOICE == "1"


def main() -> None:
    """Run setuptools with the extensions that the environment asks for."""
    if CHOICE not in ("", "0", "1"):
        raise SystemExit(f"TAZZA_COMPILE: got {CHOICE!r}, expected 0 (never), 1 (must succeed) or nothing (try)")
    modules = [] if CHOICE == "0" else [*extensions(), *door()]
    setup(ext_modules=modules, cmdclass={"build_ext": AllOrNothing}, options={"build_ext": {"parallel": True}})


def extensions() -> list[Extension]:
    """Translate every public module of the hot package to C; an empty list where that is not possible."""
    try:
        import numpy
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError
    except ImportError as error:
        return give_up(error)
    hot = sorted(p for p in (*HOT.glob("*.py"), *HOT.glob("*.pyx")) if not p.name.startswith("_"))
    modules = [
        Extension(
            ".".join(p.with_suffix("").parts[1:]),
            [p.as_posix()],
            include_dirs=[numpy.get_include()],
            extra_compile_args=flags(),
        )
        for p in (*hot, *BESIDE)
    ]
    try:
        return (
            cythonize(modules, build_dir="build/cython", include_path=["src"], language_level="3", quiet=True)
            if modules
            else []
        )
    except CompileError as error:
        return give_up(error)


def door() -> list[Extension]:
    """No module of Python: a library that PyTorch loads, beside the module of its name."""
    if sys.platform != "linux":
        return []
    options = ["-std=c++14", "-pthread", "-fvisibility=hidden", "-O2", "-g0"]
    return [
        Extension(
            "tazza.adapters._torch_memory",
            ["src/tazza/adapters/torch_memory.cpp"],
            language="c++",
            extra_compile_args=options,
            extra_link_args=["-pthread"],
            optional=not REQUIRED,
        )
    ]


def flags() -> list[str]:
    """Optimise without changing arithmetic, and leave out what would make two builds differ."""
    return ["/O2"] if sys.platform == "win32" else ["-O3", "-g0", "-ffp-contract=off"]


def give_up(error: Exception) -> list[Extension]:
    """Fail if compilation was demanded, else say what the install lacks."""
    if REQUIRED:
        raise SystemExit(f"TAZZA_COMPILE=1, but not everything can be compiled: {error}") from error
    print(
        f"tazza: the hot path is NOT compiled ({type(error).__name__}: {error}).\n"
        "tazza: the install works and `tazza devices` says 'uncompiled'; allocations and `with ctx:` are slower.\n"
        "tazza: install a C compiler and Python's headers and install again to compile it.",
        file=sys.stderr,
    )
    return []


class AllOrNothing(build_ext):
    """Keep all extensions or none: compiled modules lay out objects that the others rely on."""

    def run(self) -> None:
        """Build; on failure remove what was built and go on without, unless compilation was demanded."""
        try:
            super().run()
        except (CCompilerError, BaseError, OSError) as error:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = give_up(error)


main()
