"""The planner against its real process, which calls a front end and a library that stand for cuDNN."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tazza import errors
from tazza.dnn.cudnn import A100, H100, CudnnPlan, CudnnPlanner, DeviceDescription, PlannerInfo, describe
from tazza.dnn.cudnn import planner as module
from tazza.dnn.cudnn.graphs import graph_of
from tazza.dnn.cudnn.stub import build_stub
from tazza.dnn.library import Operation
from tests.unit.cudnn_fake import install
from tests.unit.cudnn_fake.cudnn.ubjson import encoded

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="plans are made on Linux")

CONV = describe.conv2d(
    describe.channels_last("float16", 2, 8, 6, 6), describe.channels_last("float16", 4, 8, 3, 3), padding=1
)


@pytest.fixture
def planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudnnPlanner]:
    install(tmp_path / "site", monkeypatch)
    with CudnnPlanner(timeout=60, cache=tmp_path / "cache") as planner:
        yield planner


def named(name: str) -> DeviceDescription:
    return replace(H100, name=name)


def is_gone(pid: int) -> bool:
    """Whether a child is reaped: a zombie still has its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pid_of(planner: CudnnPlanner) -> int:
    planner.info()
    process = planner._process
    assert process is not None
    return process.pid


def test_a_plan_says_what_it_is_and_that_it_was_not_executed(planner: CudnnPlanner) -> None:
    plan = planner.plan(CONV, H100)
    assert (plan.operation, plan.device, plan.executed) == (CONV, H100, False)
    assert (plan.algorithm, plan.workspace_bytes, plan.version, plan.candidates) == ("eng1_k2=1", 4096, 92800, 4)
    assert repr(plan) == (
        "<CudnnPlan conv2d for NVIDIA H100 80GB HBM3: eng1_k2=1, workspace 4.0 KiB, cuDNN 92800; planned, not executed>"
    )
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_what_the_libraries_print_is_no_answer(planner: CudnnPlanner) -> None:
    """The fake front end prints a line of JSON for each plan."""
    assert [planner.plan(CONV, H100).algorithm for _ in range(3)] == ["eng1_k2=1"] * 3


def test_info_says_what_plans(planner: CudnnPlanner) -> None:
    info = planner.info()
    assert info == PlannerInfo(92800, "0.0", info.driver, 1210)
    assert info.driver in ("stand-in", "real")


def test_an_installed_driver_library_is_taken_and_nothing_is_built(
    planner: CudnnPlanner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system's loader finds one; here it is the stand-in in its place."""
    installed = build_stub(tmp_path / "driver", timeout=60).parent
    monkeypatch.setenv("LD_LIBRARY_PATH", str(installed))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert planner.info().driver == "real"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("limit", "expected"), [(4096, "eng1_k2=1"), (4095, "eng3"), (63, "eng4"), (0, "eng4")])
def test_a_cap_on_the_workspace_chooses_another_plan(planner: CudnnPlanner, limit: int, expected: str) -> None:
    plan = planner.plan(CONV, H100, max_workspace=limit)
    assert plan.algorithm == expected
    assert plan.workspace_bytes <= limit


def test_deterministic_leaves_plans_out(planner: CudnnPlanner) -> None:
    assert planner.plan(CONV, H100, deterministic=True).algorithm == "eng3"


def test_where_no_plan_is_left_the_error_says_what_was_asked(
    planner: CudnnPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.UnsupportedError, match="of conv2d for unsupported: No valid engine configs$"):
        planner.plan(CONV, named("unsupported"))
    with pytest.raises(errors.BackendError, match="cudnn.plan: .*CUDNN_STATUS_BAD_PARAM$"):
        planner.plan(CONV, named("unknown"))
    with pytest.raises(errors.UnsupportedError, match="is newer than cuDNN 92800, which knows 12.1"):
        planner.plan(CONV, replace(H100, compute_capability=(13, 0)))


def test_a_plan_of_another_device_is_refused(planner: CudnnPlanner) -> None:
    plan = planner.plan(CONV, H100)
    assert planner.check(plan, H100) == planner.check(plan.serialized, H100) == 1077
    with pytest.raises(errors.WrongDeviceError, match=r"made for NVIDIA H100.*9\.0, 132.*not for NVIDIA A100.*8\.0"):
        planner.check(plan, A100)
    assert planner.check(plan, H100) == 1077, "a refusal does not end the process"


