"""Every kind of finding, planted, and its absence where the fact is right."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tazza.doctor.examine import judge
from tazza.doctor.facts import Backend, Facts, Imported, Library, ThreadPool, Variable
from tazza.doctor.findings import KINDS, Severity
from tazza.drivers.cpu.cgroups import MemoryGroup
from tests.doctor.planted import GIB, GOMP, HEALTHY, NUMPY_BLAS, SITE, change


def keys(facts: Facts) -> set[str]:
    return {finding.key for finding in judge(facts).findings}


def libraries(*more: Library) -> Facts:
    return replace(HEALTHY, libraries=(NUMPY_BLAS, GOMP, *more))


def openmp(name: str, owner: str, *, loaded: bool = True) -> Library:
    return Library("OpenMP", name, f"/x/{owner}/{name}.so", "", owner, loaded)


def cudnn(name: str, version: str, folder: str = "/usr/lib", *, owner: str = "system", loaded: bool = True) -> Library:
    return Library("cuDNN", name, f"{folder}/lib{name.replace(' ', '_').lower()}.so.9", version, owner, loaded)


def cublas(version: str, folder: str = "/v") -> Library:
    return Library("cuBLAS", "cuBLAS", f"{folder}/libcublas.so.13", version, f"nvidia-cublas {version}", True)


def environment(**values: str) -> Facts:
    return replace(HEALTHY, environment=tuple(values.items()))


def package(index: int, **values: object) -> Facts:
    packages = list(HEALTHY.packages)
    packages[index] = replace(packages[index], **values)  # type: ignore[arg-type]
    return replace(HEALTHY, packages=tuple(packages))


def variable(name: str, value: str, *, known: bool = True, problem: str = "") -> Facts:
    return change("tazza", variables=(Variable(name, value, known, problem),))


def imported(state: str) -> Facts:
    return replace(HEALTHY, imports=(Imported("torch", state, "why", "2.13.0", "x"),))


MKL = Library("BLAS", "MKL", "/opt/libmkl_rt.so.2", "2024.1", "mkl 2024.1", loaded=True)
SCIPY_BLAS = replace(NUMPY_BLAS, path=f"{SITE}/scipy.libs/libopenblas.so", owner="scipy 1.17.1")
NCCL = Library("NCCL", "NCCL", f"{SITE}/nvidia/nccl/lib/libnccl.so.2", "2", "nvidia-nccl-cu12 2.21.5", loaded=True)
OTHER_NCCL = replace(NCCL, path="/usr/lib/libnccl.so.2.18.1", version="2.18.1", owner="system")
SMALL_GROUP = MemoryGroup("/sys/fs/cgroup/pod", 8 * GIB, 2 * GIB, 0)
OLD_PATH = Library("OpenMP", "libgomp", "/old/lib/libgomp.so.1", "1", "/old/lib", loaded=False)

# key: (facts with it, facts beside it without)
PLANTED: dict[str, tuple[Facts, Facts]] = {
    "openmp-clash": (
        replace(HEALTHY, libraries=(openmp("libomp", "a"), openmp("libiomp5", "b"))),
        replace(HEALTHY, libraries=(openmp("libomp", "a"), openmp("libiomp5", "b", loaded=False))),
    ),
    "openmp-mixed": (libraries(openmp("libiomp5", "mkl")), libraries(openmp("libiomp5", "mkl", loaded=False))),
    "openmp-copies": (
        libraries(openmp("libgomp", "scikit-learn 1.9")),
        libraries(openmp("libgomp", "scikit-learn 1.9", loaded=False)),
    ),
    "blas-mixed": (libraries(MKL), libraries(replace(MKL, loaded=False))),
    "blas-copies": (libraries(SCIPY_BLAS), libraries(replace(SCIPY_BLAS, loaded=False))),
    "library-copies": (libraries(NCCL, OTHER_NCCL), libraries(NCCL, replace(OTHER_NCCL, version="2.21.5"))),
    "cudnn-mixed": (
        libraries(cudnn("cuDNN", "9.1.0"), cudnn("cuDNN ops", "9.2.0")),
        libraries(cudnn("cuDNN", "9.1.0"), cudnn("cuDNN ops", "9.1.0")),
    ),
    "cudnn-several": (
        libraries(
            cudnn("cuDNN", "9.1.0", loaded=False),
            cudnn("cuDNN", "9", "/v", owner="nvidia-cudnn-cu12 9.5.0.50", loaded=False),
        ),
        libraries(
            cudnn("cuDNN", "9.1.0", loaded=False),
            cudnn("cuDNN", "9", "/v", owner="nvidia-cudnn-cu12 9.1.0.70", loaded=False),
        ),
    ),
    "cudnn-broken": (
        change("driver", cudnn="/x", cudnn_version="9.1.0", cudnn_state="failed", cudnn_detail="cudnnOps..."),
        change("driver", cudnn="/x", cudnn_version="9.1.0", cudnn_state="fine"),
    ),
    "cuda-majors": (
        libraries(cublas("13.1.0"), cudnn("cuDNN", "9", "/v", owner="nvidia-cudnn-cu12 9.5.0.50")),
        libraries(cublas("13.1.0"), cudnn("cuDNN", "9", "/v", owner="nvidia-cudnn-cu13 9.5.0.50")),
    ),
    "cuda-split": (
        libraries(cublas("13.1.0"), cublas("13.1.0", "/opt/other")),
        libraries(cublas("13.1.0"), replace(cublas("13.1.0", "/opt/other"), loaded=False)),
    ),
    "cuda-sources": (
        libraries(cublas("13.1.0"), cudnn("cuDNN", "9.5.0")),
        libraries(replace(cublas("13.1.0", "/usr/lib"), owner="system"), cudnn("cuDNN", "9.5.0")),
    ),
    "library-deleted": (libraries(replace(NCCL, deleted=True)), libraries(NCCL)),
    "library-path": (
        replace(libraries(OLD_PATH), environment=(("LD_LIBRARY_PATH", "/nothing:/old/lib"),)),
        replace(libraries(OLD_PATH), environment=(("LD_LIBRARY_PATH", "/nothing:/ol"),)),
    ),
    "preload": (replace(HEALTHY, preloaded=(("/x/libjemalloc.so", True),)), HEALTHY),
    "preload-missing": (
        replace(HEALTHY, preloaded=(("/x/libjemalloc.so", False),)),
        replace(HEALTHY, preloaded=(("/x/libjemalloc.so", True),)),
    ),
    "package-shadowed": (package(0, shadowed=True, path="/here/numpy.py"), HEALTHY),
    "package-missing": (package(0, missing=True, path=""), HEALTHY),
    "package-twice": (package(0, distributions=("numpy 2.4.6", "numpy 1.26"), folders=(SITE, "/user")), HEALTHY),
    "package-version": (package(0, file_version="1.26.4"), package(0, file_version="")),
    "requirement-unmet": (package(1, unmet=("nvidia-cudnn-cu12==9.1.0.70 (installed: 9.2)",)), HEALTHY),
    "import-failed": (imported("failed"), imported("fine")),
    "import-crashed": (imported("crashed"), imported("not reached")),
    "import-hung": (imported("hung"), imported("fine")),
    "threads-oversubscribed": (
        replace(HEALTHY, pools=(ThreadPool("libopenblas", "/x", 9),)),
        replace(HEALTHY, pools=(ThreadPool("libopenblas", "/x", 8),)),
    ),
    "threads-sum": (
        replace(HEALTHY, pools=(ThreadPool("libopenblas", "/x", 8), ThreadPool("libgomp", "/y", 1))),
        replace(HEALTHY, pools=(ThreadPool("libopenblas", "/x", 4), ThreadPool("libgomp", "/y", 4))),
    ),
    "threads-setting": (environment(OMP_NUM_THREADS="many"), environment(OMP_NUM_THREADS="4,2")),
    "threads-disagree": (
        environment(OMP_NUM_THREADS="4", MKL_NUM_THREADS="2"),
        environment(OMP_NUM_THREADS="4", MKL_NUM_THREADS="4"),
    ),
    "cpu-quota": (
        replace(change("processors", quota=2.5), pools=()),
        change("processors", quota=8.0),
    ),
    "memory-limit": (
        change("memory", total=8 * GIB, free=6 * GIB, groups=(SMALL_GROUP,)),
        change("memory", groups=(replace(SMALL_GROUP, limit=128 * GIB),)),
    ),
    "memory-short": (change("memory", free=6 * GIB), change("memory", free=7 * GIB)),
    "overcommit-strict": (change("memory", overcommit=2), change("memory", overcommit=1)),
    "address-space": (change("limits", address_space=8 * GIB), HEALTHY),
    "memlock": (change("limits", locked=8 * 2**20), change("limits", locked=GIB)),
    "few-files": (change("limits", files=256), change("limits", files=1024)),
    "shm-small": (change("memory", shared_total=64 * 2**20), change("memory", shared_total=None)),
    "driver-absent": (
        change("driver", library="", state="absent", nodes=False, module_version="", cuda=""),
        HEALTHY,
    ),
    "driver-unused": (
        change("driver", state="failed", code=100, nodes=False, module_version="", cuda=""),
        change("driver", state="failed", code=100),
    ),
    "driver-no-library": (
        change("driver", library="", state="absent"),
        change("driver", library="", state="absent", nodes=False, module_version=""),
    ),
    "driver-mismatch": (
        change("driver", state="failed", code=803, library_version="550.90.07"),
        change("driver", state="failed", code=803),
    ),
    "driver-failed": (change("driver", state="failed", call="cuInit", code=999), change("driver", code=0)),
    "driver-crashed": (change("driver", state="crashed", call="cuInit"), change("driver", state="hung")),
    "driver-hung": (change("driver", state="hung", call="cuInit"), change("driver", state="crashed")),
    "driver-old": (change("driver", cuda="11.8"), change("driver", cuda="12.0")),
    "uncompiled": (change("tazza", compiled=False), HEALTHY),
    "stale-build": (change("tazza", stale=("pool.so",)), HEALTHY),
    "backend-unusable": (change("tazza", backends=(Backend("npu", False, "no module", "install it"),)), HEALTHY),
    "python-debug": (change("python", debug=True), HEALTHY),
    "free-threaded": (change("python", free_threaded=True, gil=False), HEALTHY),
    "fork-threads": (change("python", start_method="fork"), change("python", start_method="fork", threads=1)),
    "environment-invalid": (variable("TAZZA_SIM_SEED", "x", problem="bad"), variable("TAZZA_SIM_SEED", "3")),
    "environment-unknown": (variable("TAZZA_SIM_SEDE", "3", known=False), variable("TAZZA_SIM_SEED", "3")),
    "environment-set": (variable("TAZZA_DEVICE", "sim:0"), variable("TAZZA_DEVICE", "x", problem="bad")),
    "old-libc": (change("python", libc="glibc 2.17"), change("python", libc="musl 1.2")),
}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    report = judge(HEALTHY)
    assert report.findings == ()
    assert report.healthy
    assert report.coherence() == {"BLAS": True, "OpenMP": True}


def test_every_kind_is_planted_here() -> None:
    assert set(PLANTED) == set(KINDS)


@pytest.mark.parametrize("key", KINDS)
def test_found_and_not_found(key: str) -> None:
    wrong, right = PLANTED[key]
    report = judge(wrong)
    finding = next(finding for finding in report.findings if finding.key == key)
    assert finding.severity is KINDS[key].severity
    assert finding.why == KINDS[key].why
    assert finding.seen
    assert finding.fix or key in {"driver-absent", "environment-set"}
    assert report.healthy == all(one.severity is not Severity.ERROR for one in report.findings)
    assert key not in keys(right)


@pytest.mark.parametrize(
    "facts",
    [
        libraries(NCCL, replace(OTHER_NCCL, loaded=False)),  # only one of them is in the process
        libraries(cudnn("cuDNN", "9"), cudnn("cuDNN ops", "9.2.0")),  # no more is known of the first than fits
        environment(LD_LIBRARY_PATH=f"{SITE}/torch/lib"),  # the only copy there is
        package(1, cuda=""),
        package(1, file_version="2.13.0"),
        change("driver", state="fine", library_version="550.90.07"),  # forward compatibility: it works
        change("driver", cuda=""),
        change("python", threads=None, start_method="fork"),
        change("python", libc=""),
        change("processors", quota=16.0),
    ],
)
def test_what_looks_alike_is_fine(facts: Facts) -> None:
    assert keys(facts) == set()


def test_a_wrong_set_is_not_coherent() -> None:
    assert judge(libraries(openmp("libiomp5", "mkl"))).coherence() == {"BLAS": True, "OpenMP": False}
    assert judge(libraries(SCIPY_BLAS)).coherence()["BLAS"]  # a note takes nothing from it


def test_threads_are_held_against_the_quota() -> None:
    assert "threads-oversubscribed" in keys(change("processors", quota=2.0))
    facts = replace(environment(OMP_NUM_THREADS="6"), processors=replace(HEALTHY.processors, quota=0.5), pools=())
    [finding] = [one for one in judge(facts).findings if one.key == "threads-oversubscribed"]
    assert finding.fix == "OMP_NUM_THREADS=1"


def test_the_worst_comes_first() -> None:
    facts = replace(
        change("driver", state="hung"), tazza=change("tazza", compiled=False).tazza, preloaded=(("x", True),)
    )
    report = judge(facts)
    assert [finding.severity.value for finding in report.findings] == ["error", "warning", "note"]
    assert report.count() == {"error": 1, "warning": 1, "note": 1}
    assert not report.healthy


@pytest.mark.parametrize(
    ("code", "fix"), [(802, "fabricmanager"), (803, "restart"), (34, "stub"), (804, "compat"), (100, "CUDA_VISIBLE")]
)
def test_known_codes_have_their_fix(code: int, fix: str) -> None:
    [finding] = judge(change("driver", state="failed", call="cuInit", code=code)).findings
    assert fix in finding.fix
    assert f"({code})" in finding.seen


def test_a_misspelt_variable_names_the_right_one() -> None:
    [finding] = judge(variable("TAZZA_SIM_SEDE", "3", known=False)).findings
    assert finding.fix == "did you mean TAZZA_SIM_SEED?"
    [finding] = judge(variable("TAZZA_ZZZZZZZZZZZZ", "3", known=False)).findings
    assert finding.fix == "unset TAZZA_ZZZZZZZZZZZZ"


def test_a_version_seen_in_the_import_counts() -> None:
    facts = replace(HEALTHY, imports=(Imported("numpy", "fine", version="1.26.4"),))
    assert keys(facts) == {"package-version"}


def test_cudnn_parts_in_one_folder_must_agree_before_they_are_loaded() -> None:
    parts = [cudnn("cuDNN", "9.1.0", loaded=False), cudnn("cuDNN ops", "9.2.0", loaded=False)]
    assert keys(libraries(*parts)) == {"cudnn-mixed"}


def test_old_names_and_severities_stay() -> None:
    """Keys are an interface: programs look for them."""
    errors = {key for key, kind in KINDS.items() if kind.severity is Severity.ERROR}
    assert errors == {
        *("openmp-clash", "cudnn-mixed", "cudnn-broken", "package-shadowed", "package-missing", "package-version"),
        *("import-failed", "import-crashed", "import-hung", "environment-invalid", "cuda-majors", "cuda-split"),
        *("driver-no-library", "driver-mismatch", "driver-failed", "driver-crashed", "driver-hung", "driver-old"),
    }
