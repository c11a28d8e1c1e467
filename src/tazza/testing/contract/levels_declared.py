"""The last test of the battery: what was skipped so far, and why, is what the device does not declare."""

from __future__ import annotations

from tazza.spi import Level
from tazza.testing.contract.battery import Target

LEVEL = Level.TRANSPORT


def test_skips_equal_the_declaration(target: Target) -> None:
    skipped = {name: reason for name, (_, reason) in target.outcomes.items()}
    assert skipped == {name: target.missing(test) for name, (test, _) in target.outcomes.items()}
