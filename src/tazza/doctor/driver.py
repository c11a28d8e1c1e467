"""The NVIDIA driver and cuDNN: found by their files, tried in child processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tazza.doctor.children import run_child
from tazza.doctor.facts import Driver, Library
from tazza.doctor.libraries import version_in_name
from tazza.drivers.cpu.cgroups import read

__all__ = ["examine_driver"]

_NAMES = {  # the codes that cuInit is known to return where something is wrong with the installation
    3: "CUDA_ERROR_NOT_INITIALIZED",
    34: "CUDA_ERROR_STUB_LIBRARY",
    36: "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
    46: "CUDA_ERROR_DEVICE_UNAVAILABLE",
    100: "CUDA_ERROR_NO_DEVICE",
    101: "CUDA_ERROR_INVALID_DEVICE",
    304: "CUDA_ERROR_OPERATING_SYSTEM",
    802: "CUDA_ERROR_SYSTEM_NOT_READY",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    804: "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    999: "CUDA_ERROR_UNKNOWN",
}


def examine_driver(root: Path, folders: Iterable[Path], libraries: Sequence[Library], *, timeout: float) -> Driver:
    """Find the driver's library and try it, then cuDNN's if there is one.

    Args:
        root: where the file system begins.
        folders: where the loader looks, in its order.
        libraries: what was found; a loaded one is tried rather than one that is only there.
        timeout: seconds for each child.
    """
    loaded = [one.path for one in libraries if one.name == "libcuda" and one.loaded]
    present = [str(folder / "libcuda.so.1") for folder in folders if (folder / "libcuda.so.1").is_file()]
    library = next(iter([*loaded, *present]), "")
    version = re.search(r"Module\s+(?:for \S+\s+)?(\d+(?:\.\d+)+)", read(root / "proc/driver/nvidia/version") or "")
    return Driver(
        library=library,
        library_version=version_in_name(library),
        module_version=version[1] if version else "",
        nodes=any(os.path.exists(root / "dev" / name) for name in ("nvidiactl", "nvidia0", "dxg")),
        **(_try_driver(library, timeout) if library else {}),
        **_try_cudnn(libraries, timeout),
    )


def _try_driver(library: str, timeout: float) -> dict[str, Any]:
    child = run_child("child_driver.py", ["cuda", library], timeout=timeout)
    version, code = child.last("cuda"), child.last("code")
    found: dict[str, Any] = {
        "state": child.state,
        "call": child.last("begin") or "",
        "detail": child.detail,
        "code": code or 0,
        "cuda": f"{version // 1000}.{version % 1000 // 10}" if version else "",
        "devices": child.last("devices") or 0,
        "emulated": bool(child.last("emulated")),
    }
    if child.state == "fine" and (code is None or code):
        found["state"] = "failed"
        found["detail"] = child.last("error") or _NAMES.get(code or 0, f"CUDA error {code}")
    return found


def _try_cudnn(libraries: Sequence[Library], timeout: float) -> dict[str, Any]:
    candidates = [one for one in libraries if one.name == "cuDNN"]
    if not candidates:
        return {}
    path = candidates[0].path  # loaded ones stand first
    child = run_child("child_driver.py", ["cudnn", path], timeout=timeout)
    version = child.last("version") or 0
    wrong = [f"{one['check']} returned {one['code']}" for one in child.said if one.get("check") and one["code"]]
    state, detail = child.state, child.detail
    if child.state == "fine" and (wrong or not version):
        state, detail = "failed", "; ".join(wrong) or str(child.last("error"))
    elif child.state != "fine":
        detail = f"{child.last('begin')}: {child.detail}"
    major, rest = divmod(version, 10000 if version >= 90000 else 1000)
    return {
        "cudnn": path,
        "cudnn_version": f"{major}.{rest // 100}.{rest % 100}" if version else "",
        "cudnn_state": state,
        "cudnn_detail": detail,
    }
