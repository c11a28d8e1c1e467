"""``tazza emulate-cuda``: run a command, and all that it starts, on emulated CUDA devices.

The options are those of the emulator, which is a distribution of its own and can be used without tazza:
``python -m cuda_emulator --help`` lists them. The exit code is the command's.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from tazza.errors import BackendUnavailableError

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take everything as it stands: the emulator reads it."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="[OPTIONS] -- COMMAND ...")
    parser.set_defaults(json=False, debug=False)


def execute(options: argparse.Namespace) -> int:
    """Hand the command to the emulator; returns the command's exit code.

    Raises:
        BackendUnavailableError: the emulator is not installed.
    """
    try:
        emulator: Any = importlib.import_module("cuda_emulator.__main__")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cuda_emulator":
            raise
        raise BackendUnavailableError(
            "cuda", "the emulator is not installed", "in a clone of tazza: pip install './emulator[header]'"
        ) from None
    code: int = emulator.run(options.arguments, prog="tazza emulate-cuda")
    return code
