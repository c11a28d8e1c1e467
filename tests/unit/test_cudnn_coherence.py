"""Parts of cuDNN that do not fit together, planted one by one: each is a finding, and a sound installation has none."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tazza.dnn.cudnn import coherence
from tazza.dnn.cudnn.coherence import (
    Installation,
    check_loaded,
    examine_installation,
    installation_findings,
    loaded_findings,
)
from tazza.errors import BackendUnavailableError

PARTS = ("", "_graph", "_ops", "_cnn", "_adv", "_heuristic", "_engines_precompiled", "_engines_runtime_compiled")
NAMES = [f"libcudnn{part}.so.9" for part in PARTS]


class File:
    """An entry of a wheel's list of files."""

    def __init__(self, path: Path, size: int | None) -> None:
        self.name, self.size, self._path = path.name, size, path

    def locate(self) -> Path:
        return self._path


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Any]:
    """A sound installation, as `importlib.metadata` sees one."""
    folder = tmp_path / "nvidia" / "cudnn" / "lib"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_bytes(b"12345")
    files = [File(folder / name, 5) for name in NAMES] + [File(folder / "__init__.py", 0)]
    return {
        "nvidia-cudnn-cu13": SimpleNamespace(version="9.28.0.42", files=files),
        "nvidia-cudnn-frontend": SimpleNamespace(version="1.23.0", files=[]),
    }


def examined(wheels: dict[str, Any]) -> Installation:
    def find(name: str) -> Any:
        if name not in wheels:
            raise PackageNotFoundError(name)
        return wheels[name]

    return examine_installation(find)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="plans are made on Linux")


@linux
def test_a_sound_installation_has_no_findings(wheels: dict[str, Any]) -> None:
    found = examined(wheels)
    assert (found.wheel, found.version, found.front_end) == ("nvidia-cudnn-cu13", "9.28.0.42", "1.23.0")
    assert found.number == 92800
    assert found.library.name == "libcudnn.so.9"
    assert sorted(path.name for path in found.files) == sorted(NAMES)


@linux
@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        (["nvidia-cudnn-cu13"], "nvidia-cudnn-cu13"),
        (["nvidia-cudnn-frontend"], "nvidia-cudnn-frontend"),
        (["nvidia-cudnn-cu13", "nvidia-cudnn-frontend"], "nvidia-cudnn-cu13, nvidia-cudnn-frontend"),
    ],
)
def test_missing_wheels_are_named(wheels: dict[str, Any], gone: list[str], missing: str) -> None:
    for name in gone:
        del wheels[name]
    with pytest.raises(BackendUnavailableError, match=f"not installed: {missing} ") as caught:
        examined(wheels)
    assert caught.value.hint == coherence.HINT


@linux
def test_the_wheel_for_cuda_12_will_do(wheels: dict[str, Any]) -> None:
    wheels["nvidia-cudnn-cu12"] = wheels.pop("nvidia-cudnn-cu13")
    assert examined(wheels).wheel == "nvidia-cudnn-cu12"


@linux
def test_two_wheels_over_the_same_files(wheels: dict[str, Any]) -> None:
    wheels["nvidia-cudnn-cu12"] = wheels["nvidia-cudnn-cu13"]
    with pytest.raises(BackendUnavailableError, match="nvidia-cudnn-cu12 and nvidia-cudnn-cu13 install the same files"):
        examined(wheels)


@linux
def test_a_part_of_another_version_is_seen_by_its_size(wheels: dict[str, Any]) -> None:
    file = wheels["nvidia-cudnn-cu13"].files[2]
    file.locate().write_bytes(b"of another version")
    with pytest.raises(BackendUnavailableError, match=r"libcudnn_ops\.so\.9 has 18 bytes, and 5 in nvidia-cudnn-cu13"):
        examined(wheels)
    file.size = None  # a list without sizes says nothing
    assert examined(wheels).number == 92800


@linux
def test_a_part_that_was_deleted(wheels: dict[str, Any]) -> None:
    wheels["nvidia-cudnn-cu13"].files[3].locate().unlink()
    with pytest.raises(BackendUnavailableError, match=r"libcudnn_cnn\.so\.9 is missing"):
        examined(wheels)


@linux
def test_a_part_that_the_wheel_does_not_have(wheels: dict[str, Any]) -> None:
    del wheels["nvidia-cudnn-cu13"].files[5]
    with pytest.raises(BackendUnavailableError, match=r"nvidia-cudnn-cu13 lists no libcudnn_heuristic\.so\.9"):
        examined(wheels)


@linux
def test_a_wheel_without_a_list_has_nothing(wheels: dict[str, Any]) -> None:
    wheels["nvidia-cudnn-cu13"].files = None
    with pytest.raises(BackendUnavailableError, match=r"lists no libcudnn\.so\.9"):
        examined(wheels)


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BackendUnavailableError, match="plans are made on Linux, and this is darwin"):
        examine_installation()


def sound(tmp_path: Path) -> Installation:
    return Installation("nvidia-cudnn-cu13", "9.28.0.42", "1.23.0", {tmp_path / name: (5, 5) for name in NAMES})


def test_parts_in_several_folders(tmp_path: Path) -> None:
    files = {tmp_path / str(number % 2) / name: (5, 5) for number, name in enumerate(NAMES)}
    [finding] = installation_findings(replace(sound(tmp_path), files=files))
    assert finding.startswith("the parts lie in several folders: ")


def test_another_major_version(tmp_path: Path) -> None:
    [finding] = installation_findings(replace(sound(tmp_path), version="8.9.7.29"))
    assert finding == "nvidia-cudnn-cu13 is of version 8.9.7.29, expected 9"
    assert replace(sound(tmp_path), version="10").number == 100000


SOUND = {"version": 92800, "front_version": 92800, "checks": {"Graph": 0, "Ops": 0}}


def test_loaded_parts_that_fit(tmp_path: Path) -> None:
    said = SOUND | {"files": [str(tmp_path / name) for name in NAMES]}
    assert not loaded_findings(sound(tmp_path), said)
    check_loaded(sound(tmp_path), said)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"version": 91000}, "libcudnn is of version 91000, and 92800 is installed"),
        ({"front_version": 91000}, "the libcudnn that the front end found is of version 91000, and 92800 is installed"),
        ({"checks": {"Cnn": 1002}}, "cudnnCnnVersionCheck says 1002: it is of another version than libcudnn"),
        ({"files": ["/usr/lib/libcudnn_ops.so.9"]}, "/usr/lib/libcudnn_ops.so.9 was loaded, and the others lie in "),
    ],
)
def test_loaded_parts_that_do_not_fit(tmp_path: Path, change: dict[str, Any], finding: str) -> None:
    [found] = loaded_findings(sound(tmp_path), SOUND | change)
    assert found.startswith(finding)
    with pytest.raises(BackendUnavailableError, match="LD_LIBRARY_PATH"):
        check_loaded(sound(tmp_path), SOUND | change)
