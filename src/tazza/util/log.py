"""The standard library's logging, for programs that use it: nobody else pays for its import."""

from __future__ import annotations

import sys

__all__ = ["info"]


def info(name: str, message: str, *args: object) -> None:
    """Log at the level INFO, where the program has imported `logging`: otherwise nobody could have asked for it.

    Args:
        name: of the logger; ``docs/guides/observe.md`` lists them.
        message: with the placeholders of ``%`` for `args`, which are only formatted where somebody reads it.
    """
    logging = sys.modules.get("logging")
    if logging is not None:
        logging.getLogger(name).info(message, *args)
