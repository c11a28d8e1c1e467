"""``tazza devices``: every backend, its devices, or why it cannot be used."""

from __future__ import annotations

import argparse
from typing import Any

import tazza as tz
from tazza.cli.exits import ExitCode
from tazza.cli.output import build, show_json, show_table, show_text, versions
from tazza.errors import BackendUnavailableError
from tazza.util.text import format_nbytes

__all__ = ["add_arguments", "execute", "survey"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no options of its own."""


def execute(options: argparse.Namespace) -> ExitCode:
    """Print what `survey` found."""
    found = survey()
    if options.json:
        show_json({"versions": versions(), "build": build(), "backends": found})
        return ExitCode.OK
    show_text(f"tazza {tz.__version__}, {build()}\n")
    rows = [
        (device["name"], device["title"], len(device["cores"]) or "-", format_nbytes(device["memory_total"]))
        for backend in found
        for device in backend["devices"]
    ]
    show_table("Devices", ("device", "title", "cores", "memory"), rows, left=2)
    missing = [(backend["name"], backend["reason"], backend["hint"] or "-") for backend in found if backend["reason"]]
    if missing:
        show_table("Backends that cannot be used here", ("backend", "reason", "what to do"), missing, left=3)
    return ExitCode.OK


def survey() -> list[dict[str, Any]]:
    """Describe every known backend in JSON's types; one that fails is described by its reason."""
    return [_backend(status) for status in tz.backends()]


def _backend(status: tz.BackendStatus) -> dict[str, Any]:
    devices: tuple[tz.Device, ...] = ()
    reason, hint = status.reason, status.hint
    if status.usable:
        try:
            devices = tz.devices(status.name)
        except BackendUnavailableError as error:  # its package is there, its driver is not
            reason, hint = error.reason, error.hint
    return {
        "name": status.name,
        "usable": not reason,
        "reason": reason,
        "hint": hint if reason else "",
        "devices": [_device(device) for device in devices],
    }


def _device(device: tz.Device) -> dict[str, Any]:
    abilities = device.capabilities
    return {
        "name": device.name,
        "title": device.title,
        "uuid": device.uuid,
        "memory_domain": device.memory_domain,
        "memory_total": device.memory_total,
        "cores": list(device.cores),
        "array_libraries": list(abilities.array_libraries),
        "dtypes": sorted(abilities.dtypes),
        "level": abilities.level.value,
    }
