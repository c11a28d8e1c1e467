"""Native libraries: recognised by name, read from a memory map, found where a loader looks, given to their owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from tazza.doctor.distributions import installed
from tazza.doctor.libraries import Owners, find_libraries, identify, loader_folders, parse_maps, version_in_name
from tests.doctor.planted import install, plant


@pytest.mark.parametrize(
    ("name", "family", "library"),
    [
        ("libscipy_openblas64_-32a4b2a6.so", "BLAS", "OpenBLAS"),
        ("libopenblasp-r0.3.28.so", "BLAS", "OpenBLAS"),
        ("libopenblas.so.0", "BLAS", "OpenBLAS"),
        ("libopenblas.0.dylib", "BLAS", "OpenBLAS"),
        ("libmkl_rt.so.2", "BLAS", "MKL"),
        ("mkl_rt.2.dll", "BLAS", "MKL"),
        ("libblis.so.4", "BLAS", "BLIS"),
        ("libblas.so.3", "BLAS", "reference BLAS"),
        ("libgomp-e985bcbb.so.1.0.0", "OpenMP", "libgomp"),
        ("libgomp-a34b3233-2f1a4b5c.so.1.0.0", "OpenMP", "libgomp"),
        ("libomp.so.5", "OpenMP", "libomp"),
        ("libomp.dylib", "OpenMP", "libomp"),
        ("libiomp5.so", "OpenMP", "libiomp5"),
        ("libdnnl.so.3", "oneDNN", "oneDNN"),
        ("libcuda.so.550.54.14", "CUDA driver", "libcuda"),
        ("libcudart-9335f6a2.so.12.4.127", "CUDA runtime", "cudart"),
        ("libcudnn.so.9", "cuDNN", "cuDNN"),
        ("libcudnn_ops.so.9", "cuDNN", "cuDNN ops"),
        ("libcudnn_cnn_infer.so.8.9.7", "cuDNN", "cuDNN cnn_infer"),
        ("libcublasLt.so.12", "cuBLAS", "cuBLASLt"),
        ("libnccl.so.2", "NCCL", "NCCL"),
        ("libsycl.so.8", "SYCL", "SYCL runtime"),
        ("libOpenCL-5519dec5.so.1.0.0", "OpenCL", "OpenCL loader"),
        ("libarrow.so.2600", "Arrow", "Arrow"),
        ("libonnxruntime.so.1.32.0", "ONNX Runtime", "ONNX Runtime"),
        ("onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so", "ONNX Runtime", "ONNX Runtime"),
    ],
)
def test_known_names(name: str, family: str, library: str) -> None:
    assert identify(name) == (family, library)


@pytest.mark.parametrize(
    "name",
    [
        "libz.so.1",
        "libcudagraph.so",
        "libarrow_python.so",
        "libgomp.txt",
        "libompi.so.40",
        "libompstub.a",
        "[heap]",
        "",
    ],
)
def test_other_names(name: str) -> None:
    assert identify(name) is None


def test_the_memory_map() -> None:
    text = (
        "7f00-7f01 r-xp 00000000 fd:01 12  /usr/lib/libgomp.so.1.0.0\n"
        "7f01-7f02 rw-p 00001000 fd:01 12  /usr/lib/libgomp.so.1.0.0\n"
        "7f02-7f03 r-xp 00000000 fd:01 13  /my libs/libomp.so (deleted)\n"
        "7f03-7f04 rw-p 00000000 00:00 0 \n"
        "7f04-7f05 rw-p 00000000 00:00 0  [heap]\n"
    )
    assert parse_maps(text) == {"/usr/lib/libgomp.so.1.0.0": False, "/my libs/libomp.so": True}


def test_versions_in_names_follow_links(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.550.54.14").touch()
    (tmp_path / "libcuda.so.1").symlink_to("libcuda.so.550.54.14")
    assert version_in_name(str(tmp_path / "libcuda.so.1")) == "550.54.14"
    assert version_in_name("/x/libomp.so") == ""


def test_folders_of_the_loader_in_its_order(tmp_path: Path) -> None:
    root = plant(
        tmp_path,
        {
            "etc/ld.so.conf": "# comment\ninclude /etc/ld.so.conf.d/*.conf\n/opt/last\ninclude local.d/*.conf\n",
            "etc/ld.so.conf.d/a.conf": "/opt/first  # mine\n\n/opt/gone\n",
            "etc/ld.so.conf.d/loop.conf": "include /etc/ld.so.conf.d/*.conf\n",
            "etc/local.d/x.conf": "/opt/relative\n",
        },
    )
    for name in ("opt/first", "opt/last", "opt/relative", "usr/lib", "set"):
        (root / name).mkdir(parents=True)
    found = loader_folders(root, {"LD_LIBRARY_PATH": f"{root / 'set'}::{root / 'opt/first'}"})
    names = [str(folder.relative_to(root)) for folder in found]
    assert names == ["set", "opt/first", "opt/last", "opt/relative", "usr/lib"]


def test_found_loaded_and_owned(tmp_path: Path) -> None:
    site, system, other = tmp_path / "site-packages", tmp_path / "usr/lib", tmp_path / "conda/lib"
    install(site, "torch", "2.13.0", {"torch/lib/libgomp.so.1": "", "torch/__init__.py": "", "torch/gone.so": ""})
    install(site, "scipy", "1.17", {"scipy.libs/libopenblas-0.so": ""})
    plant(tmp_path, {"site-packages/stray/libomp.so": "", "usr/lib/libcuda.so.535.1": "", "conda/lib/libiomp5.so": ""})
    (system / "libcuda.so.1").symlink_to("libcuda.so.535.1")
    (system / "libz.so").touch()
    (system / "libomp.so").symlink_to("nowhere")
    owners = Owners(installed([str(site)]), tmp_path)
    loaded = {str(site / "torch/lib/libgomp.so.1"): False, str(site / "stray/libomp.so"): True, "/lib/libc.so.6": False}
    versions = {str(site / "torch/lib/libgomp.so.1"): "5.0"}
    found = find_libraries(loaded, versions, [system, other, tmp_path / "gone"], owners)
    assert [(one.name, one.version, one.owner, one.loaded, one.deleted) for one in found] == [
        ("libgomp", "5.0", "torch 2.13.0", True, False),
        ("libomp", "", "stray (not listed by any distribution)", True, True),
        ("libiomp5", "", str(other), False, False),
        ("libcuda", "535.1", "system", False, False),
    ]
    found = find_libraries({}, {}, [], owners)
    assert [(one.name, one.owner) for one in found] == [("libgomp", "torch 2.13.0")]


def test_the_same_file_by_two_names_is_one(tmp_path: Path) -> None:
    plant(tmp_path, {"lib/libopenblas.so.0": ""})
    (tmp_path / "lib/libblas.so.3").symlink_to("libopenblas.so.0")
    [found] = find_libraries({}, {}, [tmp_path / "lib"], Owners([], tmp_path))
    assert found.name == "OpenBLAS"
