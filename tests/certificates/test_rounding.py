"""Upper bounds are printed rounded up, lower ones down, and no confidence is 100 %."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from fastue.certificates.rounding import (
    confidence,
    rounded_down,
    rounded_up,
    shortened_down,
    shortened_up,
)


def test_what_has_so_many_decimals_stays():
    for correct in range(10_001):  # 100 * correct / 10,000 in floats goes both ways
        text = f"{correct // 100}.{correct % 100:02d}"
        assert rounded_up(Fraction(100 * correct, 10_000)) == text
        assert rounded_down(Fraction(100 * correct, 10_000)) == text
    assert rounded_up(12) == "12.00" and rounded_up(0.1, 1) == "0.1"
    assert rounded_up(np.float64(0.07)) == "0.07" and rounded_up(np.int64(3), 0) == "3"


def test_the_rest_goes_to_the_safe_side_by_less_than_a_unit():
    random = np.random.default_rng(0)
    for _ in range(2000):
        x = Fraction(int(random.integers(-(10**9), 10**9)), int(random.integers(1, 10**7)))
        decimals = int(random.integers(0, 6))
        unit = Fraction(1, 10**decimals)
        up, down = Fraction(rounded_up(x, decimals)), Fraction(rounded_down(x, decimals))
        assert down <= x <= up and up - x < unit and x - down < unit
        assert rounded_up(-x, decimals).strip("-") == rounded_down(x, decimals).strip("-")
        digits = int(random.integers(1, 8))
        up, down = Fraction(shortened_up(x, digits)), Fraction(shortened_down(x, digits))
        assert down <= x <= up
        for short in (up, down):
            assert len(Decimal(short.numerator).normalize().as_tuple().digits) <= 40
            assert abs(short - x) < abs(x) * Fraction(10) ** (1 - digits)
    assert rounded_up(Fraction(1, 3)) == "0.34" and rounded_down(Fraction(1, 3)) == "0.33"
    assert rounded_up(Fraction(-1, 3)) == "-0.33" and rounded_down(Fraction(-1, 3)) == "-0.34"
    assert rounded_up(99.991, 2) == "100.00" and rounded_up(99.2, 0) == "100"


@pytest.mark.parametrize(
    "value, down, up",
    [
        (0.06, "0.06", "0.06"),
        (0, "0", "0"),
        (100, "100", "100"),
        (0.12345678, "0.123456", "0.123457"),
        (1234567.8, "1234560", "1234570"),
        (9.9999999, "9.99999", "10"),
        (3e-7, "0.0000003", "0.0000003"),
    ],
)
def test_shortened(value, down, up):
    assert (shortened_down(value), shortened_up(value)) == (down, up)


@pytest.mark.parametrize(
    "errors, text",
    [
        ((0.01,), "99"),
        ((0.01, 0.01), "98"),
        ((0.1, 0.2), "70"),  # 0.30000000000000004 in floats
        ((0.05,), "95"),
        ((0.00123,), "99.87"),
        ((1e-9,), "99.9999999"),
        ((1e-40,), "99." + "9" * 38),
        ((Fraction(1, 3),), "66"),
        ((0.996,), "0"),
        ((0.7, 0.7), "0"),
    ],
)
def test_confidence(errors, text):
    assert confidence(*errors) == text
