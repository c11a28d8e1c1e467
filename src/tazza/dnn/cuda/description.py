"""A CUDA device as cuDNN's planner wants it described, by what its driver says."""

from __future__ import annotations

from typing import Any, Final

from tazza.core.runtime import DeviceRuntime
from tazza.dnn.cudnn.devices import DeviceDescription

__all__ = ["description_of", "identity_of"]

# Fields of a description with the driver's attributes that they are.
_ATTRIBUTES: Final = {
    "registers_per_block": "MAX_REGISTERS_PER_BLOCK",
    "multiprocessors": "MULTIPROCESSOR_COUNT",
    "shared_memory_per_block": "MAX_SHARED_MEMORY_PER_BLOCK",
    "shared_memory_per_block_optin": "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
    "shared_memory_reserved": "RESERVED_SHARED_MEMORY_PER_BLOCK",
    "registers_per_multiprocessor": "MAX_REGISTERS_PER_MULTIPROCESSOR",
    "blocks_per_multiprocessor": "MAX_BLOCKS_PER_MULTIPROCESSOR",
    "threads_per_block": "MAX_THREADS_PER_BLOCK",
    "threads_per_multiprocessor": "MAX_THREADS_PER_MULTIPROCESSOR",
    "clock_khz": "CLOCK_RATE",
    "memory_clock_khz": "MEMORY_CLOCK_RATE",
    "memory_bus_bits": "GLOBAL_MEMORY_BUS_WIDTH",
    "l2_cache": "L2_CACHE_SIZE",
    "warp_size": "WARP_SIZE",
    "pci_device_id": "PCI_DEVICE_ID",
}
_FLAGS: Final = {"cooperative_launch": "COOPERATIVE_LAUNCH", "tcc_driver": "TCC_DRIVER"}
_COMPUTE: Final = ("COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR")
_EXTENTS: Final = {"max_grid": "MAX_GRID_DIM", "max_block": "MAX_BLOCK_DIM"}


def description_of(runtime: DeviceRuntime) -> DeviceDescription:
    """Describe a device; makes no context on it.

    Raises:
        ArgumentError: a figure makes no sense, as one that the driver does not tell; names it.
    """
    driver: Any = runtime.driver
    info = runtime.info
    figures: dict[str, Any] = dict(zip(_ATTRIBUTES, _asked(runtime, *_ATTRIBUTES.values()), strict=True))
    figures |= {name: bool(value) for name, value in zip(_FLAGS, _asked(runtime, *_FLAGS.values()), strict=True)}
    for name, attribute in _EXTENTS.items():
        figures[name] = tuple(_asked(runtime, *(f"{attribute}_{axis}" for axis in "XYZ")))
    major, minor = _asked(runtime, *_COMPUTE)
    return DeviceDescription(
        name=info.title,
        compute_capability=(major, minor),
        memory=info.memory_total,
        driver_version=driver.version(),
        device_id=info.ordinal,
        **figures,
    )


def identity_of(runtime: DeviceRuntime) -> tuple[int, int]:
    """What cuDNN tells devices apart by: 100 times the compute capability, and the number of multiprocessors."""
    major, minor, count = _asked(runtime, *_COMPUTE, _ATTRIBUTES["multiprocessors"])
    return major * 100 + minor * 10, count


def _asked(runtime: DeviceRuntime, *names: str) -> list[int]:
    driver: Any = runtime.driver
    found: list[int] = driver.attributes(runtime.info, *names)
    return found
