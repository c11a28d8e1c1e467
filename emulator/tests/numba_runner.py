"""Runs the tests of numba.cuda.tests.cudadrv, without those named on standard input; prints the outcomes as JSON."""

import importlib
import json
import pkgutil
import sys
import unittest
from typing import Any

PACKAGE = "numba.cuda.tests.cudadrv"


class Outcomes(unittest.TestResult):
    """Keeps a word and a text for each test."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = True
        self.outcomes: dict[str, tuple[str, str]] = {}

    def _keep(self, test: Any, outcome: str, text: str = "") -> None:
        self.outcomes[test.id().removeprefix(f"{PACKAGE}.")] = (outcome, text)

    def addSuccess(self, test: Any) -> None:
        """Called by unittest."""
        self._keep(test, "passed")

    def addError(self, test: Any, err: Any) -> None:
        """Called by unittest."""
        self._keep(test, "failed", repr(err[1]))

    def addFailure(self, test: Any, err: Any) -> None:
        """Called by unittest."""
        self._keep(test, "failed", repr(err[1]))

    def addSkip(self, test: Any, reason: str) -> None:
        """Called by unittest."""
        self._keep(test, "skipped", reason)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        """Called by unittest."""
        if err:
            self._keep(test, "failed", repr(err[1]))


def every_test() -> list[str]:
    """The names of all tests of the package."""
    names = []
    modules = pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
    for module in (f"{PACKAGE}.{info.name}" for info in modules if info.name.startswith("test_")):
        for suite in unittest.defaultTestLoader.loadTestsFromName(module):
            names += [test.id().removeprefix(f"{PACKAGE}.") for test in suite]  # type: ignore[union-attr]
    return names


def main() -> None:
    """The program."""
    left_out = set(sys.stdin.read().split())
    names = every_test()
    outcomes = Outcomes()
    for name in names:
        if name not in left_out:
            unittest.defaultTestLoader.loadTestsFromName(f"{PACKAGE}.{name}").run(outcomes)
    print(json.dumps({"all": names, "outcomes": outcomes.outcomes}), file=sys.__stdout__)


# Some of Numba's tests start processes that import this file again.
if __name__ == "__main__":
    main()
