"""Plans of the real cuDNN for devices that are not there. Run by ``tools/cudnn-tests``; skipped where it is missing.

The sizes are those of the versions that the extra ``cudnn-plan`` pins. Nothing is executed, here or anywhere.
"""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from tazza.dnn.cudnn import A100, H100, CudnnPlanner, DeviceDescription, describe
from tazza.dnn.cudnn import planner as planner_module
from tazza.dnn.cudnn.describe import channels_last, contiguous
from tazza.dnn.cudnn.stub import build_stub
from tazza.dnn.library import Layout, Operation
from tazza.errors import BackendError, UnsupportedError, WrongDeviceError

INSTALLED = all(importlib.util.find_spec(name) for name in ("cudnn", "nvidia"))
REQUIRED = os.environ.get("TAZZA_CUDNN") == "1"
pytestmark = [
    pytest.mark.cudnn,
    pytest.mark.skipif(not INSTALLED and not REQUIRED, reason="cuDNN is not installed; run tools/cudnn-tests"),
]

DEVICES = {"H100": H100, "A100": A100}


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CudnnPlanner]:
    with CudnnPlanner(timeout=100, cache=tmp_path_factory.mktemp("cache")) as planner:
        yield planner


def images(dtype: str) -> tuple[Layout, Layout]:
    return channels_last(dtype, 16, 128, 64, 64), channels_last(dtype, 256, 128, 3, 3)


def planar(y: Layout | None = None) -> Operation:
    """A convolution of images in planes; the result lies the same way, or as `y`."""
    operation = describe.conv2d(
        contiguous("float32", 16, 128, 64, 64), contiguous("float32", 256, 128, 3, 3), padding=1
    )
    return operation if y is None else operation._replace(outputs=(y,))


HALF, SINGLE = images("float16"), images("float32")
HEADS = contiguous("float16", 2, 16, 1024, 128)
X, W = contiguous("float16", 512, 256), contiguous("float16", 1024, 256)


class Case(NamedTuple):
    """An operation with the bytes of workspace on H100 and on A100; None: only finite."""

    operation: Operation
    h100: int | None
    a100: int | None


