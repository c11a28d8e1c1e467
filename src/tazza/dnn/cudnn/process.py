"""The process that the planner's libraries live in: one question at a time, each with a deadline."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, final

from tazza.errors import BackendError, WaitTimeoutError

__all__ = ["PlannerProcess", "command"]

_DEATH = 5.0  # seconds that a process which was killed, or whose input ended, may take to be gone
_LONGEST = 64 << 20  # bytes of one answer; plans have some ten thousand
_ROUND = 3600.0  # seconds of one wait: the system's own counts milliseconds in 32 bits
_ORPHAN = 5.0  # seconds after the parent's own deadline, when the process ends itself should the parent be gone


def command() -> list[str]:
    """What is run: `child.py` by this interpreter, whose packages it uses; not with this folder on its path."""
    return [sys.executable, "-P", str(Path(__file__).with_name("child.py"))]


@final
class PlannerProcess:
    """A running child; used by one thread at a time, and never again after an error."""

    def __init__(self) -> None:
        # A file: it cannot fill up and block the child, as a pipe does. `end` closes it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            # A session of its own, so that Ctrl-C reaches the parent alone, which ends the child in order.
            self._process = subprocess.Popen(
                command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,
            )
        except BaseException as error:
            self._errors.close()
            if isinstance(error, OSError):
                raise BackendError(f"the planner's process cannot be started: {error}", backend="cudnn") from error
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        for pipe in (self._input, self._output):
            os.set_blocking(pipe.fileno(), False)
        self._read = bytearray()

    @property
    def pid(self) -> int:
        """The child's number."""
        return self._process.pid

    def ask(self, do: str, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return its answer; whatever goes wrong, the child is gone before this raises.

        Raises:
            WaitTimeoutError: no whole answer within `seconds`.
            BackendError: the child ended, or answered with something else.
        """
        deadline = time.monotonic() + seconds
        line = json.dumps({"do": do, "seconds": seconds + _ORPHAN, **request}).encode() + b"\n"
        try:
            answer = json.loads(self._exchange(line, deadline))
            if not isinstance(answer, dict):
                raise ValueError("no object")
            return answer
        except TimeoutError:
            self.end(0.0)
            message = f"cuDNN's planner did not answer {do!r} within {seconds:g} s; its process was ended"
            raise WaitTimeoutError(message) from None
        except (EOFError, BrokenPipeError):
            raise BackendError(self._how_it_ended(), backend="cudnn", call=do) from None
        except ValueError:
            self.end(0.0)
            message = "the planner's process answered with something that is no JSON object"
            raise BackendError(message, backend="cudnn", call=do) from None
        except BaseException:  # an interrupt: an answer that comes later must not be taken for the next one's
            self.end(0.0)
            raise

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        """Write the line and read one, without ever blocking in either."""
        left = memoryview(line)
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            selector.register(self._input, selectors.EVENT_WRITE)
            while True:
                end = self._read.find(b"\n")
                if end >= 0 and not left:
                    found = bytes(self._read[:end])
                    del self._read[: end + 1]
                    return found
                if len(self._read) > _LONGEST:
                    raise ValueError("too long")
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise TimeoutError
                for key, _ in selector.select(min(rest, _ROUND)):
                    if key.fileobj is self._input:
                        left = left[os.write(self._input.fileno(), left) :]
                        if not left:
                            selector.unregister(self._input)
                    else:
                        piece = os.read(self._output.fileno(), 1 << 16)
                        if not piece:
                            raise EOFError
                        self._read += piece

    def _how_it_ended(self) -> str:
        self.end(_DEATH)
        code = self._process.returncode
        try:
            how = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        except ValueError:  # a signal without a name, as real-time signals are
            how = f"was killed by signal {-code}"
        return f"the planner's process {how}{self._complaint}"

    def end(self, patience: float = _DEATH) -> None:
        """Tell the child to end; kill it after `patience` seconds; reap it. May be called twice."""
        if self._errors.closed:
            return
        try:
            # Closing alone would not do where a fork of this process holds the pipe open as well.
            os.write(self._input.fileno(), b"\n")
        except (BlockingIOError, BrokenPipeError):  # it does not read, or is gone: waiting and killing are what is left
            pass
        self._input.close()
        try:
            self._process.wait(max(patience, 0.001))
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(_DEATH)
            except subprocess.TimeoutExpired:  # it sleeps in the kernel, and goes when that lets it
                pass
        self._output.close()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        self._complaint = f": {lines[-1][:300]}" if lines else ""
        self._errors.close()
