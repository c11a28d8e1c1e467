"""The demo's training loop: what is launched, in which order, and what is saved."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import tazza as tz
from tazza.demo import digits, steps
from tazza.demo.network import PARAMETER_COUNT
from tazza.demo.settings import Outcome, Settings
from tazza.dnn import Array
from tazza.errors import CheckpointError

__all__ = ["Training", "run"]


def run(ctx: tz.Context, settings: Settings, *, checkpoint: str | os.PathLike[str] | None = None) -> Outcome:
    """Train on `ctx` and judge the result on the held-out images, once.

    Args:
        ctx: a fresh context; its seed decides everything random.
        settings: what to do.
        checkpoint: file that is resumed where it exists, and replaced after every epoch.

    Raises:
        CheckpointError: the file cannot be resumed here; it is left as it is.

    Example:
        >>> with tz.open("cpu", seed=1) as ctx:
        ...     outcome = run(ctx, Settings(epochs=1))
        >>> outcome.test_accuracy > 0.5
        True
    """
    with ctx:
        training = Training(ctx, settings)
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and path.exists():
            ctx.load(path)
        return training.finish(path)


class Training:
    """A network being trained on one context; registers itself there as ``"training"``.

    Every step launches one task for each shard of the batch, on a stream of its own, and one update that takes their
    results. The order of everything follows from the tasks passed on and from ``after=``, on every device.

    Args:
        ctx: the context; current while this is used.
        settings: what to do.

    Example:
        >>> with tz.open("cpu", seed=1) as ctx:
        ...     outcome = Training(ctx, Settings(epochs=1)).finish()
        >>> outcome.steps_run
        45
    """

    def __init__(self, ctx: tz.Context, settings: Settings) -> None:
        self._ctx, self._settings = ctx, settings
        split = ctx.to_numpy(ctx.random.for_purpose("demo split").permutation(digits.COUNT))
        self._digits = data = digits.load(split)
        self._streams = [ctx.new_stream(label=f"shard {number}") for number in range(settings.shards)]
        self._images = ctx.asarray(data.train_images, copy=True)
        self._labels = ctx.asarray(data.train_labels, copy=True)
        normals = ctx.random.for_purpose("demo weights").standard_normal(PARAMETER_COUNT, dtype="float32")
        self._parameters = ctx.launch(steps.initial_parameters, normals).result()
        self._velocity = self._zeros(PARAMETER_COUNT)
        self._library: tuple[str, str] = ctx.launch(steps.library).result()
        self._tally = self._zeros(2)
        self._last: tuple[tz.Task, ...] = ()
        ctx.state.register("training", self)

    def state_dict(self) -> dict[str, Any]:
        """Return what decides the rest of the run, besides counters and generator."""
        return {
            "settings": asdict(self._settings),
            "arrays": self._ctx.spec.arrays,
            "dnn": " ".join(self._library),
            "parameters": self._parameters,
            "velocity": self._velocity,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run of the same settings.

        Raises:
            CheckpointError: the state is of a run with other settings, or with another array or DNN library. Those
                compute the same to rounding only, and the weights would be those of no run that was not interrupted.
        """
        settings = dict(state["settings"])
        if settings != asdict(self._settings):
            raise CheckpointError(
                f"the checkpoint is of a run with {settings}, this one has {asdict(self._settings)}; "
                "use the same settings, or another file"
            )
        for name, here in (("arrays", self._ctx.spec.arrays), ("dnn", " ".join(self._library))):
            if state[name] != here:
                raise CheckpointError(
                    f"the checkpoint is of a run with {name}={state[name]!r}, this one has {name}={here!r}; "
                    "use the same library, or another file"
                )
        arrays = [np.asarray(state[name], np.float32).reshape(PARAMETER_COUNT) for name in ("parameters", "velocity")]
        self._parameters, self._velocity = (self._ctx.asarray(array, copy=True) for array in arrays)

    def finish(self, checkpoint: Path | None = None) -> Outcome:
        """Train to the end, saving after each epoch, and look at the held-out images."""
        ctx, settings, count = self._ctx, self._settings, len(self._digits.train_images)
        per_epoch, total = settings.steps_per_epoch(count), settings.steps(count)
        resumed, images, loss = ctx.state.step, 0, None
        start = time.perf_counter()
        for step in tz.track(range(resumed, total), f"training on {ctx.device}"):
            if step % per_epoch == 0:
                self._start_epoch()
            images += self._step(step % per_epoch, self._rate(step / total))
            ctx.state.step = step + 1
            if ctx.state.step % per_epoch == 0:
                loss = self._end_epoch()
                if checkpoint is not None:
                    ctx.save(checkpoint)
        seconds = time.perf_counter() - start
        return self._outcome(resumed, images / seconds if images else 0.0, loss)

    def _rate(self, progress: float) -> float:
        return self._settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))

    def _start_epoch(self) -> None:
        ctx, count = self._ctx, len(self._digits.train_images)
        self._order = ctx.random.permutation(count)
        self._shifted = ctx.launch(steps.shifted, self._images, ctx.random.integers(steps.SHIFT_DRAWS, size=(count, 2)))
        self._tally = self._zeros(2)

    def _step(self, batch: int, rate: float) -> int:
        """Launch one step and return its number of images; on the CPU's own stream it is over then."""
        ctx, settings = self._ctx, self._settings
        first = batch * settings.batch_size
        count = min(settings.batch_size, len(self._digits.train_images) - first)
        bounds = [first + count * part // settings.shards for part in range(settings.shards + 1)]
        shards = [
            ctx.launch(
                steps.shard_gradient,
                self._parameters,
                self._shifted,
                self._labels,
                self._order,
                begin,
                end,
                after=self._last,
                stream=stream,
            )
            for stream, begin, end in zip(self._streams, bounds, bounds[1:], strict=False)
            if begin < end
        ]
        arrays = self._parameters, self._velocity, self._tally
        self._last = (ctx.launch(steps.update, *arrays, count, rate, settings.momentum, *shards),)
        return count

    def _end_epoch(self) -> float:
        """Wait for the epoch and return its mean loss."""
        ctx = self._ctx
        for task in self._last:
            task.result()
        ctx.state.epoch += 1
        return float(ctx.to_numpy(self._tally)[0]) / len(self._digits.train_images)

    def _outcome(self, resumed: int, images_per_second: float, loss: float | None) -> Outcome:
        ctx, data = self._ctx, self._digits
        test_images = ctx.asarray(data.test_images, copy=True)
        seen = np.array(ctx.to_numpy(ctx.launch(steps.predictions, self._parameters, test_images)))
        weights = np.ascontiguousarray(ctx.to_numpy(self._parameters), "<f4")
        return Outcome(
            device=str(ctx.device),
            seed=ctx.random.seed,
            settings=self._settings,
            test_accuracy=float(np.mean(seen == data.test_labels)),
            train_loss=loss,
            images_per_second=images_per_second,
            peak_bytes=ctx.memory.stats().peak,
            steps_run=ctx.state.step - resumed,
            resumed_at_step=resumed,
            weights_sha256=hashlib.sha256(weights.tobytes()).hexdigest(),
            predictions=seen,
            labels=data.test_labels,
            images=data.test_images[:, 0],
            dnn=self._library[0],
            dnn_version=self._library[1],
            arrays=ctx.spec.arrays,
        )

    def _zeros(self, count: int) -> Array:
        return self._ctx.asarray(np.zeros(count, np.float32), copy=True)
