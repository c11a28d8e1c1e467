"""The demo: the same weights everywhere, after every kind of death, and checkpoints that cannot be continued."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tazza as tz
from tazza.demo import Outcome, Settings, digits, run
from tazza.demo.digits import COUNT, HELD_OUT
from tazza.dnn import ReferenceLibrary
from tazza.errors import ArgumentError, CheckpointError, UnsupportedError
from tests.demo import small

KILLED_RUN = Path(__file__).with_name("killed_run.py")


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "load", small.load)


def real_run(device: str, **settings: Any) -> Outcome:
    with tz.open(device, seed=3) as ctx:
        return run(ctx, Settings(epochs=1, **settings))


# What is learned ---------------------------------------------------------------------------------------------------


def test_real_digits_are_learned_and_weights_are_equal_on_every_device() -> None:
    outcomes = [real_run(device) for device in ("cpu", "sim:1")]
    assert len({outcome.weights_sha256 for outcome in outcomes}) == 1
    for outcome in outcomes:
        assert outcome.test_accuracy > 0.75  # after one epoch; chance is 0.1
        assert outcome.test_accuracy == outcomes[0].test_accuracy
        assert outcome.steps_run == 45
        assert outcome.images_per_second > 0
        assert outcome.peak_bytes > 1437 * 64 * 4
        assert outcome.predictions.shape == outcome.labels.shape == (HELD_OUT,)
        assert outcome.seed == 3
    assert [outcome.device for outcome in outcomes] == ["cpu:0", "sim:1"]


def test_digits_are_split_without_overlap() -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    split = digits.load(order)
    assert split.train_images.shape == (COUNT - HELD_OUT, 1, 8, 8)
    assert split.test_images.shape == (HELD_OUT, 1, 8, 8)
    assert split.train_images.dtype == np.float32
    assert 0.0 == split.train_images.min() < split.train_images.max() == 1.0
    whole = digits.load(np.arange(COUNT))
    pixels = np.concatenate([whole.train_images, whole.test_images])
    np.testing.assert_array_equal(pixels[order], np.concatenate([split.train_images, split.test_images]))


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'tazza\[demo\]'"):
        digits.load(np.arange(COUNT))


# Equal results -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize("seed", [0, 2**70])
def test_the_seed_decides_everything(seed: int) -> None:
    first, again, other = (small.small_run("cpu", one) for one in (seed, seed, seed + 1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256


@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize("batch_size", [2, 5, 41, 100])
def test_batches_that_do_not_divide_the_images(batch_size: int) -> None:
    """The last batch may be smaller than the number of shards, and a batch larger than all images."""
    settings = Settings(epochs=2, batch_size=batch_size, shards=2)
    on_cpu, on_sim = (small.small_run(device, 1, settings=settings) for device in ("cpu", "sim:0"))
    assert on_cpu.weights_sha256 == on_sim.weights_sha256
    assert on_cpu.steps_run == settings.steps(42)


@pytest.mark.usefixtures("small_digits")
def test_sub_devices_give_the_same() -> None:
    whole = small.small_run("cpu", 5)
    first_core = tz.device("cpu").cores[0]
    assert small.small_run(f"cpu:0[{first_core}]", 5).weights_sha256 == whole.weights_sha256


@pytest.mark.usefixtures("small_digits")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin processes to processors")
def test_cores_and_native_threads_do_not_matter() -> None:
    """A fresh process on one processor with one native thread, one on all with two, and this one."""
    cores = sorted(os.sched_getaffinity(0))
    program = [
        "import os, sys",
        "os.sched_setaffinity(0, eval(sys.argv[1]))",
        f"sys.path.insert(0, {str(KILLED_RUN.parents[2])!r})",
        "from tests.demo import small",
        "small.digits.load = small.load",
        "print(small.small_run('cpu', 3, settings=small.REAL_SHAPES).weights_sha256)",
    ]
    hashes = {small.small_run("cpu", 3, settings=small.REAL_SHAPES).weights_sha256}
    for allowed, threads in ((cores[:1], "1"), (cores, "2")):
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(program), str(allowed)],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1


# Checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize(
    ("point", "number", "resumed_epochs"),
    [
        ("step", 2 * small.STEPS_PER_EPOCH + 2, 2),
        ("step", small.TOTAL_STEPS, 3),
        ("torn", 2, 1),
        ("written", 2, 1),
        ("moved", 2, 2),
        ("moved", 4, 4),
    ],
)
def test_killed_and_started_again(tmp_path: Path, point: str, number: int, resumed_epochs: int) -> None:
    path = tmp_path / "checkpoint"
    command = [sys.executable, str(KILLED_RUN), point, str(number), str(path)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert died.returncode == -9, died.stderr
    resumed = small.small_run("cpu", 5, str(path))
    assert resumed.resumed_at_step == resumed_epochs * small.STEPS_PER_EPOCH
    assert resumed.steps_run == small.TOTAL_STEPS - resumed.resumed_at_step < small.TOTAL_STEPS
    assert resumed.weights_sha256 == small.small_run("cpu", 5).weights_sha256


@pytest.mark.usefixtures("small_digits")
def test_a_run_may_move_to_another_device(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with tz.open("cpu", seed=5) as ctx, pytest.raises(KeyboardInterrupt):
        saves = 0
        save = ctx.save

        def save_twice(target: Any) -> None:
            nonlocal saves
            save(target)
            saves += 1
            if saves == 2:
                raise KeyboardInterrupt

        ctx.save = save_twice  # type: ignore[assignment, method-assign]
        run(ctx, small.SETTINGS, checkpoint=path)
    moved = small.small_run("sim:1", 5, str(path))
    assert moved.resumed_at_step == 2 * small.STEPS_PER_EPOCH
    assert moved.weights_sha256 == small.small_run("cpu", 5).weights_sha256


@pytest.mark.usefixtures("small_digits")
def test_a_finished_run_is_only_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    first = small.small_run("cpu", 5, str(path))
    again = small.small_run("cpu", 5, str(path))
    assert (again.steps_run, again.resumed_at_step, again.train_loss) == (0, small.TOTAL_STEPS, None)
    assert (again.weights_sha256, again.test_accuracy) == (first.weights_sha256, first.test_accuracy)


@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize("what", ["truncated", "flipped", "foreign", "seed", "settings", "other objects"])
def test_what_cannot_be_continued_is_refused_and_kept(tmp_path: Path, what: str) -> None:
    path = tmp_path / "checkpoint"
    small.small_run("cpu", 5, str(path))
    content, seed, settings = bytearray(path.read_bytes()), 5, small.SETTINGS
    if what == "truncated":
        del content[-100:]
    elif what == "flipped":
        content[len(content) // 2] ^= 4
    elif what == "foreign":
        content = bytearray(b"PK\x03\x04 something else entirely")
    elif what == "seed":
        seed = 6
    elif what == "settings":
        settings = replace(settings, learning_rate=0.1)
    path.write_bytes(content)
    if what == "other objects":
        with tz.open("cpu", seed=5) as ctx:
            ctx.save(path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="checkpoint"):
        small.small_run("cpu", seed, str(path), settings)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_step_ends_the_run(monkeypatch: pytest.MonkeyPatch, small_digits: None) -> None:
    """The first failure, not the ones that follow from it."""

    def failing(*args: Any) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("tazza.demo.network.gradient", failing)
    for device in ("cpu", "sim:0"):
        with pytest.raises(tz.errors.UpstreamError, match="ZeroDivisionError: planted"):
            small.small_run(device, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("batch_size", 1), ("batch_size", -3), ("shards", 0), ("epochs", 1.5)]
)
def test_bad_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        Settings(**{name: value})


@pytest.mark.usefixtures("small_digits")
def test_a_checkpoint_of_another_dnn_library_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint"
    with tz.open("cpu", seed=3, dnn="reference") as ctx:
        outcome = run(ctx, small.SETTINGS, checkpoint=path)
    assert (outcome.dnn, outcome.dnn_version) == ("reference", ReferenceLibrary.version)
    before = path.read_bytes()
    monkeypatch.setattr(ReferenceLibrary, "version", "0.0.1")
    words = f"dnn='reference {outcome.dnn_version}', this one has dnn='reference 0.0.1'"
    with tz.open("cpu", seed=3, dnn="reference") as ctx, pytest.raises(CheckpointError, match=words):
        run(ctx, small.SETTINGS, checkpoint=path)
    assert path.read_bytes() == before