CASES = {
    "conv": Case(describe.conv2d(*HALF, padding=1), 131, 0),
    "conv-f32": Case(describe.conv2d(*SINGLE, padding=1), 131, 34_734_096),
    "conv-f32-planes-to-channels-last": Case(
        planar(channels_last("float32", 16, 256, 64, 64)), 34_734_227, 101_842_960
    ),
    "conv-f32-planes": Case(planar(), 101_843_091, 34_734_096),
    "conv-relu": Case(describe.conv2d(*HALF, padding=1, activation="relu"), 0, 0),
    "conv-bias-relu": Case(describe.conv2d(*HALF, padding=1, bias=True, activation="relu"), 131, 0),
    "conv-bf16": Case(describe.conv2d(*images("bfloat16"), padding=1, bias=True, activation="relu"), 131, 0),
    "conv-backward-x": Case(describe.conv2d_backward(*HALF, padding=1, of="x"), 2_097_363, 0),
    "conv-backward-w": Case(describe.conv2d_backward(*HALF, padding=1, of="w"), 524_483, 5_898_831),
    "conv-groups": Case(
        describe.conv2d(HALF[0], channels_last("float16", 256, 32, 3, 3), padding=1, groups=4), None, None
    ),
    "conv-stride": Case(describe.conv2d(*HALF, padding=1, stride=2, dilation=2), None, None),
    "matmul": Case(describe.matmul(contiguous("float16", 512, 512), contiguous("float16", 512, 512)), 0, 0),
    "matmul-backward-a": Case(describe.matmul_backward(X, contiguous("float16", 256, 64), of="a"), 0, 0),
    "matmul-backward-b": Case(describe.matmul_backward(X, contiguous("float16", 256, 64), of="b"), 0, 0),
    "linear": Case(describe.linear(X, W), 0, 0),
    "linear-bias-relu": Case(describe.linear(X, W, bias=True, activation="relu"), 0, 0),
    "linear-backward-x": Case(describe.linear_backward(X, W, of="x"), 0, 0),
    "linear-backward-w": Case(describe.linear_backward(X, W, of="w"), 0, 0),
    "attention": Case(describe.attention(HEADS, HEADS, HEADS, causal=True), 256, 0),
    "attention-backward": Case(describe.attention_backward(HEADS, HEADS, HEADS, causal=True), 16_908_544, 33_685_632),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_plan_is_made_and_comes_back(planner: CudnnPlanner, name: str, device: str) -> None:
    case, target = CASES[name], DEVICES[device]
    plan = planner.plan(case.operation, target)
    assert not plan.executed
    assert repr(plan).endswith("cuDNN 92800; planned, not executed>")
    assert plan.algorithm.startswith("eng")
    assert 0 <= plan.workspace_bytes < target.memory
    expected = case.h100 if device == "H100" else case.a100
    assert expected in (None, plan.workspace_bytes)
    assert planner.check(plan, target) == plan.workspace_bytes, "cuDNN names the same once it has loaded the plan"


@pytest.mark.parametrize("name", ["conv", "linear-bias-relu", "attention", "attention-backward"])
@pytest.mark.parametrize(
    ("made_for", "other"),
    [
        (H100, A100),
        (A100, H100),
        (H100, replace(H100, name="NVIDIA H100 PCIe", multiprocessors=114)),
    ],
    ids=["H100-A100", "A100-H100", "H100-PCIe"],
)
def test_a_plan_of_another_device_is_refused(
    planner: CudnnPlanner, name: str, made_for: DeviceDescription, other: DeviceDescription
) -> None:
    plan = planner.plan(CASES[name].operation, made_for)
    with pytest.raises(WrongDeviceError, match="ARCH_MISMATCH") as caught:
        planner.check(plan.serialized, other)
    assert made_for.name in str(caught.value)
    assert other.name in str(caught.value)
    assert planner.check(plan.serialized, made_for) == plan.workspace_bytes


def test_a_cap_changes_the_plan(planner: CudnnPlanner) -> None:
    operation = CASES["conv-f32"].operation
    free = planner.plan(operation, A100)
    capped = planner.plan(operation, A100, max_workspace=1 << 20)
    assert free.workspace_bytes == 34_734_096
    assert capped.workspace_bytes == 0
    assert capped.algorithm != free.algorithm
    assert planner.plan(operation, A100, max_workspace=34_734_096).workspace_bytes == 34_734_096
    assert planner.plan(operation, H100, max_workspace=1 << 20).workspace_bytes == 131


def test_a_cap_that_no_plan_keeps_is_an_error(planner: CudnnPlanner) -> None:
    with pytest.raises(UnsupportedError, match="within 1000 bytes of workspace"):
        planner.plan(CASES["attention-backward"].operation, H100, max_workspace=1000)


@pytest.mark.parametrize("shape", [(1, 8, 512, 64), (2, 16, 1024, 128), (4, 4, 256, 64), (1, 2, 2048, 128)])
def test_the_workspace_of_attention_s_gradient_follows_its_shape(
    planner: CudnnPlanner, shape: tuple[int, int, int, int]
) -> None:
    """A float32 copy of dq, a sum a row, and 256 bytes."""
    q = contiguous("float16", *shape)
    batch, heads, rows, width = shape
    plan = planner.plan(describe.attention_backward(q, q, q, causal=True), H100)
    assert plan.workspace_bytes == batch * heads * rows * (width + 1) * 4 + 256


def test_determinism_changes_the_plan(planner: CudnnPlanner) -> None:
    x, w = channels_last("float32", 32, 3, 224, 224), channels_last("float32", 64, 3, 7, 7)
    operation = describe.conv2d_backward(x, w, padding=3, of="x")
    free, deterministic = (planner.plan(operation, H100, deterministic=flag) for flag in (False, True))
    assert (free.workspace_bytes, deterministic.workspace_bytes) == (430_347_024, 25_740_435)
    assert free.algorithm != deterministic.algorithm


def test_what_cudnn_does_not_have_is_said(planner: CudnnPlanner) -> None:
    fused = describe.conv2d_backward(*HALF, padding=1, of="x")
    y = describe.conv2d(*HALF, padding=1).outputs[0]
    fused = fused._replace(inputs=(*fused.inputs[:3], y), options=(*fused.options[:4], "relu"))
    with pytest.raises(UnsupportedError, match="cuDNN has no plan of conv2d.backward for NVIDIA A100"):
        planner.plan(fused, A100)


def test_a_plan_of_another_version_is_refused(planner: CudnnPlanner) -> None:
    plan = planner.plan(CASES["conv"].operation, H100)
    with pytest.raises(BackendError, match="VERSION_MISMATCH") as caught:
        planner.check(plan.serialized.replace(b'"cudnnVersion":92800', b'"cudnnVersion":92700'), H100)
    assert caught.value.symbol == "CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH"


def test_threads_share_a_planner(planner: CudnnPlanner) -> None:
    operation = CASES["conv-backward-w"].operation
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: planner.plan(operation, A100).workspace_bytes, range(12), timeout=100))
    assert found == [5_898_831] * 12


def test_the_versions_are_the_pinned_ones_and_nothing_is_loaded_here(planner: CudnnPlanner) -> None:
    info = planner.info()
    assert (info.version, info.front_end) == (92800, "1.23.0")
    maps = Path("/proc/self/maps").read_text("utf-8")
    assert not [word for word in ("libcudnn", "no-cuda-driver", "libnvrtc") if word in maps]


def test_an_installed_driver_library_is_taken_and_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system's loader finds one; here it is the stand-in in its place."""
    installed = build_stub(tmp_path, timeout=60).parent
    monkeypatch.setenv("LD_LIBRARY_PATH", str(installed))
    monkeypatch.setenv("CC", "no-such-compiler")
    with CudnnPlanner(timeout=100, cache=tmp_path / "cache") as planner:
        assert planner.info().driver == "real"
        assert planner.plan(CASES["matmul"].operation, A100).workspace_bytes == 0
    assert not (tmp_path / "cache").exists()


def test_a_description_is_what_cudnn_reads_and_writes(planner: CudnnPlanner) -> None:
    """Its own report of a described device, in each plan, is read back by us."""
    serialized = planner.plan(CASES["conv"].operation, H100).serialized
    start = serialized.index(b'"GPUProfile":') + len(b'"GPUProfile":')
    profile, _ = json.JSONDecoder().raw_decode(serialized[start:].decode("utf-8", "replace"))
    assert DeviceDescription.from_json(json.dumps(profile)) == H100


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = doctest.testmod(planner_module, optionflags=doctest.ELLIPSIS)
    assert found.attempted
    assert not found.failed
