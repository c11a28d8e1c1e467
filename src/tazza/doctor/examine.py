"""Collect facts, run every check over them, put the worst finding first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tazza.doctor import checks_driver, checks_libraries, checks_machine, checks_packages, checks_python
from tazza.doctor.collect import Sources, collect
from tazza.doctor.facts import Facts
from tazza.doctor.findings import Finding, Severity
from tazza.doctor.report import Report
from tazza.errors import ArgumentError

__all__ = ["CHECKS", "examine", "judge"]

Check = Callable[[Facts], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    *checks_libraries.CHECKS,
    *checks_packages.CHECKS,
    *checks_machine.CHECKS,
    *checks_driver.CHECKS,
    *checks_python.CHECKS,
)
_ORDER = list(Severity)


def examine(modules: Sequence[str] = (), *, timeout: float = 60.0, sources: Sources | None = None) -> Report:
    """Look at the libraries, packages, limits and drivers of this process, or of a child process.

    Nothing is initialised in this process: the NVIDIA driver and cuDNN, where they are installed, are tried in child
    processes that make no CUDA context. A program that calls this after its own imports learns about itself.

    Args:
        modules: imported in a child process, whose libraries are then looked at instead of this process's.
        timeout: seconds that each child process may take.
        sources: where to look, if not here.

    Returns:
        The facts and the findings, the most severe first.

    Raises:
        ArgumentError: a module's name cannot be imported, or the timeout is not a positive number.

    Example:
        >>> import tazza.doctor
        >>> report = tazza.doctor.examine()
        >>> [package.module for package in report.facts.packages][0]
        'numpy'
    """
    if isinstance(modules, str) or not all(_is_module(name) for name in modules):
        raise ArgumentError.of("modules", modules, "a sequence of names of modules, like ['torch', 'scipy.linalg']")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ArgumentError.of("timeout", timeout, "a positive number of seconds")
    return judge(collect(sources or Sources(), modules, timeout=timeout))


def judge(facts: Facts) -> Report:
    """Run every check over facts."""
    findings = [finding for check in CHECKS for finding in check(facts)]
    return Report(facts, tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity))))


def _is_module(name: object) -> bool:
    return isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
