"""Putting the emulator in the driver's place: in this process, and in those that it starts."""

import ctypes
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from cuda_emulator.build import NAME, library
from cuda_emulator.emulated_libraries import libraries as library_folder
from cuda_emulator.emulated_libraries import load_libraries
from cuda_emulator.errors import StartError
from cuda_emulator.faults import Fault, faults_of, text_of
from cuda_emulator.settings import Settings

DEVICE_FILES = Path("/dev")


class Emulator:
    """The emulator that this process runs on; ``start`` makes the only one. It lasts as long as the process."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self.settings = settings
        self.library = path
        self._faults = settings.faults
        self._calls = _loaded(path, settings)

    def __repr__(self) -> str:
        return f"<Emulator: {self.settings}>"

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force. Setting them, to Faults or to texts, begins every count anew.

        Raises:
            ValueError: a text is no fault, or the driver has no such error.
        """
        return self._faults

    @faults.setter
    def faults(self, given: str | Fault | Iterable[str | Fault]) -> None:
        faults = faults_of(given)
        text = text_of(faults)
        refused = self._calls.emulator_set_faults(text.encode())
        if refused:
            raise ValueError(f"the emulator cannot read the fault {text[refused - 1 :].split(';')[0]!r}")
        self._faults = faults

    @contextmanager
    def injecting(self, *faults: str | Fault) -> Iterator[None]:
        """These faults, and no others, inside the ``with``."""
        before = self.faults
        self.faults = faults_of(faults)
        try:
            yield
        finally:
            self.faults = before

    def report(self) -> dict[str, Any]:
        """Live allocations and objects, streams with what they run, calls counted, hazards found.

        Under ``"libraries"`` are the calls and live objects of the emulated cuBLAS, cuDNN and cuRAND.
        """
        size = self._calls.emulator_report(None, 0) + 1
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = self._calls.emulator_report(buffer, size) + 1
            if needed <= size:
                return dict(json.loads(buffer.value))
            # What streams run changes between two calls.
            size = 2 * needed

    def live_bytes(self, device: int | None = None) -> int:
        """Bytes allocated and not freed on one device, or on all and as pinned and managed memory.

        Raises:
            ValueError: there is no such device.
        """
        return int(self._calls.emulator_live_bytes(-1 if device is None else self._checked(device)))

    def live_objects(self) -> int:
        """Streams, events, modules and other objects of the driver that were made and not destroyed."""
        return int(self._calls.emulator_live_objects())

    def wait_idle(self) -> bool:
        """Waits until no stream has work, ``timeout_s`` at most; False if one still has. Not a call of the driver."""
        return bool(self._calls.emulator_wait_idle() == 0)

    def declare_time(self, call: str, seconds: float) -> None:
        """Have each call of an emulated library take so much longer by the times of events, until 0 is declared.

        Nobody waits for it: the device's clock alone goes on, so that whoever times algorithms with events finds what
        was declared, on a busy machine too. In a capture nothing is added.

        Args:
            call: with its algorithm, as ``"cudnnConvolutionForward/2"``.
            seconds: 0 or more, below 1e9.

        Raises:
            ValueError: the call has no declared time, or the seconds are none.
        """
        if not re.fullmatch(r"cudnnConvolution(Forward|BackwardData|BackwardFilter)/\d+", call):
            raise ValueError(f"call is {call!r}; expected one with its algorithm, as cudnnConvolutionForward/2")
        if not 0 <= seconds < 1e9:
            raise ValueError(f"seconds is {seconds!r}; expected 0 or more, below 1e9")
        self._calls.emulator_declare_time(call.encode(), round(seconds * 1e9))

    def lose_device(self, device: int) -> None:
        """From now on every call for the device fails with DEVICE_UNAVAILABLE, as if it had fallen off the bus.

        Raises:
            ValueError: there is no such device.
        """
        self._calls.emulator_lose_device(self._checked(device))

    def restore_device(self, device: int) -> None:
        """Make a device well again that was lost or has a sticky error, which no real driver does for a process.

        What was in its primary context is gone: memory, streams, events, modules; the context's handle stays. Wait for
        other threads that use the device before.

        Raises:
            ValueError: there is no such device.
        """
        self._calls.emulator_restore_device(self._checked(device))

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """``environ`` (default: this process's), changed so that a process runs on an emulator with these settings."""
        return environment(self.settings, self.library, environ)

    def _checked(self, device: int) -> int:
        if not 0 <= device < self.settings.devices:
            raise ValueError(f"device is {device}; this emulator has 0 to {self.settings.devices - 1}")
        return device


