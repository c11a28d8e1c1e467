"""Whether the parts of cuDNN that are installed, and those that were loaded, are of one version and from one place.

Two wheels may write the same files (`nvidia-cudnn-cu12` and `-cu13` share a folder), a system's copy may be found
first, and a part of another version is often noticed by a crash. So all of it is compared before the first plan.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from tazza.errors import BackendUnavailableError

__all__ = ["HINT", "Installation", "examine_installation", "installation_findings", "loaded_findings"]

HINT = "pip install 'tazza[cudnn-plan]' into a virtual environment of its own: about 1.6 GB"

_LIBRARIES = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
_FRONT_END = "nvidia-cudnn-frontend"
_PARTS = ("graph", "ops", "cnn", "adv", "heuristic", "engines_precompiled", "engines_runtime_compiled")
_FACADE = "libcudnn.so.9"


@final
@dataclass(frozen=True, slots=True)
class Installation:
    """What the installed wheels say and what lies where they say it.

    Attributes:
        wheel: name of the wheel with the libraries.
        version: its version, for example ``"9.28.0.42"``.
        front_end: version of the front end's wheel.
        files: path of each library in it, with its size in bytes by the wheel's list and on the disk (None: not there).
        others: names of other wheels with the same files.
    """

    wheel: str
    version: str
    front_end: str
    files: Mapping[Path, tuple[int | None, int | None]]
    others: tuple[str, ...] = ()

    @property
    def library(self) -> Path:
        """The library that loads the others."""
        return next((path for path in self.files if path.name == _FACADE), Path(_FACADE))

    @property
    def number(self) -> int:
        """The version as ``cudnnGetVersion`` gives it: 92800 for 9.28.0.42."""
        major, minor, patch = ([int(part) for part in self.version.split(".")[:3]] + [0, 0])[:3]
        return major * 10000 + minor * 100 + patch


def examine_installation(find: Callable[[str], Any] | None = None) -> Installation:
    """Look at the wheels of this interpreter; loads nothing.

    Args:
        find: like `importlib.metadata.distribution`, the default.

    Raises:
        BackendUnavailableError: one is missing, or they do not fit together; the reason lists every finding.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    if not sys.platform.startswith("linux"):
        raise BackendUnavailableError("cudnn", f"plans are made on Linux, and this is {sys.platform}")
    found: dict[str, Any] = {}
    for name in (*_LIBRARIES, _FRONT_END):
        try:
            found[name] = (find or distribution)(name)
        except PackageNotFoundError:  # said below, with all that is missing
            continue
    wheels = [name for name in _LIBRARIES if name in found]
    missing = ([] if wheels else [_LIBRARIES[0]]) + ([] if _FRONT_END in found else [_FRONT_END])
    if missing:
        raise BackendUnavailableError("cudnn", f"not installed: {', '.join(missing)}", HINT)
    files = {
        Path(str(file.locate())): (file.size, _size(Path(str(file.locate()))))
        for file in found[wheels[0]].files or ()
        if file.name.startswith("libcudnn") and ".so" in file.name
    }
    versions = found[wheels[0]].version, found[_FRONT_END].version
    installation = Installation(wheels[0], *versions, files, tuple(wheels[1:]))
    _refuse(installation_findings(installation))
    return installation


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # not there, which is a finding
        return None


def installation_findings(installation: Installation) -> list[str]:
    """What does not fit among the installed files; empty where all does."""
    findings = [f"{other} and {installation.wheel} install the same files" for other in installation.others]
    if not installation.version.startswith("9."):
        findings.append(f"{installation.wheel} is of version {installation.version}, expected 9")
    there = {path.name for path in installation.files}
    wanted = [_FACADE, *(f"libcudnn_{part}.so.9" for part in _PARTS)]
    findings += [f"{installation.wheel} lists no {name}" for name in wanted if name not in there]
    for path, (listed, size) in installation.files.items():
        if size is None:
            findings.append(f"{path} is missing")
        elif listed is not None and size != listed:
            findings.append(
                f"{path} has {size} bytes, and {listed} in {installation.wheel} {installation.version}: "
                "it is of another version"
            )
    folders = sorted({str(path.parent) for path in installation.files})
    if len(folders) > 1:
        findings.append(f"the parts lie in several folders: {', '.join(folders)}")
    return findings


def loaded_findings(installation: Installation, said: Mapping[str, Any]) -> list[str]:
    """What does not fit among the loaded libraries, by what the planner's process said about them."""
    findings = []
    expected = installation.number
    for key, what in (("version", "libcudnn"), ("front_version", "the libcudnn that the front end found")):
        if key in said and said[key] != expected:
            findings.append(f"{what} is of version {said[key]}, and {expected} is installed")
    for part, status in said.get("checks", {}).items():
        if status:
            findings.append(f"cudnn{part}VersionCheck says {status}: it is of another version than libcudnn")
    folder = installation.library.resolve().parent
    foreign = [path for path in said.get("files", ()) if Path(path).resolve().parent != folder]
    return findings + [f"{path} was loaded, and the others lie in {folder}" for path in foreign]


def check_loaded(installation: Installation, said: Mapping[str, Any]) -> None:
    """Refuse libraries that do not fit.

    Raises:
        BackendUnavailableError: lists every finding.
    """
    _refuse(loaded_findings(installation, said))


def _refuse(findings: list[str]) -> None:
    if findings:
        hint = "install the extra cudnn-plan into a fresh virtual environment, and unset LD_LIBRARY_PATH"
        raise BackendUnavailableError("cudnn", "; ".join(findings), hint)
