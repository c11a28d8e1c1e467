"""The NVIDIA driver and cuDNN, played by small libraries that fail, crash, hang or answer, in real child processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tazza.doctor.child_driver import main
from tazza.doctor.driver import examine_driver
from tazza.doctor.examine import judge
from tazza.doctor.facts import Driver, Library
from tests.doctor.planted import HEALTHY, compile_library, hang_until_killed, plant

LIBRARY = "usr/lib/libcuda.so.535.1.2"
DRIVER = """
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
int cuDriverGetVersion(int *version) {{ *version = 12040; return 0; }}
int cuInit(unsigned flags) {{ {init} }}
int cuDeviceGetCount(int *count) {{ *count = 2; return 0; }}
"""
CUDNN = """
#include <stddef.h>
#include <stdlib.h>
size_t cudnnGetVersion(void) {{ return {version}; }}
int cudnnGraphVersionCheck(void) {{ return 0; }}
int cudnnOpsVersionCheck(void) {{ {check} }}
"""


def try_driver(root: Path, init: str, *, module: str = "535.1.2", timeout: float = 30.0) -> Driver:
    """Compile a driver whose cuInit runs `init`, and examine it."""
    compile_library(root / LIBRARY, DRIVER.format(init=init))
    (root / "usr/lib/libcuda.so.1").symlink_to("libcuda.so.535.1.2")
    version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {module}  Fri Mar 1 2024\nGCC version: 12.2\n"
    plant(root, {"proc/driver/nvidia/version": version, "dev/nvidiactl": ""})
    return examine_driver(root, [root / "usr/lib"], (), timeout=timeout)


def keys(driver: Driver) -> set[str]:
    return {finding.key for finding in judge(replace(HEALTHY, driver=driver)).findings}


def test_no_driver(tmp_path: Path) -> None:
    driver = examine_driver(tmp_path, [tmp_path], (), timeout=30)
    assert driver == Driver()
    assert keys(driver) == {"driver-absent"}


def test_a_device_without_the_library(tmp_path: Path) -> None:
    plant(tmp_path, {"dev/nvidia0": ""})
    assert keys(examine_driver(tmp_path, [tmp_path], (), timeout=30)) == {"driver-no-library"}


def test_a_driver_that_answers(tmp_path: Path) -> None:
    driver = try_driver(tmp_path, "return 0;")
    assert (driver.state, driver.cuda, driver.devices, driver.code) == ("fine", "12.4", 2, 0)
    assert (driver.library_version, driver.module_version, driver.nodes) == ("535.1.2", "535.1.2", True)
    assert not driver.emulated
    assert keys(driver) == set()


def test_an_error(tmp_path: Path) -> None:
    driver = try_driver(tmp_path, "return 999;")
    assert (driver.state, driver.call, driver.code, driver.detail) == ("failed", "cuInit", 999, "CUDA_ERROR_UNKNOWN")
    assert keys(driver) == {"driver-failed"}


def test_an_error_without_a_name(tmp_path: Path) -> None:
    assert try_driver(tmp_path, "return 12345;").detail == "CUDA error 12345"


def test_versions_that_do_not_match(tmp_path: Path) -> None:
    assert keys(try_driver(tmp_path, "return 803;", module="550.9")) == {"driver-mismatch"}


def test_the_open_kernel_module(tmp_path: Path) -> None:
    assert try_driver(tmp_path, "return 0;", module="for x86_64  550.9").module_version == "550.9"


def test_no_device_where_there_is_none(tmp_path: Path) -> None:
    driver = replace(try_driver(tmp_path, "return 100;"), nodes=False, module_version="")
    assert driver.detail == "CUDA_ERROR_NO_DEVICE"
    assert keys(driver) == {"driver-unused"}


def test_a_crash(tmp_path: Path) -> None:
    driver = try_driver(tmp_path, "abort();")
    assert (driver.state, driver.call, driver.detail) == ("crashed", "cuInit", "killed by SIGABRT")
    assert keys(driver) == {"driver-crashed"}


def test_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tmp_path / "gate"
    hang_until_killed(monkeypatch, gate)
    init = f'close(open("{gate}", O_WRONLY)); for (;;) pause(); return 0;'
    driver = try_driver(tmp_path, init, timeout=0.1)
    assert (driver.state, driver.call, driver.detail) == ("hung", "cuInit", "no answer within 0.1 s")
    assert keys(driver) == {"driver-hung"}


def test_an_exit(tmp_path: Path) -> None:
    driver = try_driver(tmp_path, "exit(3);")
    assert (driver.state, driver.call) == ("failed", "cuInit")
    assert driver.detail.startswith("exit code 3")


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    plant(tmp_path, {"usr/lib/libcuda.so.1": "no library"})
    driver = examine_driver(tmp_path, [tmp_path / "usr/lib"], (), timeout=30)
    assert (driver.state, driver.call) == ("failed", "loading")
    assert "libcuda.so.1" in driver.detail


def test_the_loaded_library_is_the_one_that_is_tried(tmp_path: Path) -> None:
    path = compile_library(tmp_path / "mine/libcuda.so.1", DRIVER.format(init="return 0;"))
    library = Library("CUDA driver", "libcuda", str(path), "", "system", loaded=True)
    driver = examine_driver(tmp_path, [tmp_path / "usr/lib"], (library,), timeout=30)
    assert (driver.library, driver.state) == (str(path), "fine")


def try_cudnn(root: Path, check: str, *, version: int = 90100, timeout: float = 30.0) -> Driver:
    """Compile a cuDNN whose second check of its parts runs `check`, and examine it."""
    path = compile_library(root / "libcudnn.so.9", CUDNN.format(version=version, check=check))
    return examine_driver(root, (), (Library("cuDNN", "cuDNN", str(path), "9", "system", True),), timeout=timeout)


@pytest.mark.parametrize(("number", "version"), [(90100, "9.1.0"), (91002, "9.10.2"), (8907, "8.9.7")])
def test_cudnn_whose_parts_fit(tmp_path: Path, number: int, version: str) -> None:
    driver = try_cudnn(tmp_path, "return 0;", version=number)
    assert (driver.cudnn_state, driver.cudnn_version, driver.cudnn_detail) == ("fine", version, "")
    assert "cudnn-broken" not in keys(driver)


def test_cudnn_whose_parts_do_not_fit(tmp_path: Path) -> None:
    driver = try_cudnn(tmp_path, "return 1003;")
    assert driver.cudnn_detail == "cudnnOpsVersionCheck returned 1003"
    assert "cudnn-broken" in keys(driver)


def test_cudnn_that_crashes(tmp_path: Path) -> None:
    driver = try_cudnn(tmp_path, "abort();")
    assert (driver.cudnn_state, driver.cudnn_detail) == ("crashed", "cudnnOpsVersionCheck: killed by SIGABRT")
    assert "cudnn-broken" in keys(driver)


def test_cudnn_that_cannot_be_loaded_alone_is_no_finding(tmp_path: Path) -> None:
    """Frameworks load what it needs before it; here only its file is looked at."""
    plant(tmp_path, {"libcudnn.so.9": "no library"})
    library = Library("cuDNN", "cuDNN", str(tmp_path / "libcudnn.so.9"), "9", "system", loaded=False)
    driver = examine_driver(tmp_path, (), (library,), timeout=30)
    assert driver.cudnn_state == "failed"
    assert "cudnn-broken" not in keys(driver)


# What runs in the child, run here ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "source", "said"),
    [
        (
            "cuda",
            DRIVER.format(init="return 0;"),
            {"emulated": False, "begin": "cuDeviceGetCount", "cuda": 12040, "devices": 2, "code": 0},
        ),
        (
            "cuda",
            DRIVER.format(init="return 3;") + "void emulator_report(void) {}",
            {"emulated": True, "begin": "cuInit", "cuda": 12040, "call": "cuInit", "code": 3},
        ),
        (
            "cudnn",
            CUDNN.format(version=90100, check="return 5;"),
            {"begin": "cudnnOpsVersionCheck", "version": 90100, "check": "cudnnOpsVersionCheck", "code": 5},
        ),
    ],
)
def test_the_child_says_what_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, source: str, said: dict[str, object]
) -> None:
    main(what, str(compile_library(tmp_path / "planted.so", source)))
    together: dict[str, object] = {}
    for line in capsys.readouterr().out.splitlines():
        together |= json.loads(line)
    assert together == said


def test_the_child_cannot_load_what_is_no_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main("cuda", str(tmp_path))
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {"error"}
