"""Waits without a timeout of their own end as soon as the others."""

from __future__ import annotations

import pytest

from tests.bad_input.health import TIMEOUT


@pytest.fixture(autouse=True)
def bounded_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound every wait of the test."""
    monkeypatch.setenv("TAZZA_WAIT_TIMEOUT", str(TIMEOUT))
