"""Whether cuBLAS, cuDNN, cuRAND, NVRTC and the driver fit together: the one check of the doctor and of a first use.

It judges plain values, and loads nothing. Several installations beside each other are fine as long as there is one that
fits: what counts is that no library is left with parts, a CUDA version or a driver that none of the others has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tazza.util.versions import numbers, same_release

__all__ = ["Incoherence", "Part", "incoherences", "owner_of"]


class Part(NamedTuple):
    """A file of one of the libraries, and where it is from.

    Attributes:
        library: ``"cublas"``, ``"cudnn"``, ``"curand"`` or ``"nvrtc"``.
        path: of the file.
        version: its own or its distribution's, whichever says more; empty where nobody says.
        owner: the Python distribution that brought it, with its version, ``"system"``, or another folder.

    >>> Part("cudnn", "/v/nvidia/cudnn/lib/libcudnn.so.9", "9.5.0.50", "nvidia-cudnn-cu12 9.5.0.50").cuda
    12
    """

    library: str
    path: str
    version: str
    owner: str

    @property
    def cuda(self) -> int | None:
        """The major version of CUDA that it is built for; None where nothing says so."""
        named = re.search(r"-cu(\d\d)\b", self.owner) or re.search(r"/(?:nvidia/cu|cuda-)(\d\d)\b", self.path)
        if named:
            return int(named[1])
        found = numbers(self.version) if self.library in ("cublas", "nvrtc") else ()
        return found[0] if found else None

    @property
    def source(self) -> str:
        """What kind of installation it is of: ``"a wheel"``, ``"the system"`` or the folder."""
        if self.owner == "system":
            return "the system"
        return "a wheel" if self.owner.startswith("nvidia-") else self.owner

    def __str__(self) -> str:
        return f"{self.path} ({', '.join(filter(None, (self.version, self.owner)))})"


class Incoherence(NamedTuple):
    """What does not fit: the doctor's key of such findings, and what was seen."""

    key: str
    seen: str


def incoherences(parts: Sequence[Part], serves: str = "", *, loaded: bool = True) -> list[Incoherence]:
    """Everything that does not fit; empty where all does.

    Args:
        parts: the files that are loaded, or that would be found.
        serves: the newest CUDA version that the driver serves, such as ``"12.4"``; empty where it is not known.
        loaded: `parts` are all in one process: a library in several folders is then a mixture, and not a choice.
    """
    found: list[Incoherence] = []
    for library in dict.fromkeys(part.library for part in parts):
        found += _within(library, [part for part in parts if part.library == library], loaded)
    majors = {name: {str(one.cuda) for one in own if one.cuda} for name, own in _by_library(parts)}
    found += _apart(majors, "cuda-majors", "for CUDA")
    sources = {name: {one.source for one in own} for name, own in _by_library(parts)}
    found += _apart(sources, "cuda-sources", "from")
    newest, old = numbers(serves), []
    for _, own in _by_library(parts):
        needs = [one.cuda for one in own if one.cuda is not None]
        if newest and needs and min(needs) > newest[0]:
            old.append(f"{own[0]} is for CUDA {min(needs)}")
    return found + ([Incoherence("driver-old", f"{', '.join(old)}; the driver serves {serves}")] if old else [])


def _by_library(parts: Iterable[Part]) -> list[tuple[str, list[Part]]]:
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.library, []).append(part)
    return list(groups.items())


def _within(library: str, parts: Sequence[Part], loaded: bool) -> list[Incoherence]:
    """What does not fit among the parts of one library."""
    folders = _by_folder(parts)
    for group in [list(parts)] if loaded else folders:
        if library == "cudnn" and not _agree(group):
            return [Incoherence("cudnn-mixed", _versions(group))]
    if loaded and len(folders) > 1 and len({part.cuda for part in parts} - {None}) < 2:
        seen = " and ".join(str(group[0]) for group in folders)
        return [Incoherence("cuda-split", f"parts of two installations of {library}: {seen}")]
    return []


def _by_folder(parts: Sequence[Part]) -> list[list[Part]]:
    groups: dict[Path, list[Part]] = {}
    for part in parts:
        groups.setdefault(Path(part.path).resolve().parent, []).append(part)
    return [groups[folder] for folder in sorted(groups)]


def _agree(parts: Iterable[Part]) -> bool:
    versions = [part.version for part in parts if part.version]
    return all(same_release(one, other) for one in versions for other in versions)


def _versions(parts: Iterable[Part]) -> str:
    return ", ".join(f"{Path(part.path).name} {part.version or '?'}" for part in parts)


def _apart(groups: dict[str, set[str]], key: str, how: str) -> list[Incoherence]:
    """One finding where the libraries have nothing in common; those of which nothing is known fit with all."""
    known = {library: values for library, values in groups.items() if values}
    if not known or set.intersection(*known.values()):
        return []
    seen = (f"{library} is {how} {' and '.join(sorted(values))}" for library, values in known.items())
    return [Incoherence(key, ", ".join(seen))]


def owner_of(path: Path) -> str:
    """Who brought a file: a distribution of NVIDIA's with its version, ``"system"``, or the file's folder."""
    real = path.resolve()
    for folder in real.parents:
        for record in folder.glob("nvidia_*.dist-info/RECORD"):
            if f"\n{real.relative_to(folder).as_posix()}," in "\n" + record.read_text("utf-8"):
                name, _, version = record.parent.name.removesuffix(".dist-info").rpartition("-")
                return f"{name.replace('_', '-')} {version}"
    return "system" if real.parts[1:2] in (("usr",), ("lib",), ("lib64",), ("opt",)) else str(real.parent)
