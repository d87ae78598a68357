"""The clock counts what it is told to, and a stopped one counts nothing."""

import time

from fastue.core.clock import Clock


def test_spans_add_up_by_name():
    clock = Clock(running=True)
    for _ in range(2):
        with clock("a"):
            time.sleep(0.02)
    assert list(clock.over("b", [1, 2, 3])) == [1, 2, 3]
    assert clock.seconds["a"] >= 0.04 and set(clock.seconds) == {"a", "b"}
    assert clock.text().splitlines()[0].startswith("a ") and "other" in clock.text()


def test_a_stopped_clock_measures_nothing():
    clock = Clock()
    with clock("a"):
        pass
    assert list(clock.over("b", "xy")) == ["x", "y"] and not clock.seconds
