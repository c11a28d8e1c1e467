"""Devices described by their figures, for cuDNN to plan for without having one.

cuDNN reads such a description as JSON (`CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION`) and believes every word: a device
of -1 multiprocessors gets plans too. So the figures are checked here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, final

from tazza.errors import ArgumentError

__all__ = ["A100", "H100", "DeviceDescription"]

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30

# Fields whose names in cuDNN's JSON are not theirs in camel case.
_KEYS = {
    "name": "deviceName",
    "compute_capability": "deviceVer",
    "driver_version": "driverVer",
    "max_grid": "maxGridSize",
    "max_block": "maxBlockSize",
    "registers_per_block": "regsPerBlock",
    "multiprocessors": "multiProcessorCount",
    "shared_memory_per_block": "maxSharedMemoryPerBlock",
    "shared_memory_per_block_optin": "maxSharedMemoryPerBlockOptin",
    "shared_memory_reserved": "reservedSharedMemoryPerBlock",
    "registers_per_multiprocessor": "maxRegistersPerSM",
    "blocks_per_multiprocessor": "maxCtasPerSM",
    "threads_per_block": "maxThreadsPerBlock",
    "threads_per_multiprocessor": "maxThreadsPerSM",
    "cooperative_launch": "supportCoopLaunch",
    "memory": "totalGlobalMem",
    "clock_khz": "smClockRateKHz",
    "memory_clock_khz": "memClockRateKHz",
    "memory_bus_bits": "memoryBusWidth",
    "l2_cache": "l2CacheSize",
    "warp_size": "warpSize",
    "pci_device_id": "pciDeviceId",
    "tcc_driver": "isTccDriver",
    "device_id": "cudaDeviceId",
}
_ZERO_IS_FINE = {"pci_device_id", "device_id", "shared_memory_reserved"}
_OPTIONAL = ("smCountOrigin", "oversizedSharedMemoryPerBlock")


@final
@dataclass(frozen=True, slots=True)
class DeviceDescription:
    """The figures of a CUDA device that cuDNN plans by; sizes in bytes, clocks in kHz.

    Args:
        name: as the driver calls it.
        compute_capability: (major, minor).
        multiprocessors: those that are switched on.
        memory: bytes in all.
        clock_khz: highest clock of the multiprocessors.
        memory_clock_khz: of the memory; twice that is transferred per line and second.
        memory_bus_bits: lines.
        l2_cache: bytes.
        shared_memory_per_block_optin: the most that a block can have, which depends on the compute capability.

    The others are equal on all devices of compute capability 8.0 and 9.0.

    Raises:
        ArgumentError: a figure has the wrong type, is not positive, or contradicts another one.

    >>> H100.compute_capability, H100.multiprocessors
    ((9, 0), 132)
    >>> from dataclasses import replace
    >>> replace(H100, multiprocessors=-1)
    Traceback (most recent call last):
    tazza.errors.ArgumentError: multiprocessors: got -1 (int), expected a positive integer
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    memory: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    l2_cache: int
    shared_memory_per_block_optin: int
    shared_memory_per_block: int = 48 * _KIB
    shared_memory_reserved: int = 1 * _KIB
    registers_per_block: int = 64 * _KIB
    registers_per_multiprocessor: int = 64 * _KIB
    threads_per_block: int = 1024
    threads_per_multiprocessor: int = 2048
    blocks_per_multiprocessor: int = 32
    warp_size: int = 32
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    max_block: tuple[int, int, int] = (1024, 1024, 64)
    cooperative_launch: bool = True
    tcc_driver: bool = False
    driver_version: int = 13000
    pci_device_id: int = 0
    device_id: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ArgumentError.of("name", self.name, "a device's name")
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        if not 5 <= self.compute_capability[0] <= 99:
            raise ArgumentError.of("compute_capability", self.compute_capability, "(5, 0) or newer")
        if self.warp_size != 32:
            raise ArgumentError.of("warp_size", self.warp_size, "32, as on every CUDA device")
        for small, large in _ORDER:
            if getattr(self, small) > getattr(self, large):
                most = f"at most {large}, which is {getattr(self, large)}"
                raise ArgumentError.of(small, getattr(self, small), most)

    @property
    def sm_version(self) -> int:
        """The compute capability as cuDNN's front end wants it, for example 90."""
        major, minor = self.compute_capability
        return major * 10 + minor

    @property
    def memory_bandwidth(self) -> int:
        """Bytes per second that the memory can move at most, by its clock and width."""
        return 2 * self.memory_clock_khz * 1000 * self.memory_bus_bits // 8

    def to_json(self) -> str:
        """The description as cuDNN reads it: one object with 24 keys."""
        values: dict[str, Any] = {key: getattr(self, field) for field, key in _KEYS.items()}
        values["deviceVer"] = self.sm_version * 10
        values |= {key: int(values[key]) for key in ("isTccDriver", "supportCoopLaunch")}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> DeviceDescription:
        """Read what cuDNN writes about a device, for example ``create_device_properties(0).serialize()`` on one.

        Raises:
            ArgumentError: it is no such object, a key is missing or unknown, or a figure is refused.
        """
        try:
            values = json.loads(text)
        except (TypeError, ValueError):
            values = None
        if not isinstance(values, dict):
            raise ArgumentError.of("text", text, "a JSON object with the figures of a device")
        missing = sorted(set(_KEYS.values()) - values.keys())
        unknown = sorted(values.keys() - {*_KEYS.values(), *_OPTIONAL})
        if missing or unknown:
            raise ArgumentError.of("text", ", ".join(missing + unknown), "no key missing and none that is unknown")
        if type(values["deviceVer"]) is not int:
            raise ArgumentError.of("deviceVer", values["deviceVer"], "an integer, for example 900")
        found = {field: values[key] for field, key in _KEYS.items()}
        found |= {field: tuple(value) for field, value in found.items() if isinstance(value, list)}
        found["compute_capability"] = divmod(values["deviceVer"] // 10, 10)
        for flag in ("tcc_driver", "cooperative_launch"):
            found[flag] = bool(found[flag]) if found[flag] in (0, 1) else found[flag]
        return cls(**found)


# Each figure with one that it cannot exceed.
_ORDER = (
    ("shared_memory_per_block", "shared_memory_per_block_optin"),
    ("shared_memory_reserved", "shared_memory_per_block"),
    ("registers_per_block", "registers_per_multiprocessor"),
    ("threads_per_block", "threads_per_multiprocessor"),
    ("blocks_per_multiprocessor", "threads_per_multiprocessor"),
    ("l2_cache", "memory"),
)


def _check_type(field: str, value: object, kind: str) -> None:
    if kind == "str":
        return
    if kind == "bool":
        if type(value) is not bool:
            raise ArgumentError.of(field, value, "True or False")
    elif kind == "int":
        least = 0 if field in _ZERO_IS_FINE else 1
        if type(value) is not int or value < least:
            raise ArgumentError.of(field, value, "0 or a positive integer" if least == 0 else "a positive integer")
    else:
        count, least = kind.count("int"), 0 if field == "compute_capability" else 1
        if type(value) is not tuple or len(value) != count or not all(type(n) is int and n >= least for n in value):
            raise ArgumentError.of(field, value, f"{count} integers of {least} or more")


# Multiprocessors, L2 cache, memory and its bus: NVIDIA's "H100 Tensor Core GPU Architecture" and "A100 Tensor Core GPU
# Architecture" papers. Limits per block and multiprocessor: the table of compute capabilities in the CUDA C++
# Programming Guide (227 and 163 KiB of shared memory for a block). Clocks: NVIDIA's data sheets; the memory's give the
# published 3.35 and 2.04 TB/s.
H100 = DeviceDescription(
    name="NVIDIA H100 80GB HBM3",
    compute_capability=(9, 0),
    multiprocessors=132,
    memory=80 * _GIB,
    clock_khz=1_980_000,
    memory_clock_khz=2_619_000,
    memory_bus_bits=5120,
    l2_cache=50 * _MIB,
    shared_memory_per_block_optin=227 * _KIB,
)
"""H100, SXM5 module with 80 GB, by public specifications."""

A100 = DeviceDescription(
    name="NVIDIA A100-SXM4-80GB",
    compute_capability=(8, 0),
    multiprocessors=108,
    memory=80 * _GIB,
    clock_khz=1_410_000,
    memory_clock_khz=1_593_000,
    memory_bus_bits=5120,
    l2_cache=40 * _MIB,
    shared_memory_per_block_optin=163 * _KIB,
)
"""A100, SXM4 module with 80 GB, by public specifications."""
