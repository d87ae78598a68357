"""Rows of victims as figures over seeds: one group of arms for each countermeasure and
architecture, the worst case for the owner first."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from fastue.protocol.arms import CONTROLS

LEAST_POINTS = 10.0  # that clean pictures must teach above chance, or a victim says nothing
AUTHORIZED = "authorized"  # the countermeasure of who may learn: see fastue.protocol.authorization
ORACLE = "oracle"  # row["aux"] where the test pictures themselves were the adversary's


@dataclass(frozen=True)
class Setting:
    """A countermeasure and an architecture: what may be compared with each other.

    `arms`: {arm: its line of `summarise`}. `plain`: the arms of the same architecture without a
    countermeasure. Accuracies are in percent, at the epoch picked on held-out clean pictures.
    """

    countermeasure: str
    arch: str
    arms: dict[str, dict]
    plain: dict[str, dict]
    chance: float

    @property
    def label(self) -> str:
        """The countermeasure in tables and above plots: an oracle is never passed over."""
        return f"{self.countermeasure} (ORACLE)" if self.aux == ORACLE else self.countermeasure

    @property
    def after(self) -> str:
        return "" if self.countermeasure == "none" else f" after {self.countermeasure}"

    @property
    def authorized(self) -> bool:
        return self.countermeasure == AUTHORIZED

    @property
    def kept(self) -> float | None:
        """What is left to who is authorized, by the seed that is worst for him."""
        return self.arms["protected"]["stopped_min"] if "protected" in self.arms else None

    @property
    def reached(self) -> float | None:
        """By the seed that is worst for the owner, on the protected pictures."""
        return self.arms["protected"]["stopped_max"] if "protected" in self.arms else None

    @property
    def clean(self) -> float | None:
        """What clean pictures teach: mean over seeds without a countermeasure; under this one where
        there was no other."""
        line = self.plain.get("clean") or self.arms.get("clean")
        return line["stopped_mean"] if line else None

    @property
    def share(self) -> float | None:
        """Of what clean pictures teach above chance, the share that the protected ones do. None
        where there is nothing to compare, or clean pictures teach too little to tell."""
        if self.reached is None or self.clean is None or self.clean - self.chance < LEAST_POINTS:
            return None
        return (self.reached - self.chance) / (self.clean - self.chance)

    @property
    def recovered(self) -> float | None:
        """(acc - acc_protected) / (acc_clean - acc_protected), means over seeds: 0 is plain training
        on the protected pictures, 1 plain training on clean ones."""
        if "protected" not in self.arms or not {"protected", "clean"} <= set(self.plain):
            return None
        low, high = (self.plain[arm]["stopped_mean"] for arm in ("protected", "clean"))
        return (self.arms["protected"]["stopped_mean"] - low) / (high - low) if high > low else None

    @property
    def random(self) -> float | None:
        """Where random noise of the same budget leaves the victim: the lower of the two kinds."""
        means = [self.arms[arm]["stopped_mean"] for arm in CONTROLS if arm in self.arms]
        return min(means, default=None)

    @property
    def aux(self) -> int | str | None:
        """How many clean pictures the adversary had, or ORACLE; None where it needed none."""
        found = {line["aux"] for line in self.arms.values()}
        return ORACLE if ORACLE in found else max(found - {None}, default=None)


def settings(rows: list[dict], num_classes: int) -> list[Setting]:
    """The worst case for the owner first: where the protected pictures teach the largest share of
    what clean ones do. What no real adversary has (ORACLE) comes after what some may have, then
    what cannot be judged; who is authorized comes last."""
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for line in sorted(summarise(rows), key=lambda line: _arm_order(line["arm"])):
        groups.setdefault((line["countermeasure"], line["arch"]), {})[line["arm"]] = line
    found = [
        Setting(name, arch, arms, groups.get(("none", arch), {}), 100 / num_classes)
        for (name, arch), arms in groups.items()
    ]

    def order(one: Setting) -> tuple:
        reached = one.reached if one.reached is not None else -1.0
        last = one.authorized, one.aux == ORACLE
        return *last, one.share is None, -(one.share or 0.0), -reached

    return sorted(found, key=order)


def summarise(rows: list[dict]) -> list[dict]:
    """Figures over seeds of each (countermeasure, arch, arm), in percent, in the order of the rows:

    final_mean, final_sd    after the last epoch
    stopped_mean, stopped_sd, stopped_max, stopped_min    at the epoch picked on held-out clean
        pictures; max is the best seed
    peak_max    at the epoch picked with the test set itself, the best seed
    aux    clean pictures that the adversary had, "oracle", or None
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["countermeasure"], row["arch"], row["arm"]), []).append(row)
    table = []
    for (countermeasure, arch, arm), members in groups.items():
        final = [row["accuracy_final"] for row in members]
        stopped = [accuracy_stopped(row) for row in members]
        table.append(
            {
                "countermeasure": countermeasure,
                "arch": arch,
                "arm": arm,
                "seeds": len(members),
                "final_mean": statistics.fmean(final),
                "final_sd": _sd(final),
                "stopped_mean": statistics.fmean(stopped),
                "stopped_sd": _sd(stopped),
                "stopped_max": max(stopped),
                "stopped_min": min(stopped),
                "peak_max": max(row["accuracy_peak"] for row in members),
                "aux": members[0].get("aux"),
            }
        )
    return table


def _sd(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def accuracy_stopped(row: dict) -> float:
    """Rows written before there was such a figure have the best epoch on all test pictures."""
    return row.get("accuracy_stopped", row["accuracy_peak"])


def protected_share(arm: str) -> int | None:
    """Percent of an arm's pictures that are protected, the others being clean: 25 of
    `protected-25`. None for random noise."""
    if arm in ("clean", "protected"):
        return 100 if arm == "protected" else 0
    share = arm.removeprefix("protected-")
    return int(share) if share.isdigit() else None


def _arm_order(arm: str) -> tuple:
    """What the protection left, also among clean pictures, then what it is compared with."""
    share = protected_share(arm)
    return (1, 0, arm) if share is None else (0, -share, arm)
