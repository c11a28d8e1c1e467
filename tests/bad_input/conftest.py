"""Every test of bad input leaves a process behind in which everything still works."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bad_input.health import TIMEOUT, assert_process_is_healthy


@pytest.fixture(autouse=True)
def healthy_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bound every wait, and run a small program on every device once the test is over."""
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", str(TIMEOUT))
    yield
    assert_process_is_healthy()
