"""``tazza run``: run a script or a module under a context, and say at the end what it did.

The context is current in the main thread and, as with tz.use, in every thread that has none of its own: the program
asks for it with tz.current(). Everything else is as if Python ran it: arguments, paths, output, exceptions and exit
codes. The report comes on the standard error stream, so that the output stays the program's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import tazza as tz
from tazza.cli.exits import ExitCode, describe, exit_code, find_device
from tazza.cli.output import build, show_json, show_table, show_text, versions
from tazza.cli.program import Program, show_failure
from tazza.core.snapshot import MemorySnapshot, RecordedBlock
from tazza.core.timeline import Timeline
from tazza.core.trace import MAX_EVENTS
from tazza.core.tracefile import write_timeline
from tazza.errors import ArgumentError
from tazza.pages.report import RunReport
from tazza.util.text import format_nbytes, format_seconds

__all__ = ["add_arguments", "execute"]

_ROWS = 10
"""So many tasks, owners and leaks are listed on the terminal; the page lists all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the run."""
    parser.add_argument("--device", default="auto", metavar="D", help="of the context: auto, cpu, sim:0, ...")
    parser.add_argument("--arrays", metavar="L", help="its array library: numpy, torch, ... (default: the device's)")
    parser.add_argument("--seed", type=int, metavar="N", help="of its random numbers (default: drawn and reported)")
    parser.add_argument("--memory-limit", metavar="S", help="the most it may hold, such as 512MiB (default: no limit)")
    parser.add_argument("--trace", metavar="FILE", help="write what ran when, for https://ui.perfetto.dev (.json)")
    parser.add_argument("--report", metavar="FILE", help="write the report with pictures, for a browser (.html)")
    parser.add_argument(
        "--fail-on-leaks",
        action="store_true",
        help=f"exit with {ExitCode.LEAKS.value} where memory of the context is still held at the end",
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="run a module, and ARGS")
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT ARGS", help="a script and its arguments")


def execute(options: argparse.Namespace) -> ExitCode:
    """Run the program, print the report, write the files, and end as the program ended."""
    program = Program.of(options.script, options.module)
    program.check()
    _check_file("--trace", options.trace, ".json")
    _check_file("--report", options.report, ".html")
    run = _Run(options, program)
    run.run()
    run.report()
    return run.end()


@dataclass
class _Outcome:
    """How the program ended: by itself (`status` is what it gave to SystemExit), or by an exception."""

    text: str = "done"
    status: Any = None
    code: ExitCode = ExitCode.OK

    @property
    def failed(self) -> bool:
        return self.code is not ExitCode.OK or self.status not in (None, 0)


class _Run:
    """One run, from the context's making to the exit code."""

    def __init__(self, options: argparse.Namespace, program: Program) -> None:
        self._options, self._program = options, program
        chosen: dict[str, Any] = {"seed": options.seed, "memory_limit": options.memory_limit}
        if options.arrays is not None:
            chosen["arrays"] = options.arrays
        self._context = tz.context(find_device(options.device), **chosen)
        self._timeline = Timeline(MAX_EVENTS)
        self._outcome = _Outcome()
        self._report: RunReport | None = None

    def run(self) -> None:
        """Run the program and measure, until its context is closed."""
        functions = self._program.exit_functions()
        processor = time.process_time_ns()
        tz.use(self._context)
        self._timeline.start()  # before the recording, which takes time between a charge and its telling
        try:
            with self._record():
                self._run_program()
                self._settle()
                self._timeline.stop()
                processor = time.process_time_ns() - processor
                snapshot = self._context.memory.snapshot()
                finished = self._program.finish(functions, own_process=self._options.own_process)
                self._context.state.forget()
                leaks = tuple(block for block in self._context.memory.leaks() if not _is_of_a_module(block))
        finally:
            self._timeline.stop()
            tz.use(None)
        self._report = self._make_report(processor, snapshot, leaks, finished=finished)
        self._close()

    def _record(self) -> contextlib.AbstractContextManager[Any]:
        """Record where memory comes from, where somebody will want to know: it makes allocating slower."""
        if self._options.report is None and not self._options.fail_on_leaks:
            return contextlib.nullcontext()
        recording: contextlib.AbstractContextManager[Any] = self._context.memory.record(sites=True)
        return recording

    def _run_program(self) -> None:
        try:
            with self._context:
                self._program.run()
        except SystemExit as ended:
            self._outcome = _Outcome("done" if ended.code in (None, 0) else f"exit {ended.code}", ended.code)
        except KeyboardInterrupt as error:
            self._outcome = _Outcome("interrupted", code=ExitCode.INTERRUPTED)
            show_failure(error, whole=self._options.debug)
        except BaseException as error:  # the program's own, shown as Python shows it
            self._outcome = _Outcome(type(error).__name__, code=ExitCode.FAILURE)
            show_failure(error, whole=self._options.debug)

    def _settle(self) -> None:
        """Wait for what the program left in its streams; a failure that nobody asked for is the run's."""
        if self._outcome.code is ExitCode.INTERRUPTED:
            return
        try:
            self._context.synchronize()
        except (Exception, KeyboardInterrupt) as error:
            self._fail(error)

    def _close(self) -> None:
        try:
            self._context.close(abandon=self._outcome.code is ExitCode.INTERRUPTED)
        except (Exception, KeyboardInterrupt) as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Say what failed beside the program; it is the outcome where there is no worse one."""
        print(f"tazza: {describe(error)}", file=sys.stderr)
        if not self._outcome.failed:
            self._outcome = _Outcome(type(error).__name__, code=exit_code(error))

    # The report ----------------------------------------------------------------------------------------------------

    def _make_report(
        self, processor: int, snapshot: MemorySnapshot, leaks: tuple[RecordedBlock, ...], *, finished: bool
    ) -> RunReport:
        spec = self._context.spec
        limit = "none" if spec.memory_limit is None else format_nbytes(spec.memory_limit)
        facts = [
            ("command", self._program.command),
            ("device", f"{spec.device}, {self._context.device.title}"),
            ("arrays", spec.arrays),
            ("seed", str(spec.seed)),
            ("memory limit", limit),
            ("process", str(os.getpid())),
            *versions().items(),
            ("hot path", build()),
        ]
        if not finished:
            facts.append(("leaks", "names of the program were kept: what it registered for the exit may need them"))
        return RunReport(
            title=self._program.name,
            facts=tuple(facts),
            outcome=self._outcome.text,
            failed=self._outcome.failed,
            processor_ns=processor,
            timeline=self._timeline,
            stats=self._context.memory.stats(),
            snapshot=snapshot,
            leaks=leaks,
            health=self._context.health.status,
        )

    def report(self) -> None:
        """Print the report and write the files that were asked for."""
        report = self._report
        assert report is not None
        sys.stdout.flush()
        try:
            if self._options.trace is not None:
                write_timeline(self._timeline, self._options.trace)
            if self._options.report is not None:
                report.write(self._options.report)
        except OSError as error:
            self._fail(error)
        if self._options.json:
            show_json(report.as_dict())
        else:
            with contextlib.redirect_stdout(sys.stderr):
                _print(report)

    def end(self) -> ExitCode:
        """Return the exit code, or raise the SystemExit that the program raised."""
        outcome = self._outcome
        if outcome.status not in (None, 0):
            raise SystemExit(outcome.status)
        if not outcome.failed and self._options.fail_on_leaks and self._report is not None and self._report.leaks:
            return ExitCode.LEAKS
        return outcome.code


def _is_of_a_module(block: RecordedBlock) -> bool:
    """Whether it was made while a module was imported: then it is the module's, for the life of the process."""
    return any(frame.startswith("<frozen importlib._bootstrap") for frame in block.site)


