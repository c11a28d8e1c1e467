"""The complementary error function, which the Array API standard lacks, for float32 and float64.

Source: W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969),
pages 631 to 637, with the coefficients of his Fortran routine CALERF (netlib, SPECFUN). Three rational functions stand
for three ranges of ``abs(x)``. In the upper two ``exp(-x * x)`` is taken in two factors, the first of them of a number
with few digits, whose square is exact: else the rounding of the square alone would cost ``x * x`` times its error.
"""

from __future__ import annotations

from typing import Any

from tazza.dnn.interface import Array

__all__ = ["erfc"]

_NEAR, _FAR = 0.46875, 4.0
_END = 30.0
"""Beyond this the result is zero in every dtype here, and the square must not overflow."""

_ROOT = 0.56418958354775628695
"""One over the square root of pi."""

_A = (1.85777706184603153e-1, 3.16112374387056560, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3)
_B = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3)
_C = (
    *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1),
    *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
    1.23033935479799725e3,
)
_D = (
    *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3),
    *(3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)
_P = (
    *(1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1),
    *(1.60837851487422766e-2, 6.58749161529837803e-4),
)
_Q = (
    *(1.0, 2.56852019228982242, 1.87295284992346047, 5.27905102951428412e-1, 6.05183413124413191e-2),
    2.33520497626869185e-3,
)


def erfc(xp: Any, x: Array) -> Array:
    """Return ``1 - erf(x)`` of each element, accurate also where it is tiny; NaN stays NaN.

    Args:
        xp: namespace of the array.
        x: of any shape, float32 or float64.

    >>> import array_api_compat.numpy as xp
    >>> erfc(xp, xp.asarray([0.0, 5.0])).tolist()
    [1.0, 1.5374597944280347e-12]
    """
    size = xp.abs(x)
    small = xp.clip(size, 0.0, _NEAR)
    square = small * small
    near = 1.0 - x * _ratio(square, _A, _B)  # only used where x is as small as `small`
    middle = xp.clip(size, _NEAR, _FAR)
    large = xp.clip(size, _FAR, _END)
    inverse = 1.0 / (large * large)
    end = (_ROOT - inverse * _ratio(inverse, _P, _Q)) / large
    tail = _exponential(xp, xp.clip(size, _NEAR, _END)) * xp.where(size <= _FAR, _ratio(middle, _C, _D), end)
    return xp.where(size <= _NEAR, near, xp.where(x > 0, tail, 2.0 - tail))


def _exponential(xp: Any, x: Array) -> Array:
    """Return ``exp(-x * x)`` of positive elements."""
    few = xp.trunc(x * 16.0) / 16.0
    return xp.exp(-few * few) * xp.exp(-(x - few) * (x + few))


def _ratio(x: Array, above: tuple[float, ...], below: tuple[float, ...]) -> Array:
    return _polynomial(x, above) / _polynomial(x, below)


def _polynomial(x: Array, factors: tuple[float, ...]) -> Array:
    """Return the value of a polynomial, highest power first."""
    value = x * factors[0] + factors[1]
    for factor in factors[2:]:
        value = value * x + factor
    return value
