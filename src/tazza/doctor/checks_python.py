"""Checks of the interpreter and of tazza itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from tazza.doctor.facts import Facts
from tazza.doctor.findings import Finding, found
from tazza.doctor.versions import numbers

__all__ = ["CHECKS"]

_OLDEST_GLIBC = (2, 28)


def check_build(facts: Facts) -> Iterator[Finding]:
    """The hot path is compiled, from the source that is there."""
    if not facts.tazza.compiled:
        fix = "install a C compiler, then `TAZZA_COMPILE=1 pip install --force-reinstall tazza`"
        yield found("uncompiled", "the hot path runs as plain Python", fix)
    if facts.tazza.stale:
        yield found("stale-build", ", ".join(facts.tazza.stale), "python setup.py build_ext --inplace")


def check_backends(facts: Facts) -> Iterator[Finding]:
    """Every known backend can be used."""
    for backend in facts.tazza.backends:
        if not backend.usable:
            yield found("backend-unusable", f"{backend.name}: {backend.reason}", backend.hint)


def check_interpreter(facts: Facts) -> Iterator[Finding]:
    """A release build with the lock that packages expect, on a current C library."""
    python = facts.python
    if python.debug:
        yield found("python-debug", f"Python {python.version} is a debug build", "use a release build")
    if python.free_threaded:
        lock = "on" if python.gil else "off"
        fix = "PYTHON_GIL=1 turns the lock on where a package misbehaves"
        yield found("free-threaded", f"Python {python.version} without the global lock; the lock is {lock}", fix)
    name, _, version = python.libc.partition(" ")
    if name == "glibc" and numbers(version) and numbers(version) < _OLDEST_GLIBC:
        yield found("old-libc", python.libc, "use a newer system or container image")


def check_fork(facts: Facts) -> Iterator[Finding]:
    """Processes are not forked from one that has threads."""
    python = facts.python
    if python.start_method == "fork" and (python.threads or 1) > 1:
        seen = f"multiprocessing forks, and the process has {python.threads} threads"
        yield found("fork-threads", seen, "multiprocessing.set_start_method('forkserver') or 'spawn'")


def check_variables(facts: Facts) -> Iterator[Finding]:
    """Variables of tazza are known and have values that it takes."""
    known = [variable for variable in facts.tazza.variables if variable.known]
    for variable in facts.tazza.variables:
        setting = f"{variable.name}={variable.value}"
        if not variable.known:
            names = difflib.get_close_matches(variable.name, facts.tazza.known_variables, n=1)
            fix = f"did you mean {names[0]}?" if names else f"unset {variable.name}"
            yield found("environment-unknown", setting, fix)
        elif variable.problem:
            yield found("environment-invalid", variable.problem, f"correct it, or unset {variable.name}")
    fine = [f"{variable.name}={variable.value}" for variable in known if not variable.problem]
    if fine:
        yield found("environment-set", ", ".join(fine), "")


CHECKS = (check_build, check_backends, check_interpreter, check_fork, check_variables)
