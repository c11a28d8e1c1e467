"""cuBLAS, cuDNN, cuRAND, NVRTC and the driver: where they are from and whether they fit; mixtures are planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tazza.doctor.collect import Sources, collect
from tazza.doctor.examine import judge
from tazza.doctor.facts import Driver, Facts
from tazza.drivers.cuda.coherence import Part, incoherences, owner_of
from tests.cuda.conftest import missing, run_emulated
from tests.doctor.planted import install, plant

CUDA_KEYS = {"cuda-majors", "cuda-sources", "cuda-split", "cudnn-mixed", "cudnn-several", "driver-old"}

CUBLAS_12 = ("nvidia-cublas-cu12", "12.9.1.4", "nvidia/cublas/lib", "libcublas.so.12")
CUBLAS_13 = ("nvidia-cublas", "13.1.0.3", "nvidia/cu13/lib", "libcublas.so.13")
CUDNN_12 = ("nvidia-cudnn-cu12", "9.5.0.50", "nvidia/cudnn/lib", "libcudnn.so.9")
CUDNN_13 = ("nvidia-cudnn-cu13", "9.5.0.50", "nvidia/cudnn/lib", "libcudnn.so.9")
CURAND_13 = ("nvidia-curand", "10.4.0.35", "nvidia/cu13/lib", "libcurand.so.10")
NVRTC_12 = ("nvidia-cuda-nvrtc-cu12", "12.9.86", "nvidia/cuda_nvrtc/lib", "libnvrtc.so.12")
NVRTC_13 = ("nvidia-cuda-nvrtc", "13.0.88", "nvidia/cu13/lib", "libnvrtc.so.13")
SYSTEM = ("", "", "usr/lib", "libcudnn.so.9.5.0")

MIXTURES = {
    "one-cuda": ([CUBLAS_13, CUDNN_13, CURAND_13, NVRTC_13], set()),
    "the-older-cuda": ([CUBLAS_12, CUDNN_12, NVRTC_12], set()),
    "both-and-one-fits": ([CUBLAS_12, CUBLAS_13, CUDNN_13, NVRTC_12, NVRTC_13], set()),
    "cudnn-for-another": ([CUBLAS_13, CUDNN_12, CURAND_13], {"cuda-majors"}),
    "nvrtc-for-another": ([CUBLAS_13, CUDNN_13, NVRTC_12], {"cuda-majors"}),
    "a-wheel-and-the-system": ([CUBLAS_13, SYSTEM], {"cuda-sources"}),
    "a-copy-in-the-system": ([CUBLAS_13, CUDNN_13, SYSTEM], set()),
    "another-copy-in-the-system": (
        [CUBLAS_13, CUDNN_13, ("", "", "usr/lib", "libcudnn.so.9.1.0")],
        {"cudnn-several"},
    ),
    "parts-of-two-versions": (
        [CUBLAS_13, ("", "", "usr/lib", "libcublas.so.13.1.0"), SYSTEM, ("", "", "usr/lib", "libcudnn_ops.so.9.4.0")],
        {"cudnn-mixed"},
    ),
    "none": ([], set()),
}


def planted(root: Path, files: list[tuple[str, str, str, str]], cuda: str = "13.0") -> Facts:
    """Facts of a system with these wheels and files, and a driver that serves a CUDA version."""
    site = root / "site"
    for name, version, folder, file in files:
        if name:
            install(site, name, version, {f"{folder}/{file}": "no library"})
        else:
            plant(root, {f"{folder}/{file}": "no library"})
    plant(root, {"proc/self/maps": ""})
    found = collect(Sources(root, (str(site),), {}), timeout=30)
    return replace(found, driver=Driver("/usr/lib/libcuda.so.1", state="fine", cuda=cuda))


@pytest.mark.parametrize("name", MIXTURES)
def test_a_planted_mixture_is_found(tmp_path: Path, name: str) -> None:
    files, expected = MIXTURES[name]
    report = judge(planted(tmp_path, files))
    assert {finding.key for finding in report.findings} & CUDA_KEYS == expected
    for finding in report.findings:
        if finding.key in expected:
            assert finding.fix


def test_provenance_is_told(tmp_path: Path) -> None:
    facts = planted(tmp_path, [CUBLAS_13, CUDNN_13, NVRTC_13])
    told = {one.name: (Path(one.path).name, one.owner) for one in facts.libraries if not one.loaded}
    assert told == {
        "NVRTC": ("libnvrtc.so.13", "nvidia-cuda-nvrtc 13.0.88"),
        "cuDNN": ("libcudnn.so.9", "nvidia-cudnn-cu13 9.5.0.50"),
        "cuBLAS": ("libcublas.so.13", "nvidia-cublas 13.1.0.3"),
    }


def test_a_driver_that_is_too_old_is_found(tmp_path: Path) -> None:
    report = judge(planted(tmp_path, [CUBLAS_13, CUDNN_13], cuda="12.4"))
    [finding] = [one for one in report.findings if one.key == "driver-old" and one.family == "CUDA libraries"]
    assert "libcublas.so.13" in finding.seen
    assert "12.4" in finding.seen


def test_parts_that_are_loaded_from_two_folders() -> None:
    first, second = (Part("cublas", f"/{name}/libcublas.so.13", "13.1.0", f"/{name}") for name in "ab")
    assert [one.key for one in incoherences([first, second])] == ["cuda-split"]
    assert not incoherences([first, second], loaded=False)
    other = second._replace(version="12.4.0")
    assert not incoherences([first, other]), "another major version has other names for its functions' library"


def test_the_owner_of_a_file_is_the_distribution_that_lists_it(tmp_path: Path) -> None:
    install(tmp_path, "nvidia-cudnn-cu13", "9.5.0.50", {"nvidia/cudnn/lib/libcudnn.so.9": ""})
    plant(tmp_path, {"nvidia/cudnn/lib/libcudnn_ops.so.9": ""})
    folder = tmp_path / "nvidia/cudnn/lib"
    assert owner_of(folder / "libcudnn.so.9") == "nvidia-cudnn-cu13 9.5.0.50"
    assert owner_of(folder / "libcudnn_ops.so.9") == str(folder)
    assert owner_of(Path("/usr/lib/libcudnn.so.9")) == "system"


def test_nvrtc_that_does_not_fit_is_refused_before_it_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    from tazza.drivers.cuda import libraries

    monkeypatch.setattr(libraries, "_fitting", set())
    monkeypatch.setattr(libraries, "is_emulated", lambda: False)
    monkeypatch.setattr(libraries, "_served", lambda: "12.4")
    monkeypatch.setattr(libraries, "_mapped", lambda name: [Path(f"/x/lib{name}.so.13")])
    for _ in range(2):
        with pytest.raises(ImportError, match=r"libnvrtc.so.13 .* is for CUDA 13; the driver serves 12.4"):
            libraries.check_compiler()
    monkeypatch.setattr(libraries, "_served", lambda: "13.0")
    libraries.check_compiler()
    monkeypatch.setattr(
        libraries, "_loaded", {"cublas": SimpleNamespace(path="/x/libcublas.so.12", version=(12, 4, 0))}
    )
    monkeypatch.setattr(libraries, "_mapped", lambda name: [Path(f"/x/lib{name}.so.{13 if name == 'nvrtc' else 12}")])
    libraries.check_compiler()  # looked at once
    monkeypatch.setattr(libraries, "_fitting", set())
    with pytest.raises(ImportError, match="nvrtc is for CUDA 13, cublas is for CUDA 12"):
        libraries.check_compiler()


def test_the_doctor_loads_nothing_and_makes_no_context() -> None:
    if reason := missing():
        pytest.skip(reason)
    out = run_emulated(
        """
        import re
        from pathlib import Path
        import tazza.doctor
        def mapped():
            return set(re.findall(r"/\\S*lib(?:cu|nv)\\S*", Path("/proc/self/maps").read_text()))
        before = mapped()
        report = tazza.doctor.examine()
        assert mapped() == before, mapped() - before
        assert not report.facts.driver.code, report.facts.driver
        import cuda_emulator
        emulator = cuda_emulator.start()
        assert "cuDevicePrimaryCtxRetain" not in emulator.report()["calls"]
        told = {one.name: one.owner for one in report.facts.libraries if "libraries-" in one.path}
        print(sorted(told))
        """,
        libraries=True,
    )
    assert out.strip() == "['cuBLAS', 'cuBLASLt', 'cuDNN', 'cuRAND']"
