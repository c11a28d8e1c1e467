"""Python packages: metadata, files and requirements, planted in folders of installed packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tazza.doctor.distributions import installed
from tazza.doctor.facts import Package
from tazza.doctor.packages import find_packages
from tazza.doctor.versions import holds, numbers, parse_requirement, same_release
from tests.doctor.planted import install, plant

INIT = "numpy/__init__.py"


def look(*folders: Path) -> dict[str, Package]:
    path = [str(folder) for folder in folders]
    return {package.module: package for package in find_packages(path, installed(path))}


def test_a_sound_package(tmp_path: Path) -> None:
    install(tmp_path, "numpy", "2.4.6", {INIT: "", "numpy/version.py": 'x = 1\nversion = "2.4.6"\n'})
    assert look(tmp_path, tmp_path) == {
        "numpy": Package("numpy", ("numpy 2.4.6",), (str(tmp_path),), "2.4.6", str(tmp_path / INIT), "2.4.6")
    }


def test_a_single_file(tmp_path: Path) -> None:
    install(tmp_path, "threadpoolctl", "3.5.0", {"threadpoolctl.py": '__version__ = "3.6.0"\n'})
    package = look(tmp_path)["threadpoolctl"]
    assert (package.version, package.file_version, package.shadowed) == ("3.5.0", "3.6.0", False)


@pytest.mark.parametrize("local", ["numpy.py", INIT])
def test_a_local_file_shadows(tmp_path: Path, local: str) -> None:
    install(tmp_path / "site", "numpy", "2.4.6", {INIT: ""})
    plant(tmp_path / "here", {local: ""})
    package = look(tmp_path / "here", tmp_path / "site")["numpy"]
    assert package.shadowed
    assert package.path == str(tmp_path / "here" / local)
    assert not look(tmp_path / "site", tmp_path / "here")["numpy"].shadowed


def test_a_folder_without_a_module_shadows_only_what_is_gone(tmp_path: Path) -> None:
    install(tmp_path / "site", "numpy", "2.4.6", {INIT: ""})
    (tmp_path / "here/numpy").mkdir(parents=True)
    assert not look(tmp_path / "here", tmp_path / "site")["numpy"].shadowed
    (tmp_path / "site" / INIT).unlink()  # what an uninstaller leaves behind
    assert look(tmp_path / "site")["numpy"].shadowed


def test_a_folder_of_that_name_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    assert look(tmp_path) == {}


def test_metadata_without_a_module(tmp_path: Path) -> None:
    install(tmp_path, "scipy", "1.17", {})
    assert look(tmp_path)["scipy"].missing


def test_a_module_without_metadata_is_only_listed(tmp_path: Path) -> None:
    plant(tmp_path, {"cupy/__init__.py": '__version__ = "13.0"'})
    package = look(tmp_path)["cupy"]
    assert (package.distributions, package.file_version, package.shadowed) == ((), "13.0", False)


def test_two_copies(tmp_path: Path) -> None:
    install(tmp_path / "user", "numpy", "1.26", {INIT: ""})
    install(tmp_path / "site", "numpy", "2.4.6", {INIT: ""})
    package = look(tmp_path / "user", tmp_path / "site")["numpy"]
    assert package.distributions == ("numpy 1.26", "numpy 2.4.6")
    assert package.folders == (str(tmp_path / "user"), str(tmp_path / "site"))
    assert not package.shadowed


def test_two_distributions_of_one_module(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0", {"onnxruntime/__init__.py": ""})
    install(
        tmp_path, "onnxruntime-gpu", "1.31.0", {"onnxruntime/capi/build_and_package_info.py": "cuda_version = '12.4'"}
    )
    package = look(tmp_path)["onnxruntime"]
    assert package.distributions == ("onnxruntime 1.32.0", "onnxruntime-gpu 1.31.0")
    assert package.cuda == "12.4"


def test_an_editable_installation_is_not_missing(tmp_path: Path) -> None:
    install(tmp_path, "dpctl", "0.20", {})
    plant(tmp_path, {"dpctl-0.20.dist-info/direct_url.json": '{"dir_info": {"editable": true}, "url": "file:///x"}'})
    package = look(tmp_path)["dpctl"]
    assert (package.missing, package.shadowed) == (False, False)


def test_what_it_was_built_for(tmp_path: Path) -> None:
    install(
        tmp_path, "torch", "2.13.0", {"torch/__init__.py": "", "torch/version.py": "cuda: Optional[str] = '12.4'\n"}
    )
    install(tmp_path, "cupy-cuda13x", "14.0", {"cupy/__init__.py": ""})
    install(tmp_path, "numpy", "2.0", {INIT: "", "numpy/version.py": "cuda = '1'"})
    install(tmp_path, "jax", "0.10", {"jax/__init__.py": ""})
    install(tmp_path, "jax-cuda12-plugin", "0.10", {})
    packages = look(tmp_path)
    assert [packages[name].cuda for name in ("torch", "cupy", "numpy", "jax")] == ["12.4", "13", "", "12"]
    plant(tmp_path, {"torch/version.py": "__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n"})
    assert look(tmp_path)["torch"].cuda == ""


def test_requirements(tmp_path: Path) -> None:
    requires = (
        'nvidia-cudnn-cu12 (==9.1.0.70) ; platform_system == "Linux"',
        "nvidia-nccl-cu12==2.21.5",
        "numpy>=1.26,<3",
        "scipy>2 ; extra == 'more'",
        "sympy>99",
        "jax",
        "???",
    )
    install(tmp_path, "torch", "2.13.0", {"torch/__init__.py": ""}, requires=requires)
    for name, version in (("nvidia_cudnn_cu12", "9.2.0"), ("numpy", "2.4.6"), ("scipy", "1.17"), ("sympy", "1.13")):
        install(tmp_path, name, version, {f"{name}/__init__.py": ""})
    assert look(tmp_path)["torch"].unmet == ("nvidia-cudnn-cu12==9.1.0.70 (installed: 9.2.0)",)


@pytest.mark.parametrize(
    ("clauses", "version", "met"),
    [
        ("", "1", True),
        ("==1.0", "1.0.0", True),
        ("===1.0", "1.1", False),
        ("!=1.0", "1.1", True),
        ("!=1.*", "1.1", False),
        ("==1.*", "1.1", True),
        ("<=2", "2.0.1", False),
        ("<2", "1.99", True),
        (">1.2", "1.2.1", True),
        (">=1.3, <2", "1.2", False),
        ("~=1.4", "1.9", True),
        ("~=1.4", "2.0", False),
        ("like 2", "1", True),
    ],
)
def test_clauses(clauses: str, version: str, met: bool) -> None:
    assert holds(clauses, version) is met


def test_numbers() -> None:
    assert numbers("v1.2.post3") == (1, 2)
    assert numbers("") == ()
    assert same_release("", "1.0")
    assert not same_release("2.0", "2.1.4")
    assert parse_requirement("a[b]>=1; python_version > '3'") == ("a", ">=1")
    assert parse_requirement("Some_Name") == ("some-name", "")


def test_an_interrupted_installation_is_left_out(tmp_path: Path) -> None:
    plant(tmp_path, {"scipy-1.17.dist-info/RECORD": "", "jax-1.dist-info/METADATA": "Name: jax\n\nVersion: 1\n"})
    install(tmp_path, "numpy", "2.4.6", {INIT: ""})
    plant(tmp_path, {"old.egg-info/PKG-INFO": "Name: old\nVersion: 3\n"})
    assert sorted(map(str, installed([str(tmp_path)]))) == ["numpy 2.4.6", "old 3"]
