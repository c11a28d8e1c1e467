"""The outcome of a run for programs (JSON) and for people (rows and pictures)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tazza.demo.network import CLASSES
from tazza.demo.settings import Outcome
from tazza.util.text import format_nbytes

__all__ = ["as_dict", "class_rows", "fact_rows", "pictures"]

_SHADES = " .:+#@"
_MARGIN = "   "


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome in JSON's types.

    Keys: device, seed, epochs, batch_size, shards, test_accuracy, class_accuracy, train_loss, images_per_second,
    peak_bytes, steps_run, resumed_at_step, weights_sha256, dnn, dnn_version, arrays.
    """
    return {
        "device": outcome.device,
        "seed": outcome.seed,
        "epochs": outcome.settings.epochs,
        "batch_size": outcome.settings.batch_size,
        "shards": outcome.settings.shards,
        "test_accuracy": outcome.test_accuracy,
        "class_accuracy": [right / count if count else None for right, count in _per_class(outcome)],
        "train_loss": outcome.train_loss,
        "images_per_second": outcome.images_per_second,
        "peak_bytes": outcome.peak_bytes,
        "steps_run": outcome.steps_run,
        "resumed_at_step": outcome.resumed_at_step,
        "weights_sha256": outcome.weights_sha256,
        "dnn": outcome.dnn,
        "dnn_version": outcome.dnn_version,
        "arrays": outcome.arrays,
    }


def fact_rows(outcome: Outcome) -> list[tuple[str, str]]:
    """Return what there is to say in one line each."""
    count = len(outcome.labels)
    right = int(np.sum(outcome.predictions == outcome.labels))
    resumed = f", continued at step {outcome.resumed_at_step}" if outcome.resumed_at_step else ""
    return [
        ("device", f"{outcome.device}, arrays of {outcome.arrays}"),
        ("seed", str(outcome.seed)),
        ("epochs", f"{outcome.settings.epochs}, in batches of {outcome.settings.batch_size}"),
        ("steps", f"{outcome.steps_run}{resumed}"),
        (
            "speed",
            f"{outcome.images_per_second:,.0f} images/s with the {outcome.dnn} {outcome.dnn_version} DNN library",
        ),
        ("peak memory", format_nbytes(outcome.peak_bytes)),
        ("held-out digits", f"{right} of {count} recognised: {outcome.test_accuracy:.2%}"),
        ("weights", f"SHA-256 {outcome.weights_sha256[:16]}..."),
    ]


def class_rows(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Return, for each digit, how many of it were recognised, and the share as a bar of 20 characters."""
    rows = []
    for digit, (right, count) in enumerate(_per_class(outcome)):
        share = right / count if count else 0.0
        rows.append((str(digit), ("=" * round(20 * share)).ljust(20, "."), f"{right}/{count}"))
    return rows


def pictures(outcome: Outcome, count: int = 5) -> str:
    """Draw held-out digits side by side, those that were not recognised first."""
    wrong = outcome.predictions != outcome.labels
    chosen = np.argsort(~wrong, kind="stable")[:count]
    captions = [
        f"{outcome.labels[one]}, seen as {outcome.predictions[one]}"[:16].ljust(16)
        if wrong[one]
        else f"{outcome.labels[one]}".ljust(16)
        for one in chosen
    ]
    lines = [_MARGIN.join(_shade(outcome.images[one, row]) for one in chosen) for row in range(8)]
    return "\n".join("  " + line.rstrip() for line in [*lines, _MARGIN.join(captions)])


def _shade(row: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    """Return one line of a picture; two characters a pixel make it about square."""
    levels = np.clip(row * len(_SHADES), 0, len(_SHADES) - 1).astype(int)
    return "".join(2 * _SHADES[level] for level in levels)


def _per_class(outcome: Outcome) -> list[tuple[int, int]]:
    """Return, for each digit, how many were recognised and how many there are."""
    right = np.bincount(outcome.labels[outcome.predictions == outcome.labels], minlength=CLASSES)
    return list(zip(right.tolist(), np.bincount(outcome.labels, minlength=CLASSES).tolist(), strict=True))
