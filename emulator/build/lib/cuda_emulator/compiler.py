"""The system's compilers: where they are, which they are, and how they are run."""

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from cuda_emulator.errors import BuildError

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Compiler:
    """A compiler and what its ``--version`` prints, which is part of the key of everything that it built."""

    command: tuple[str, ...]
    version: str

    def run(self, arguments: Sequence[str], text: str | None = None) -> str:
        """Runs the compiler with ``text`` as its standard input and returns its standard output.

        Raises:
            BuildError: it failed or took more than ``TIMEOUT_S``; the message has its own.
        """
        command = [*self.command, *arguments]
        try:
            done = subprocess.run(command, input=text or "", capture_output=True, text=True, timeout=TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{shlex.join(self.command)} cannot be run: {error}") from error
        if done.returncode:
            raise BuildError(f"{shlex.join(command)} failed with exit code {done.returncode}:\n{done.stderr.strip()}")
        return done.stdout


def find_c_compiler(environ: Mapping[str, str] | None = None) -> Compiler:
    """The C compiler that ``CC`` names, else cc, gcc or clang on the path.

    Raises:
        BuildError: there is none.
    """
    return _find("CC", ("cc", "gcc", "clang"), "C", os.environ if environ is None else environ)


def find_cxx_compiler(environ: Mapping[str, str] | None = None) -> Compiler:
    """The C++ compiler that ``CXX`` names, else c++, g++ or clang++ on the path.

    Raises:
        BuildError: there is none.
    """
    return _find("CXX", ("c++", "g++", "clang++"), "C++", os.environ if environ is None else environ)


def content_key(*parts: str | bytes) -> str:
    """A name for what was made from ``parts``: equal parts, equal name."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:24]


def _find(variable: str, names: tuple[str, ...], language: str, environ: Mapping[str, str]) -> Compiler:
    told = shlex.split(environ.get(variable, ""))
    for command in [told] if told else [[name] for name in names]:
        program = shutil.which(command[0], path=environ.get("PATH"))
        if program:
            return _described((program, *command[1:]))
    looked_for = f"{variable}={shlex.join(told)}" if told else ", ".join(names)
    raise BuildError(
        f"the emulator is compiled on this machine and there is no {language} compiler (looked for {looked_for}); "
        f"install one (Debian: apt-get install g++) or name one in {variable}"
    )


@cache
def _described(command: tuple[str, ...]) -> Compiler:
    return Compiler(command, Compiler(command, "").run(["--version"]).strip())
