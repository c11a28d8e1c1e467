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


def run(argv: Sequence[str], prog: str = "python -m cuda_emulator") -> int:
    """Runs the command behind the options and returns its exit code, or 128 and the signal's number if one ended it.

    2 means that it was not started; why stands on stderr. ``prog`` is the name that the help is written for.
    """
    parser = _parser(prog)
    try:
        given = vars(parser.parse_args(argv))
    except SystemExit as ended:  # --help, or an option that does not exist
        return int(ended.code or 0)
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
        process = subprocess.Popen(command, env=changed)
    except OSError as error:
        print(f"cuda emulator: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    code = _waited_for(process)
    return code if code >= 0 else 128 - code


def _waited_for(process: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal interrupts the command too, and the command knows what to do about it.
            pass


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
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
