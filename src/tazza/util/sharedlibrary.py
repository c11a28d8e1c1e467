"""Whether the system's loader would find a library, told without loading it."""

from __future__ import annotations

import os

__all__ = ["has_library"]

# Where loaders look beside their cache; the last two are WSL's and the containers'.
_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/lib/wsl/lib", "/usr/local/nvidia/lib64")


def has_library(name: str) -> bool:
    """Tell whether a library is loaded in this process already or lies where the loader looks.

    >>> has_library("libnobody-has-this.so.7")
    False
    """
    if any(os.path.isfile(os.path.join(folder, name)) for folder in _folders()):
        return True
    # The cache and the list of loaded files hold names as plain text; a terminator keeps longer names out.
    return _holds("/etc/ld.so.cache", f"{name}\0") or _holds("/proc/self/maps", f"/{name}\n")


def _folders() -> list[str]:
    asked = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    return [*asked, *_FOLDERS]


def _holds(file: str, text: str) -> bool:
    try:
        with open(file, "rb") as opened:  # pathlib costs more to import than most of the package
            return text.encode() in opened.read()
    except OSError:  # this system has no such file, and so nothing is in it
        return False
