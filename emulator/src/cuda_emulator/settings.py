"""The settings of an emulator and their one table: a field, its variable in the environment, its option.

The C side reads the variables once, when the library is loaded (c/settings.c).
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cuda_emulator.faults import Fault, faults_of, text_of

PREFIX = "CUDA_EMULATOR_"
MOST_DEVICES = 16

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one emulator is like. Made by ``Settings.of``, which reads every form that a value may have.

    Attributes:
        devices: 1 to 16.
        memory: bytes, one number for each device.
        peers: ``all``, ``none`` or pairs such as ``0-1,1-0``: the first may access memory of the second.
        seed: of jitter and of faults at random.
        jitter_us: each operation of a stream starts up to so many microseconds late.
        poison: the byte that fills new and freed memory; None leaves it alone.
        red_zones: bytes on both sides of each allocation, checked when it is freed and when a stream is waited for.
        faults: injected from the start.
        trace: the file to which calls and operations are appended, a JSON object a line.
        version: the version that the driver claims, as 13000; None: that of the header it was built with.
        compute: the compute capability that the devices claim.
        timeout_s: seconds after which a wait inside the emulator gives up.
        libraries: whether the emulated libcudnn.so.9, libcublas.so.13 and libcurand.so.10 are there too.
    """

    devices: int = 2
    memory: tuple[int, ...] = (256 << 20,) * 2
    peers: str = "all"
    seed: int = 0
    jitter_us: int = 0
    poison: int | None = 0xCB
    red_zones: int = 64
    faults: tuple[Fault, ...] = ()
    trace: Path | None = None
    version: int | None = None
    compute: str = "9.0"
    timeout_s: int = 60
    libraries: bool = False

    @classmethod
    def of(cls, **given: object) -> "Settings":
        """Settings from values or texts; None and what is not given take the default.

        Raises:
            ValueError: a value is not possible; the message names the field, the value and what was expected.
            TypeError: a name that is no setting.
        """
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in TABLE:
                raise TypeError(f"{name!r} is not a setting of the emulator; there are {', '.join(TABLE)}")
            if value is not None:
                try:
                    values[name] = TABLE[name].read(value)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        devices = values.get("devices", cls.devices)
        memory = values.get("memory", cls.memory[:1])
        if len(memory) not in (1, devices):
            raise ValueError(f"memory: {len(memory)} sizes for {devices} devices; expected one, or one for each")
        values["memory"] = memory * devices if len(memory) == 1 else memory
        for end in map(int, re.findall(r"\d+", values.get("peers", ""))):
            if end >= devices:
                raise ValueError(f"peers: {values['peers']!r} names device {end}; there are {devices}")
        return cls(**values)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **given: object) -> "Settings":
        """Settings from CUDA_EMULATOR_*; what is ``given`` (and not None) counts more.

        Raises:
            ValueError: as ``of``.
        """
        environ = os.environ if environ is None else environ
        told: dict[str, object] = {name: environ.get(PREFIX + name.upper()) or None for name in TABLE}
        return cls.of(**told | {name: value for name, value in given.items() if value is not None})

    def environment(self) -> dict[str, str]:
        """The variables that say this. An empty one is read as its default, so none is left to what was set before."""
        return {PREFIX + name.upper(): option.write(getattr(self, name)) for name, option in TABLE.items()}

    def __str__(self) -> str:
        sizes = sorted(set(self.memory), reverse=True)
        devices = "1 device" if self.devices == 1 else f"{self.devices} devices"
        return (
            f"{devices} of {' and '.join(size_text(size) for size in sizes)}, peers {self.peers}, seed {self.seed}, "
            f"jitter {self.jitter_us} us"
            + (f", faults {text_of(self.faults)}" if self.faults else "")
            + (", with libcudnn, libcublas and libcurand" if self.libraries else "")
        )


@dataclass(frozen=True)
class Option:
    """A row of the table: how a field is read from a value or a text, how it is written, and its help."""

    read: Callable[[Any], object]
    write: Callable[[Any], str]
    metavar: str
    help: str


def size_of(value: object) -> int:
    """Bytes from a number or from a text such as ``256MiB``.

    Raises:
        ValueError: it is neither, or not positive.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    unit = _UNITS.get(found[2].upper()) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise ValueError(f"{value!r} is not a size; expected bytes or a text such as 256MiB")
    return size


def size_text(size: int) -> str:
    """Bytes in the largest unit that divides them."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def _whole(least: int, most: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        try:
            number = int(value, 0) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
        return number

    return read


def _sizes(value: str | int | Iterable[str | int]) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    return tuple(size_of(part) for part in parts)


def _sizes_text(sizes: tuple[int, ...]) -> str:
    """One size where all are equal, so that an emulator inside this one may have another number of devices."""
    return ",".join(map(str, sizes if len(set(sizes)) > 1 else sizes[:1]))


def _peers(value: str | Iterable[tuple[int, int]]) -> str:
    text = value if isinstance(value, str) else ",".join(f"{one}-{other}" for one, other in value) or "none"
    if not re.fullmatch(r"all|none|\d+-\d+(,\d+-\d+)*", text):
        raise ValueError(f"{value!r} is not all, none, or pairs such as 0-1,1-0")
    return text


def _poison(value: object) -> int | None:
    return None if value == "off" or value is False else _whole(0, 255)(value)


def _switch(value: object) -> bool:
    text = str(value).lower()
    if text not in ("on", "off", "true", "false", "1", "0"):
        raise ValueError(f"{value!r} is not on or off")
    return text in ("on", "true", "1")


def _compute(value: object) -> str:
    if not re.fullmatch(r"\d+\.\d", str(value)):
        raise ValueError(f"{value!r} is not a compute capability such as 9.0")
    return str(value)


def _trace(value: str | Path) -> Path:
    return Path(value).absolute()


def _or_empty(value: object) -> str:
    return "" if value is None else str(value)


TABLE: dict[str, Option] = {
    "devices": Option(_whole(1, MOST_DEVICES), str, "N", "number of devices, 1 to 16 (2)"),
    "memory": Option(_sizes, _sizes_text, "SIZE[,SIZE...]", "memory of every or of each device (256MiB)"),
    "peers": Option(_peers, str, "PAIRS", "who may access whose memory: all, none, or pairs such as 0-1,1-0 (all)"),
    "seed": Option(_whole(0, 2**64 - 1), str, "N", "seed of jitter and of faults at random (0)"),
    "jitter_us": Option(_whole(0, 10**7), str, "US", "longest random delay of each operation, in microseconds (0)"),
    "poison": Option(
        _poison, lambda byte: "off" if byte is None else hex(byte), "BYTE", "fill of new and freed memory or off (0xCB)"
    ),
    "red_zones": Option(_whole(0, 4096), str, "BYTES", "guarded bytes around each allocation, 0 for none (64)"),
    "faults": Option(faults_of, text_of, "FAULTS", "what fails: target:when:error[:device=N][:sticky], joined by ;"),
    "trace": Option(_trace, _or_empty, "FILE", "file to which every call and operation is appended as JSON"),
    "version": Option(_whole(1000, 99990), _or_empty, "N", "driver version to claim, as 13000 (that of cuda.h)"),
    "compute": Option(_compute, str, "X.Y", "compute capability to claim (9.0)"),
    "timeout_s": Option(_whole(1, 86400), str, "S", "seconds after which a wait inside the emulator gives up (60)"),
    "libraries": Option(
        _switch,
        lambda on: "on" if on else "off",
        "on|off",
        "emulated libcudnn, libcublas and libcurand, on or off (off)",
    ),
}

assert list(TABLE) == [field.name for field in fields(Settings)]
