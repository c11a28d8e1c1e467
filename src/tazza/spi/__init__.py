"""What a backend implements: one driver class over opaque handles and integer addresses.

A third party ships a package with an entry point in the group ``tazza.backends``::

    [project.entry-points."tazza.backends"]
    npu = "my_package.driver:create_driver"

``create_driver()`` takes no argument, returns a :class:`Driver`, and raises
:class:`tazza.errors.BackendUnavailableError` with a reason where the backend cannot be used.
"""

from tazza.spi.driver import Driver as Driver
from tazza.spi.values import Address as Address
from tazza.spi.values import Box as Box
from tazza.spi.values import Capabilities as Capabilities
from tazza.spi.values import CopyKind as CopyKind
from tazza.spi.values import DeviceInfo as DeviceInfo
from tazza.spi.values import Handle as Handle
from tazza.spi.values import KernelInfo as KernelInfo
from tazza.spi.values import Level as Level
from tazza.spi.values import MemoryInfo as MemoryInfo
from tazza.spi.values import MemoryUse as MemoryUse

SPI_VERSION = 1
"""Raised by one whenever a driver written for the version before would no longer be right."""

__all__ = [
    "SPI_VERSION",
    "Address",
    "Box",
    "Capabilities",
    "CopyKind",
    "DeviceInfo",
    "Driver",
    "Handle",
    "KernelInfo",
    "Level",
    "MemoryInfo",
    "MemoryUse",
]
