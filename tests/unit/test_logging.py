"""Names of the standard logging module under which tazza says what happens."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

import tazza as tz
from tazza.util.log import info


def test_a_task_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tazza.task"), tz.open("cpu") as ctx:
        assert ctx.launch(lambda: 1 / 0, label="divide").exception is not None
    [record] = caplog.records
    assert record.name == "tazza.task"
    assert "'divide' failed on <Stream 'cpu:0 own stream' (inline)>: ZeroDivisionError" in record.getMessage()


def test_a_full_queue_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    gate, waiting = threading.Event(), threading.Event()

    class Open(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            waiting.set()
            gate.set()

    handler = Open()
    logging.getLogger("tazza.stream").addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, "tazza.stream"), tz.open("cpu", max_queued=1) as ctx:
            stream = ctx.new_stream(label="short")
            for _ in range(3):
                ctx.launch(gate.wait, 30, stream=stream)
            ctx.synchronize(timeout=30)
    finally:
        logging.getLogger("tazza.stream").removeHandler(handler)
    assert waiting.is_set()
    assert "'short'" in caplog.records[0].getMessage()
    assert "waits for room" in caplog.records[0].getMessage()


def test_nothing_is_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "logging")
    info("tazza.task", "nobody can have asked")
    assert "logging" not in sys.modules
