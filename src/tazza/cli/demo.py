"""``tazza demo``: train a small convolutional network on 1,437 handwritten digits and show how it does on 360 others.

The weights depend on seed, settings and array library only: not on the device, the number of cores or of threads, nor
on whether the run was killed and resumed from its checkpoint. Of two array libraries they differ by rounding.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

import tazza as tz
from tazza.cli.exits import ExitCode, find_device
from tazza.cli.output import build, show_json, show_table, show_text, versions
from tazza.demo import Settings, run
from tazza.demo.report import as_dict, class_rows, fact_rows, pictures

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the demo."""
    defaults = {field.name: field.default for field in fields(Settings)}
    parser.add_argument("--device", default="auto", metavar="D", help="where to train: auto, cpu, sim:0, ...")
    parser.add_argument("--arrays", metavar="L", help="the array library: numpy, or torch with autograd on the CPU")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default 0)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=defaults["epochs"],
        metavar="E",
        help="passes over the images (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=defaults["batch_size"],
        metavar="B",
        help="images of a step (default %(default)s)",
    )
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="saved after each epoch; continued from where it exists already"
    )


def execute(options: argparse.Namespace) -> ExitCode:
    """Train, then print the report."""
    settings = Settings(epochs=options.epochs, batch_size=options.batch_size)
    with tz.open(find_device(options.device), seed=options.seed, arrays=options.arrays) as ctx:
        outcome = run(ctx, settings, checkpoint=options.checkpoint)
    if options.json:
        show_json(as_dict(outcome) | {"build": build(), "compiled": build() == "compiled", "versions": versions()})
        return ExitCode.OK
    show_table("Handwritten digits", ("", ""), fact_rows(outcome), left=2)
    show_table("Recognised among the held-out digits", ("digit", "share", ""), class_rows(outcome), left=2)
    show_text(pictures(outcome))
    return ExitCode.OK
