"""Checks of the NVIDIA driver: does it answer, and is it new enough? No GPU at all is only a note."""

from __future__ import annotations

from collections.abc import Iterator

from tazza.doctor.facts import Driver, Facts
from tazza.doctor.findings import Finding, found
from tazza.doctor.versions import numbers

__all__ = ["CHECKS"]

_FAMILY = "CUDA driver"
_NO_DEVICE = 100
_REINSTALL = "reinstall the NVIDIA driver, then restart the machine"
_CONTAINER = "start the container with --gpus all (NVIDIA Container Toolkit)"


def check_driver(facts: Facts) -> Iterator[Finding]:
    """The driver is whole, of one version, and answers; the first thing that is wrong is the one to say."""
    driver = facts.driver
    there = driver.nodes or bool(driver.module_version)
    if not driver.library:
        if there:
            fix = f"install the driver's library, or {_CONTAINER}"
            yield found("driver-no-library", "the kernel module is there, libcuda is not", fix, family=_FAMILY)
        else:
            yield found("driver-absent", "no NVIDIA driver", "", family=_FAMILY)
    elif _mismatch(driver):
        seen = f"kernel module {driver.module_version}, {driver.library} {driver.library_version}"
        yield found("driver-mismatch", seen, "restart the machine, or reload the module", family=_FAMILY)
    elif driver.state in {"crashed", "hung"}:
        seen = f"{driver.library}, {driver.call}: {driver.detail}"
        yield found(f"driver-{driver.state}", seen, _REINSTALL, family=_FAMILY)
    elif driver.state == "failed":
        yield _failed(driver, there)


def _mismatch(driver: Driver) -> bool:
    """Tell whether both versions are known exactly and differ, and the driver does not work in spite of it."""
    both = bool(driver.module_version) and len(numbers(driver.library_version)) > 1
    return both and driver.state != "fine" and numbers(driver.module_version) != numbers(driver.library_version)


def _failed(driver: Driver, there: bool) -> Finding:
    code = f" ({driver.code})" if driver.code else ""
    seen = f"{driver.library}, {driver.call}: {driver.detail}{code}"
    if driver.code == _NO_DEVICE and not there:
        return found("driver-unused", seen, _CONTAINER + " if there should be a device", family=_FAMILY)
    fixes = {
        34: "remove the stub library's folder from LD_LIBRARY_PATH",
        _NO_DEVICE: "unset CUDA_VISIBLE_DEVICES if it hides the device; nvidia-smi shows what is there",
        802: "systemctl start nvidia-fabricmanager",
        803: "restart the machine, or reload the module",
        804: "remove the cuda-compat folder from LD_LIBRARY_PATH, or update the driver",
    }
    return found("driver-failed", seen, fixes.get(driver.code, _REINSTALL), family=_FAMILY)


def check_age(facts: Facts) -> Iterator[Finding]:
    """The driver serves the CUDA version that packages were built for; within one major version it always does."""
    serves = numbers(facts.driver.cuda)
    for package in facts.packages:
        needs = numbers(package.cuda)
        if serves and needs and serves[0] < needs[0]:
            seen = f"{package.distributions[0]} is built for CUDA {package.cuda}, the driver serves {facts.driver.cuda}"
            fix = f"update the driver, or install a build of {package.module} for CUDA {serves[0]}"
            yield found("driver-old", seen, fix, family=_FAMILY)


CHECKS = (check_driver, check_age)
