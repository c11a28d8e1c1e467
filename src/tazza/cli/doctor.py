"""``tazza doctor``: say which native libraries and packages there are, whether they fit together, and what to do.

It looks at this command's own process, or with --import at a child process that has imported the named modules, and
at the limits of the machine. The exit code is not 0 when a finding is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
import textwrap

import tazza as tz
from tazza.cli.exits import ExitCode
from tazza.cli.output import build, show_json, show_table, show_text, versions
from tazza.doctor import Facts, Finding, Report, Severity, examine
from tazza.doctor.collect import Sources
from tazza.util.text import format_nbytes

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the examination."""
    parser.add_argument(
        *("--import",),
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import it in a child process and look at that; may be repeated, in the order of your program",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds for each child process (default %(default)s)",
    )


def execute(options: argparse.Namespace) -> ExitCode:
    """Examine and print; the findings come last, the most severe first."""
    # A program that is started here looks in this folder first; this command itself may not.
    sources = Sources(search_path=(os.getcwd(), *sys.path))
    report = examine(options.modules, timeout=options.timeout, sources=sources)
    code = ExitCode.OK if report.healthy else ExitCode.UNHEALTHY
    if options.json:
        head = {"versions": versions(), "build": build(), "exit_code": code.value}
        show_json(head | report.as_dict())
        return code
    facts = report.facts
    show_text(f"tazza {tz.__version__}, {build()}: {facts.subject}\n")
    _show_libraries(report)
    _show_packages(facts)
    show_table("Machine", ("", ""), _machine_rows(facts), left=2)
    _show_findings(report)
    return code


def _show_libraries(report: Report) -> None:
    coherent, rows = report.coherence(), []
    for library in report.facts.libraries:
        state = "found" if not library.loaded else "loaded" if coherent[library.family] else "loaded, see below"
        rows.append(
            (library.family, library.name, library.version or "-", library.owner, state, _short_path(library.path))
        )
    if rows:
        show_table("Libraries", ("for", "library", "version", "from", "state", "file"), rows, left=6)


def _show_packages(facts: Facts) -> None:
    rows = [
        (package.module, package.file_version or package.version or "-", _short_path(package.path) or "-")
        for package in facts.packages
    ]
    show_table("Packages", ("import", "version", "file"), rows, left=3)


def _short_path(path: str) -> str:
    """Replace the folder of installed packages by dots: it is the same in most rows."""
    packages = sysconfig.get_path("platlib")
    return "..." + path.removeprefix(packages) if path.startswith(packages + os.sep) else path


def _machine_rows(facts: Facts) -> list[tuple[str, str]]:
    processors, memory, driver = facts.processors, facts.memory, facts.driver
    quota = "" if processors.quota is None else f", time of {processors.quota:g}"
    rows = [
        ("system", f"{facts.python.platform}, Python {facts.python.version}"),
        ("processors", f"{processors.usable} of {processors.machine}{quota}"),
        (
            "memory",
            f"{format_nbytes(memory.free)} free of {format_nbytes(memory.total)}"
            + ("" if memory.total == memory.machine_total else f" (machine: {format_nbytes(memory.machine_total)})"),
        ),
    ]
    if memory.shared_total is not None and memory.shared_free is not None:
        shared = f"{format_nbytes(memory.shared_free)} free of {format_nbytes(memory.shared_total)}"
        rows.append(("shared memory", shared))
    if facts.pools:
        rows.append(("native threads", ", ".join(f"{pool.name} {pool.threads}" for pool in facts.pools)))
    if driver.emulated:
        rows.append(("CUDA emulator", f"stands in for NVIDIA's driver, {driver.state}"))
    elif driver.library:
        rows.append(("NVIDIA driver", f"{driver.library_version or driver.library}, {driver.state}"))
    if driver.cuda:
        rows.append(("CUDA", f"up to {driver.cuda}, devices: {driver.devices}"))
    rows += [("not known", text) for text in facts.unknown]
    return rows


def _show_findings(report: Report) -> None:
    counts = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in report.count().items())
    show_text(f"Findings: {counts}")
    for finding in report.findings:
        show_text(_paragraph(finding))


def _paragraph(finding: Finding) -> str:
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    head = f"  {finding.severity.value:<8}{finding.key}: {finding.seen}"
    lines = [head] if finding.severity is Severity.NOTE else [head, f"{'':10}{finding.why}"]
    if finding.fix:
        lines.append(f"{'':10}To do: {finding.fix}")
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent=" " * 12, break_long_words=False, break_on_hyphens=False)
        for line in lines
    )
