"""Rows as an attack writes them."""

import pytest


@pytest.fixture
def row():
    """A function (arm, final, …) -> the row of a victim."""

    def build(arm, final, peak=None, seed=0, arch="cnn", countermeasure="none", stopped=None):
        return {
            "countermeasure": countermeasure,
            "arm": arm,
            "arch": arch,
            "seed": seed,
            "accuracy_final": final,
            "accuracy_stopped": stopped or final,
            "accuracy_peak": peak or final,
            "accuracy_curve": [10.0, final],
            "loss_curve": [2.0, 1.0],
        }

    return build
