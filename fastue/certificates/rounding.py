"""Numbers as text, rounded to the side on which the statement stays true.

Exact: 12 stays "12.00". A float is taken for the shortest decimal that reads back as it, which is
what somebody typed. One that was computed carries noise, so the share of the pictures comes as
Fraction(100 * correct, total).
"""

import math
from collections.abc import Callable
from fractions import Fraction
from numbers import Rational

Number = Rational | float


def rounded_up(value: Number, decimals: int = 2) -> str:
    """Of an upper bound: the smallest number with so many decimals that is not below it."""
    return _text(value, decimals, math.ceil)


def rounded_down(value: Number, decimals: int = 2) -> str:
    """Of a lower bound: the largest number with so many decimals that is not above it."""
    return _text(value, decimals, math.floor)


def shortened_up(value: Number, digits: int = 6) -> str:
    """Up to `digits` significant ones, without zeros at the end: of alpha, an upper bound."""
    return _shortened(value, digits, math.ceil)


def shortened_down(value: Number, digits: int = 6) -> str:
    """Down to `digits` significant ones, without zeros at the end: of eta and q, lower bounds."""
    return _shortened(value, digits, math.floor)


def confidence(*errors: Number) -> str:
    """100 (1 - sum of error probabilities), in percent and rounded down: below "100" always.

    The error keeps two significant digits.
    """
    error = sum(map(_exact, errors))
    left = 100 - Fraction(shortened_up(100 * error, 2))
    decimals = max(0, 1 - _magnitude(100 * error))
    return _without_zeros(rounded_down(max(Fraction(0), left), decimals))


def _exact(value: Number) -> Fraction:
    return Fraction(value if isinstance(value, Rational) else repr(float(value)))


def _magnitude(value: Fraction) -> int:
    """The m of |value| in [10^m, 10^(m+1)); value is not 0."""
    guess = len(str(abs(value.numerator))) - len(str(value.denominator))
    return guess if abs(value) >= Fraction(10) ** guess else guess - 1


def _text(value: Number, decimals: int, towards: Callable[[Fraction], int]) -> str:
    units = towards(_exact(value) * Fraction(10) ** decimals)
    if decimals <= 0:
        return str(units * 10**-decimals)
    whole, rest = divmod(abs(units), 10**decimals)
    return f"{'-' if units < 0 else ''}{whole}.{rest:0{decimals}d}"


def _shortened(value: Number, digits: int, towards: Callable[[Fraction], int]) -> str:
    exact = _exact(value)
    decimals = digits - 1 - _magnitude(exact) if exact else 0
    return _without_zeros(_text(exact, decimals, towards))


def _without_zeros(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
