from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["PrimitiveSequence", "call_key"]

def call_key(kind: bytes, arrays: list[Any], options: tuple[Any, ...], more: int) -> bytes: ...

class PrimitiveSequence:
    def __init__(
        self,
        functions: tuple[int, int, int, int],
        threads: int,
        slots: Sequence[tuple[int, int, int]],
        steps: Sequence[tuple[int, Sequence[tuple[int, int]]]],
        expected: tuple[tuple[np.dtype[Any], tuple[int, ...], tuple[int, ...]] | None, ...],
        owner: object,
    ) -> None: ...
    def run(self, arrays: Sequence[Any], stream: int, scratch: int) -> int: ...