def test_damaged_and_old_plans_are_refused(planner: CudnnPlanner) -> None:
    plan = planner.plan(CONV, H100)
    damaged = [b"", b"x", plan.serialized[:-20], encoded({"cudnn_backend_data": "[1]"}), encoded([1]), b"[" * 100_000]
    for bad in damaged:
        with pytest.raises(errors.ArgumentError, match="no serialized plan of cuDNN"):
            planner.check(bad, H100)
    old = encoded({"cudnn_backend_data": '{"x": "old"}'})
    with pytest.raises(errors.BackendError, match="the reason") as caught:
        planner.check(old, H100)
    assert (caught.value.call, caught.value.symbol) == ("check", "CUDNN_STATUS_X")


@pytest.mark.parametrize(("name", "message"), [("crash", "killed by SIGABRT"), ("exit", "exit code 3: the last words")])
def test_a_crash_is_an_error_and_the_next_question_starts_anew(planner: CudnnPlanner, name: str, message: str) -> None:
    first = pid_of(planner)
    with pytest.raises(errors.BackendError, match=message):
        planner.plan(CONV, named(name))
    assert is_gone(first)
    assert planner.plan(CONV, H100).workspace_bytes == 4096
    assert pid_of(planner) != first


def test_a_hang_ends_at_the_timeout_with_the_process(planner: CudnnPlanner) -> None:
    first = pid_of(planner)
    with pytest.raises(errors.WaitTimeoutError, match="did not answer 'plan' within"):
        planner.plan(CONV, named("hang"), timeout=0.3)
    assert is_gone(first)
    assert planner.plan(CONV, H100).workspace_bytes == 4096


def test_a_process_without_its_parent_ends_itself(planner: CudnnPlanner) -> None:
    """Its own alarm does, wherever it hangs."""
    planner.info()
    process = planner._process
    assert process is not None
    request = {"graph": graph_of(CONV), "device": named("hang").to_json(), "sm_version": 90, "max_workspace": None}
    request |= {"deterministic": False, "seconds": 0.2}
    with pytest.raises(errors.BackendError, match="killed by SIGALRM"):
        process.ask("plan", request, 30.0)
    planner._process = None


def test_another_thread_waits_for_its_turn_and_no_longer(planner: CudnnPlanner) -> None:
    planner.info()
    entered = threading.Event()
    process = planner._process
    assert process is not None

    def hang() -> None:
        with pytest.raises(errors.WaitTimeoutError):
            planner.plan(CONV, named("hang"), timeout=1.0)

    thread = threading.Thread(target=hang)
    real = process._exchange

    def watched(line: bytes, deadline: float) -> bytes:
        entered.set()
        return real(line, deadline)

    process._exchange = watched  # type: ignore[method-assign]
    thread.start()
    assert entered.wait(30)
    with pytest.raises(errors.WaitTimeoutError, match="another thread still asks"):
        planner.plan(CONV, H100, timeout=0.05)
    with pytest.raises(errors.WaitTimeoutError, match="another thread still asks"):
        planner.close(timeout=0.05)
    thread.join(30)
    assert planner.plan(CONV, H100).workspace_bytes == 4096


def test_threads_get_their_own_answers(planner: CudnnPlanner) -> None:
    found: dict[int, list[str]] = {limit: [] for limit in (4096, 64, 0)}

    def work(limit: int) -> None:
        found[limit] += [planner.plan(CONV, H100, max_workspace=limit).algorithm for _ in range(5)]

    threads = [threading.Thread(target=work, args=(limit,)) for limit in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {4096: ["eng1_k2=1"] * 5, 64: ["eng3"] * 5, 0: ["eng4"] * 5}


def test_closing_reaps_the_process_and_is_final(planner: CudnnPlanner) -> None:
    pid = pid_of(planner)
    assert f"process {pid}" in repr(planner)
    planner.close()
    planner.close()
    assert is_gone(pid)
    assert repr(planner) == "<CudnnPlanner of nvidia-cudnn-cu13 9.28.0.42: closed>"
    with pytest.raises(errors.ClosedError):
        planner.plan(CONV, H100)
    with pytest.raises(errors.ClosedError):
        planner.info()


def test_a_dropped_planner_is_ended_by_the_next_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)
    dropped = CudnnPlanner(cache=tmp_path)
    pid = pid_of(dropped)
    del dropped
    assert not is_gone(pid)
    with CudnnPlanner(cache=tmp_path) as following, pytest.warns(errors.LeakWarning, match=f"process {pid}"):
        following.info()
    assert is_gone(pid)