def start(
    *,
    devices: int | str | None = None,
    memory: int | str | Iterable[int | str] | None = None,
    peers: str | Iterable[tuple[int, int]] | None = None,
    seed: int | str | None = None,
    jitter_us: int | str | None = None,
    poison: int | str | None = None,
    red_zones: int | str | None = None,
    faults: str | Fault | Iterable[str | Fault] | None = None,
    trace: str | Path | None = None,
    version: int | str | None = None,
    compute: str | None = None,
    timeout_s: int | str | None = None,
    libraries: bool | str | None = None,
) -> Emulator:
    """Starts the emulator in this process, before anything has loaded a CUDA driver.

    What is not given comes from CUDA_EMULATOR_* or else is the default; ``Settings`` has the meaning and the units.
    A second call returns the same emulator.

    Raises:
        ValueError: a setting is not possible, or a fault is of an error that the driver does not have.
        BuildError: the library cannot be built here.
        StartError: a real driver is loaded or may be, or the emulator was started with other settings.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    return start_with(Settings.from_environment(**given))


def start_with(settings: Settings) -> Emulator:
    """``start`` for settings that are already there."""
    global _started
    with _starting:
        if _started is not None:
            _refuse_other_settings(_started.settings, settings)
            return _started
        path = library()
        folder = library_folder() if settings.libraries else None
        drivers = _mapped_drivers()
        _refuse_real_driver(drivers - {path.resolve()})
        if drivers:
            # Something used CUDA in a process that was started on the emulator: the variables were read then.
            _refuse_other_settings(Settings.from_environment(), settings)
        _started = Emulator(replace(settings, faults=()), path)
        # Only the library knows which errors there are. Where it refuses, the emulator runs without faults.
        _started.faults = settings.faults
        _started.settings = settings
        if folder is not None:
            load_libraries(folder)
        return _started


def started() -> Emulator | None:
    """The emulator of this process, if ``start`` was called."""
    return _started


def environment(settings: Settings, path: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """``environ`` (default: this process's), changed so that a process takes the library at ``path`` for its driver."""
    changed = dict(os.environ if environ is None else environ) | settings.environment()
    ours = [str(path.parent), *([str(library_folder())] if settings.libraries else [])]
    others = [part for part in changed.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part not in ("", *ours)]
    return changed | {"LD_LIBRARY_PATH": os.pathsep.join([*ours, *others])}


_started: Emulator | None = None
_starting = Lock()


def _loaded(path: Path, settings: Settings) -> ctypes.CDLL:
    """The library, loaded so that whoever asks for libcuda.so.1 gets it. It reads its variables while it is loaded."""
    variables = settings.environment()
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        calls = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    calls.emulator_live_bytes.restype = ctypes.c_size_t
    calls.emulator_live_objects.restype = ctypes.c_size_t
    calls.emulator_report.restype = ctypes.c_size_t
    calls.emulator_report.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    calls.emulator_set_faults.argtypes = [ctypes.c_char_p]
    calls.emulator_declare_time.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
    calls.emulator_declare_time.restype = None
    return calls


def _refuse_real_driver(others: set[Path]) -> None:
    for path in others:
        raise StartError(
            f"a CUDA driver is loaded already: {path}; start the emulator before anything that uses CUDA is imported"
        )
    if "cuda.bindings.driver" in sys.modules and any(DEVICE_FILES.glob("nvidia*")):
        raise StartError(
            "cuda.bindings is imported already and this machine has NVIDIA devices, so it may be bound to the real "
            "driver; start the emulator before cuda.bindings, cuda.core or Numba is imported"
        )


def _mapped_drivers() -> set[Path]:
    """The files mapped into this process that are a libcuda: the name of the real one ends in its version."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = {Path(line.split(maxsplit=5)[5]) for line in lines if NAME.removesuffix(".1") in line}
    return {path for path in paths if path.name.startswith(NAME.removesuffix(".1"))}


def _refuse_other_settings(running: Settings, asked: Settings) -> None:
    if running != asked:
        raise StartError(
            f"the emulator runs already, with other settings; one process has one emulator\n"
            f"  running: {_difference(running, asked)}\n"
            f"  asked:   {_difference(asked, running)}"
        )


def _difference(one: Settings, other: Settings) -> str:
    mine, theirs = one.environment(), other.environment()
    return " ".join(f"{name}={mine[name]}" for name in mine if mine[name] != theirs[name])
