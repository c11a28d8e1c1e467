"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview]) -> None:
    """Replace the file at `path` by one that holds `pieces` one after the other, in one step.

    It is written beside its destination under a name of its own, flushed to the disk, and moved over the destination,
    whose directory is flushed in turn. A process that dies in between leaves at most a file ``.NAME.XXXXXXXX.tmp``.

    Args:
        path: destination; a symbolic link is followed.
        pieces: the content; what making one of them raises leaves the old file untouched.

    Raises:
        OSError: the directory does not exist or cannot be written to; the old file is untouched.
    """
    destination = Path(path).resolve()
    temporary = destination.with_name(f".{destination.name}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_directory(destination.parent)


def _flush_directory(directory: Path) -> None:
    """Make the move itself survive a loss of power; only POSIX can open a directory."""
    if os.name != "posix":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