def test_an_open_planner_is_ended_at_exit_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tazza.dnn.cudnn import CudnnPlanner, planner\nfrom tazza.dnn.cudnn.coherence import Installation\n"
        "folder = Path(sys.argv[1])\n"
        "found = Installation('w', '9.28.0', '0', {folder / 'libcudnn.so.9': (1, 1)})\n"
        "planner.examine_installation = lambda: found\n"
        "kept = CudnnPlanner(cache=sys.argv[2])\nkept.info()\nprint(kept._process.pid)"
    )
    arguments = [str(tmp_path / "site/nvidia/cudnn/lib"), str(tmp_path / "cache")]
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert is_gone(int(done.stdout))
    assert not done.stderr


def _in_a_fork(planner: CudnnPlanner) -> None:
    try:
        planner.plan(CONV, H100)
    except errors.ForkedError:
        planner.close()
        os._exit(7)
    os._exit(1)


def test_a_forked_planner_is_refused_and_the_parent_s_goes_on(planner: CudnnPlanner) -> None:
    pid = pid_of(planner)
    child = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(planner,))
    child.start()
    child.join(60)
    assert child.exitcode == 7
    assert planner.plan(CONV, H100).workspace_bytes == 4096
    assert pid_of(planner) == pid


def test_nothing_of_it_enters_this_process(planner: CudnnPlanner) -> None:
    planner.plan(CONV, H100)
    maps = Path("/proc/self/maps").read_text("utf-8")
    assert "no-cuda-driver" not in maps
    assert "libcudnn" not in maps


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("conv2d", H100), {}, "operation: got 'conv2d'"),
        ((CONV, "H100"), {}, "device: got 'H100'"),
        ((CONV, H100), {"max_workspace": -1}, "max_workspace: got -1"),
        ((CONV, H100), {"max_workspace": True}, "max_workspace: got True"),
        ((CONV, H100), {"timeout": "soon"}, "timeout: got 'soon'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    planner: CudnnPlanner, arguments: tuple[Operation, DeviceDescription], options: dict[str, int], message: str
) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        planner.plan(*arguments, **options)  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="plan: got None"):
        planner.check(None, H100)  # type: ignore[arg-type]
    assert planner._process is None


def test_parts_that_do_not_fit_are_refused_before_the_first_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, "-DCHECK=1002")
    monkeypatch.setenv("FAKE_FRONT_VERSION", "91000")
    with CudnnPlanner(cache=tmp_path) as planner:
        with pytest.raises(errors.BackendUnavailableError, match="cudnnGraphVersionCheck says 1002") as caught:
            planner.plan(CONV, H100)
        assert "the front end found is of version 91000, and 92800 is installed" in caught.value.reason
        assert planner._process is None


def test_a_library_that_cannot_be_loaded_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation = install(tmp_path / "site", monkeypatch)
    installation.library.write_bytes(b"no library")
    with CudnnPlanner(cache=tmp_path) as planner:
        with pytest.raises(errors.BackendUnavailableError, match=r"OSError.*libcudnn.*tazza\[cudnn-plan\]"):
            planner.info()


def test_without_the_wheels_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def none(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", none)
    with pytest.raises(errors.BackendUnavailableError, match="nvidia-cudnn-cu13, nvidia-cudnn-frontend") as caught:
        CudnnPlanner()
    assert "tazza[cudnn-plan]" in caught.value.hint
    assert isinstance(caught.value, ImportError)
    assert not module._dropped


def test_plans_are_equal_whatever_their_serialized_bytes() -> None:
    one = CudnnPlan(CONV, H100, "eng1", 0, b"a", 92800, 1)
    assert one == replace(one, serialized=b"b")
    assert one != replace(one, algorithm="eng2")
