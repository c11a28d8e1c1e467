"""Make ``src/tazza/rng/tables.npz``: polynomials of the inverse normal and exponential distribution functions.

Usage: ``python tools/make_random_tables.py [OUTPUT]``; needs mpmath and takes about a minute.

An octave ``[2**e, 2**(e + 1))`` of ``x`` (e from 0 to 62) is cut into 64 equal segments. In each, with
``x = 2**e * (1 + j / 64 + t)`` and ``t`` in [0, 1/64), a polynomial in ``t`` interpolates the function at Chebyshev
points, in 40-digit arithmetic; coefficients are rounded once. One more segment holds ``x == 2**63``, where both
functions are 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

OCTAVES, SEGMENTS = 63, 64
DEGREES = {"float64": 5, "float32": 2}

mpmath.mp.dps = 40


def normal(x: Any) -> Any:
    """Return the standard normal value whose upper tail has the probability ``x * 2**-64``."""
    tail = x * mpmath.mpf(2) ** -64
    if tail == 0.5:
        return mpmath.mpf(0)
    start = -mpmath.mpf(NormalDist().inv_cdf(float(tail)))
    # One Newton step squares the error of the start, which is 1e-16 of the value.
    excess = mpmath.erfc(start / mpmath.sqrt(2)) / 2 - tail
    return start + excess / mpmath.npdf(start)


def exponential(x: Any) -> Any:
    """Return the standard exponential value that is exceeded with the probability ``x * 2**-63``."""
    return 63 * mpmath.log(2) - mpmath.log(x)


def polynomial(function: Callable[[Any], Any], octave: int, segment: int, degree: int) -> list[Any]:
    """Return the coefficients in ``t``, the constant first, of the interpolant on one segment."""
    width = mpmath.mpf(1) / SEGMENTS
    points = [(1 - mpmath.cos((2 * i + 1) * mpmath.pi / (2 * degree + 2))) / 2 * width for i in range(degree + 1)]
    values = [function(2**octave * (1 + segment * width + point)) for point in points]
    scaled = mpmath.matrix([[(point / width) ** power for power in range(degree + 1)] for point in points])
    solution = mpmath.lu_solve(scaled, mpmath.matrix(values))
    return [solution[power] / width**power for power in range(degree + 1)]


def table(function: Callable[[Any], Any], dtype: str) -> NDArray[Any]:
    """Return the coefficients of all segments, shape ``(degree + 1, 63 * 64 + 1)``."""
    degree = DEGREES[dtype]
    rows = [polynomial(function, octave, j, degree) for octave in range(OCTAVES) for j in range(SEGMENTS)]
    rows.append([0.0] * (degree + 1))
    return np.array([[float(value) for value in row] for row in rows]).T.astype(dtype)


def main(output: Path) -> None:
    """Write the four tables, with fixed time stamps, so that equal input gives an equal file."""
    functions = {"normal": normal, "exponential": exponential}
    tables = {f"{name}_{dtype}": table(f, dtype) for name, f in functions.items() for dtype in DEGREES}
    np.savez_compressed(output, **tables)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src/tazza/rng/tables.npz")
