"""Descriptions of devices: what cuDNN would believe without a look is checked, and the figures add up."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from tazza.dnn.cudnn import A100, H100, DeviceDescription
from tazza.errors import ArgumentError

# The 24 keys without one of which cuDNN 9.28 refuses a description.
MANDATORY = """
    maxGridSize maxBlockSize regsPerBlock multiProcessorCount warpSize maxSharedMemoryPerBlock
    maxSharedMemoryPerBlockOptin reservedSharedMemoryPerBlock maxRegistersPerSM maxCtasPerSM maxThreadsPerBlock
    maxThreadsPerSM pciDeviceId isTccDriver supportCoopLaunch totalGlobalMem smClockRateKHz memClockRateKHz
    memoryBusWidth l2CacheSize cudaDeviceId deviceVer driverVer deviceName
"""


@pytest.mark.parametrize("device", [H100, A100], ids=lambda device: device.name)
def test_a_description_has_the_mandatory_keys_and_comes_back(device: DeviceDescription) -> None:
    text = device.to_json()
    values = json.loads(text)
    assert sorted(values) == sorted(MANDATORY.split())
    assert not [key for key, value in values.items() if isinstance(value, bool)], "cuDNN wants 0 and 1"
    assert DeviceDescription.from_json(text) == device


def test_the_figures_are_the_published_ones() -> None:
    assert H100.sm_version == 90
    assert json.loads(H100.to_json())["deviceVer"] == 900
    assert (H100.multiprocessors, A100.multiprocessors) == (132, 108)
    assert H100.shared_memory_per_block_optin == 232_448
    assert A100.shared_memory_per_block_optin == 166_912
    # 3.35 TB/s and 2,039 GB/s in NVIDIA's data sheets.
    assert round(H100.memory_bandwidth / 1e12, 2) == 3.35
    assert round(A100.memory_bandwidth / 1e9) == 2039


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "name: got ' '"),
        ({"name": 7}, "name: got 7"),
        ({"multiprocessors": -1}, "multiprocessors: got -1"),
        ({"multiprocessors": 0}, "multiprocessors: got 0"),
        ({"multiprocessors": 132.0}, "multiprocessors: got 132.0"),
        ({"memory": True}, "memory: got True"),
        ({"compute_capability": 90}, "compute_capability: got 90"),
        ({"compute_capability": (9,)}, r"compute_capability: got \(9,\)"),
        ({"compute_capability": (3, 0)}, r"compute_capability: got \(3, 0\)"),
        ({"compute_capability": (9, -1)}, r"compute_capability: got \(9, -1\)"),
        ({"warp_size": 64}, "warp_size: got 64"),
        ({"max_grid": (1, 2)}, r"max_grid: got \(1, 2\)"),
        ({"max_block": (1024, 0, 64)}, r"max_block: got \(1024, 0, 64\)"),
        ({"cooperative_launch": 1}, "cooperative_launch: got 1"),
        ({"pci_device_id": -1}, "pci_device_id: got -1 .*0 or a positive integer"),
        ({"shared_memory_per_block": 1 << 20}, "shared_memory_per_block: got .*at most shared_memory_per_block_optin"),
        ({"registers_per_block": 1 << 20}, "registers_per_block: got .*at most registers_per_multiprocessor"),
        ({"threads_per_block": 4096}, "threads_per_block: got .*at most threads_per_multiprocessor"),
        ({"memory": 1 << 20}, "l2_cache: got .*at most memory"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(H100, **change)


def test_every_figure_is_checked() -> None:
    """No field is left to cuDNN, which believes anything."""
    for field in fields(H100):
        with pytest.raises(ArgumentError, match=f"^{field.name}: got"):
            replace(H100, **dict[str, Any]({field.name: object()}))


def test_what_cudnn_writes_on_a_device_is_read() -> None:
    values = json.loads(A100.to_json()) | {"smCountOrigin": 0, "oversizedSharedMemoryPerBlock": 0, "deviceVer": 860}
    assert DeviceDescription.from_json(json.dumps(values)).compute_capability == (8, 6)


def changed(**change: object) -> str:
    return json.dumps({key: value for key, value in (json.loads(H100.to_json()) | change).items() if value is not None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "text: got"),
        ("{", "text: got"),
        (None, "text: got None"),
        (changed(warpSize=None), "text: got 'warpSize'"),
        (changed(colour="green"), "text: got 'colour'"),
        (changed(deviceVer="900"), "deviceVer: got '900'"),
        (changed(isTccDriver=2), "tcc_driver: got 2"),
        (changed(maxGridSize=7), "max_grid: got 7"),
    ],
)
def test_a_text_that_is_no_description_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DeviceDescription.from_json(text)
