"""Who opened a backend first, and what it offers beside tazza's nouns."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tazza as tz


def test_backends_tells_who_opened_a_driver_first() -> None:
    code = (
        "import os, tazza as tz\n"
        "assert all(not status.opened for status in tz.backends())\n"
        "tz.context('sim')\n"
        "opened = {status.name: status.opened for status in tz.backends()}\n"
        "assert not opened['cpu'], opened\n"
        "assert f\"thread 'MainThread' of process {os.getpid()}\" in opened['sim'], opened\n"
        "assert '<string>:3' in opened['sim'], opened\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_native_says_that_there_is_nothing() -> None:
    with tz.open("cpu") as ctx, pytest.raises(tz.errors.UnsupportedError, match="nothing of its own"):
        _ = ctx.native