def _short(site: str, parts: int = 3) -> str:
    """A call site without the folders that make it too long for a terminal."""
    path = site.split(os.sep)
    return site if len(path) <= parts + 1 else os.sep.join(["...", *path[-parts:]])


def _check_file(option: str, path: str | None, suffix: str) -> None:
    """Refuse before the run what could not be written after it."""
    if path is None:
        return
    folder = os.path.dirname(os.path.abspath(path))
    if not path.endswith(suffix) or not os.path.isdir(folder):
        raise ArgumentError.of(option, path, f"the path of a {suffix} file in a folder that exists")


def _print(report: RunReport) -> None:
    times = (
        f"{format_seconds(report.elapsed_ns * 1e-9)}, {format_seconds(report.processor_ns * 1e-9)} of processor time"
    )
    show_text(f"\ntazza run {report.title}: {report.outcome} after {times}")
    show_text(f"device {report.snapshot.device}, health {report.health}, {build()}\n")
    streams = [
        (
            name,
            *(usage.counts.get(kind, 0) for kind in ("task", "copy", "fill")),
            usage.failed,
            format_seconds(usage.busy_ns * 1e-9),
            format_seconds(usage.waiting_ns * 1e-9),
        )
        for name, _, usage in report.streams()
    ]
    if streams:
        show_table("Streams", ("stream", "tasks", "copies", "fills", "failed", "busy", "waiting"), streams)
    figures = report.as_dict()
    tasks = [
        (one["name"], one["count"], *(format_seconds(one[key] * 1e-9) for key in ("total_ns", "longest_ns")))
        for one in figures["tasks"][:_ROWS]
    ]
    if tasks:
        show_table("Tasks that took most", ("task", "count", "together", "longest"), tasks)
    owners = [
        (
            one["owner"] if one["accounts"] == 1 else f"{one['owner']} ({one['accounts']})",
            *(format_nbytes(one[key]) for key in ("live", "peak")),
            "none" if one["limit"] is None else format_nbytes(one["limit"]),
            one["ooms"],
        )
        for one in figures["balances"][:_ROWS]
    ]
    show_table("Memory", ("owner", "live", "peak", "limit", "refused"), owners)
    _print_leaks(report, figures["leaks"])


def _print_leaks(report: RunReport, leaks: list[dict[str, Any]]) -> None:
    if not leaks:
        show_text("Leaks: none")
        return
    rows = [
        (
            one["label"] or "(no label)",
            one["library"],
            _short(one["site"][0]) if one["site"] else "-",
            one["blocks"],
            format_nbytes(one["nbytes"]),
        )
        for one in leaks[:_ROWS]
    ]
    count = len(report.leaks)
    what = "Leaks" if any(one["site"] for one in leaks) else "Held at the end (--report or --fail-on-leaks say by whom)"
    title = f"{what}: {count} block{'' if count == 1 else 's'}, {format_nbytes(report.leaked)}"
    show_table(title, ("label", "library", "allocated at", "blocks", "bytes"), rows, left=3)
