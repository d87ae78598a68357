"""Rows as an attack writes them."""

import pytest


@pytest.fixture
def row():
    """A function (arm, final, …) -> the row of a victim."""

    def build(
        arm, final, peak=None, seed=0, arch="cnn", countermeasure="none", stopped=None, **more
    ):
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
            **more,
        }

    return build


@pytest.fixture
def setting(row):
    """A function (countermeasure, protected, clean, …) -> its rows, one victim an accuracy."""

    def build(countermeasure, protected, clean=(), random=(), **more):
        arms = {"protected": protected, "clean": clean, "random-class": random}
        return [
            row(arm, accuracy, seed=seed, countermeasure=countermeasure, **more)
            for arm, accuracies in arms.items()
            for seed, accuracy in enumerate(accuracies)
        ]

    return build
