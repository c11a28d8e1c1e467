"""The command line: one parser, one place where errors become exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from tazza import __version__
from tazza.cli import bench, demo, devices, doctor, emulate, run
from tazza.cli.exits import ExitCode, describe, exit_code
from tazza.cli.output import show_json

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]

_EXITS = "exit codes:\n" + "\n".join(f"  {code.value:>3}  {code.meaning}" for code in ExitCode)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    options = _parser().parse_args(arguments)
    options.own_process = arguments is None
    command: Command = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone. Python would report it again when it flushes at exit: there is no reader.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILURE
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            raise
        return _report(error, as_json=options.json)
    return code


def _report(error: BaseException, *, as_json: bool) -> ExitCode:
    code, text = exit_code(error), describe(error)
    print(f"tazza: {text}", file=sys.stderr)
    if code is ExitCode.FAILURE:
        print("tazza: --debug shows where it happened", file=sys.stderr)
    if as_json:
        show_json({"error": text, "exit_code": code.value})
    return code


def _description(docstring: str) -> str:
    """Return a module's docstring without the command's name in front."""
    text = docstring.partition(": ")[2].strip()
    return text[:1].upper() + text[1:]


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="tazza",
        description="One execution context for every device.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tazza {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module, summary in (
        ("devices", devices, "list every backend and its devices, or why it cannot be used"),
        ("doctor", doctor, "say which libraries there are, whether they fit together, and what to do"),
        ("demo", demo, "train a small network on real handwritten digits"),
        ("run", run, "run a script under a context and report what it did"),
        ("bench", bench, "time an operation on each device, and the way there and back"),
    ):
        command = commands.add_parser(
            name,
            parents=[shared],
            help=summary,
            description=_description(module.__doc__ or ""),
            epilog=_EXITS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(command=module.execute)
    # No option of this one is ours: without the character that begins options, argparse takes all as it stands.
    emulated = commands.add_parser(
        "emulate-cuda",
        help="run a command on emulated CUDA devices",
        description=_description(emulate.__doc__ or ""),
        add_help=False,
        prefix_chars="\0",
    )
    emulate.add_arguments(emulated)
    emulated.set_defaults(command=emulate.execute)
    return parser
