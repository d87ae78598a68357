"""Rows of victims as a table: one line for each countermeasure, architecture and arm."""

import statistics

from fastue.protocol.arms import PARTLY

# Beside each other in a table: what the protection left, then what it is compared with.
ARM_ORDER = ("protected", *reversed(PARTLY), "clean", "random-sample", "random-class")


def summarise(rows: list[dict]) -> list[dict]:
    """Figures over seeds of each (countermeasure, arch, arm), in percent, in the order of the rows:

    final_mean, final_sd    after the last epoch
    stopped_mean, stopped_max    at the epoch picked on held-out clean pictures; the best seed
    peak_max    at the epoch picked with the test set itself, the best seed
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
                "final_sd": statistics.stdev(final) if len(final) > 1 else 0.0,
                "stopped_mean": statistics.fmean(stopped),
                "stopped_max": max(stopped),
                "peak_max": max(row["accuracy_peak"] for row in members),
            }
        )
    return table


def accuracy_stopped(row: dict) -> float:
    """Rows written before there was such a figure have the best epoch on all test pictures."""
    return row.get("accuracy_stopped", row["accuracy_peak"])


def settings(rows: list[dict]) -> dict[tuple[str, str], dict[str, dict]]:
    """{(countermeasure, arch): {arm: its line}}: what may be compared with each other.

    The worst case for the owner comes first: where the protected pictures teach the most.
    """
    groups: dict[tuple[str, str], dict[str, dict]] = {}
    for line in sorted(summarise(rows), key=lambda line: ARM_ORDER.index(line["arm"])):
        groups.setdefault((line["countermeasure"], line["arch"]), {})[line["arm"]] = line

    def learnt(setting: tuple[str, str]) -> float:
        protected = groups[setting].get("protected")
        return protected["stopped_max"] if protected else float("-inf")

    return {setting: groups[setting] for setting in sorted(groups, key=learnt, reverse=True)}


def setting_name(countermeasure: str, arch: str) -> str:
    return arch if countermeasure == "none" else f"{arch} after {countermeasure}"
