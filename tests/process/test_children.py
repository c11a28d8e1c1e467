"""The helper that forks leaves nothing behind where the system refuses the fork."""

from __future__ import annotations

import errno
import os
import sys
import threading

import pytest

from tests.process.children import in_fork


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_refused_fork_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.ENOMEM, "no memory for a child")

    tracing, in_threads, descriptors = sys.gettrace(), threading.gettrace(), os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(OSError, match="no memory for a child"):
        in_fork(lambda: None)
    assert (sys.gettrace(), threading.gettrace()) == (tracing, in_threads)
    assert os.listdir("/proc/self/fd") == descriptors
