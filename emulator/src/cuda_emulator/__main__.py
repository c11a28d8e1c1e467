"""``python -m cuda_emulator [options] -- command``: runs a command, and what it starts, on the emulator."""

import argparse
import subprocess
import sys
from collections.abc import Sequence

from cuda_emulator.build import library
from cuda_emulator.errors import EmulatorError
from cuda_emulator.running import environment
from cuda_emulator.settings import TABLE, Settings

NOT_STARTED = 2


def run(argv: Sequence[str]) -> int:
    """Runs the command behind the options and returns its exit code, or 128 and the signal's number if one ended it.

    2 means that it was not started; why stands on stderr.
    """
    parser = _parser()
    given = vars(parser.parse_args(argv))
    command = given.pop("command")
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        parser.print_usage(sys.stderr)
        print("there is no command to run", file=sys.stderr)
        return NOT_STARTED
    try:
        settings = Settings.from_environment(**given)
        changed = environment(settings, library())
    except (ValueError, EmulatorError) as error:
        print(f"cuda emulator: {error}", file=sys.stderr)
        return NOT_STARTED
    try:
        code = subprocess.call(command, env=changed)
    except OSError as error:
        print(f"cuda emulator: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    return code if code >= 0 else 128 - code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cuda_emulator",
        usage="%(prog)s [options] -- command ...",
        description="Runs a command on emulated CUDA devices. Each option may also be a variable: "
        "--jitter-us 50 is CUDA_EMULATOR_JITTER_US=50.",
    )
    for name, option in TABLE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=option.metavar, help=option.help)
    parser.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
