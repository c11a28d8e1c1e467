"""The demo with PyTorch's autograd: the same random words, the same loss to rounding, checkpoints of its own kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
import pytest

import tazza as tz
from tazza.cli.exits import ExitCode
from tazza.cli.main import main
from tazza.demo import Outcome, Settings, Training, autograd, digits, network, run
from tazza.dnn import ReferenceDnn
from tazza.errors import CheckpointError
from tests.demo import small
from tests.interop import need

torch = need("torch")
pytestmark = pytest.mark.interop

LIBRARIES = ("numpy", "torch")


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "load", small.load)


def small_run(arrays: str, checkpoint: Path | None = None, settings: Settings = small.SETTINGS) -> Outcome:
    with tz.open("cpu", seed=5, arrays=arrays) as ctx:
        return run(ctx, settings, checkpoint=checkpoint)


def test_autograd_finds_the_gradient_written_by_hand() -> None:
    random = np.random.default_rng(0)
    parameters = network.initialise(xp, random.standard_normal(network.PARAMETER_COUNT))
    images, labels = random.random((3, 1, 8, 8)), np.array([3, 0, 9])
    expected = network.gradient(xp, ReferenceDnn(xp), parameters, images, labels)
    given = (torch.from_numpy(array) for array in (parameters, images, labels))
    found = autograd.gradient(torch, ReferenceDnn(torch), *given)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    logits = autograd.predict(torch, ReferenceDnn(torch), torch.from_numpy(parameters), torch.from_numpy(images))
    np.testing.assert_allclose(logits, network.predict(xp, ReferenceDnn(xp), parameters, images), rtol=1e-9)
    assert not logits.requires_grad


@pytest.mark.usefixtures("small_digits")
def test_every_random_word_and_what_is_made_of_it_is_equal() -> None:
    seen: list[list[bytes]] = []
    for arrays in LIBRARIES:
        with tz.open("cpu", seed=5, arrays=arrays) as ctx:
            training = Training(ctx, small.SETTINGS)
            drawn = [training._parameters]
            for _ in range(2):
                training._start_epoch()
                drawn += [training._order, training._shifted.result(10)]
            seen.append([ctx.to_numpy(array).tobytes() for array in drawn])
            assert all(isinstance(array, torch.Tensor) for array in drawn) == (arrays == "torch")
    assert seen[0] == seen[1]


def test_real_digits_are_learned_with_the_same_loss() -> None:
    outcomes = []
    for arrays in LIBRARIES:
        with tz.open("cpu", seed=3, arrays=arrays, dnn="reference") as ctx:
            outcomes.append(run(ctx, Settings(epochs=2)))
    by_hand, by_torch = outcomes
    assert (by_torch.arrays, by_torch.dnn, by_hand.arrays, by_hand.dnn) == ("torch", "torch", "numpy", "reference")
    assert by_torch.train_loss == pytest.approx(by_hand.train_loss, rel=1e-5)
    assert by_torch.test_accuracy == pytest.approx(by_hand.test_accuracy, abs=0.01)
    assert by_torch.test_accuracy > 0.85


def test_the_loss_after_many_steps_differs_by_less_than_rounding_makes_it() -> None:
    """Rounding grows from step to step: a change of every initial weight by one ulp says how far it takes the loss."""

    def loss(arrays: str, seed: int | None = None) -> float:
        with tz.open("cpu", seed=0, arrays=arrays, dnn="reference") as ctx:
            training = Training(ctx, Settings(epochs=4))
            if seed is not None:
                weights = ctx.to_numpy(training._parameters)
                up = np.random.default_rng(seed).random(weights.shape) < 0.5
                training._parameters = ctx.asarray(np.nextafter(weights, np.where(up, np.inf, -np.inf), dtype="f4"))
            found = training.finish().train_loss
            assert found is not None
            return found

    expected = loss("numpy")
    rounding = max(abs(loss("numpy", seed) - expected) for seed in range(4))
    assert 0 < rounding < 0.05 * expected
    assert abs(loss("torch") - expected) <= rounding


@pytest.mark.usefixtures("small_digits")
def test_runs_repeat_and_continue_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    end = Training._end_epoch

    def dying(self: Training) -> float:
        loss = end(self)
        if self._ctx.state.epoch == 3:
            raise KeyboardInterrupt
        return loss

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_end_epoch", dying)
        small_run("torch", path)
    resumed = small_run("torch", path)
    assert resumed.resumed_at_step == 2 * small.STEPS_PER_EPOCH
    assert resumed.weights_sha256 == small_run("torch").weights_sha256


@pytest.mark.usefixtures("small_digits")
def test_threads_do_not_matter() -> None:
    program = [
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})",
        "import torch, tazza as tz",
        "from tazza.demo import run",
        "from tests.demo import small",
        "small.digits.load = small.load",
        "torch.set_num_threads(int(sys.argv[1]))",
        "with tz.open('cpu', seed=5, arrays='torch') as ctx:",
        "    print(run(ctx, small.REAL_SHAPES).weights_sha256)",
    ]
    hashes = {small_run("torch", settings=small.REAL_SHAPES).weights_sha256}
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(program), threads],
            env=os.environ | {"OMP_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1


@pytest.mark.usefixtures("small_digits")
@pytest.mark.parametrize(("saved", "resumed"), [LIBRARIES, LIBRARIES[::-1]])
def test_a_checkpoint_of_the_other_library_is_refused_and_kept(tmp_path: Path, saved: str, resumed: str) -> None:
    """Its weights would be those of no run that was not interrupted."""
    path = tmp_path / "checkpoint"
    small_run(saved, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"arrays='{saved}', this one has arrays='{resumed}'"):
        small_run(resumed, path)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("small_digits")
def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--device", "cpu", "--arrays", "torch", "--epochs", "1"]
    assert main([*arguments, "--json"]) == ExitCode.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["arrays"], found["dnn"]) == ("torch", "torch")
    assert main(arguments) == ExitCode.OK
    assert "arrays of torch" in capsys.readouterr().out
