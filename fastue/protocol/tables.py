"""The tables of an attack: made once, written as text, Markdown and HTML."""

from __future__ import annotations

import html
from dataclasses import dataclass

from fastue.protocol.summary import ORACLE, Setting, settings

UNKNOWN = "–"


@dataclass(frozen=True)
class Table:
    """`head` and `lines` of words; the first `names` columns are names, the others numbers. The
    first line is the worst case where `worst`: bold."""

    head: list[str]
    lines: list[list[str]]
    names: int
    worst: bool = False

    def text(self) -> str:
        """For a terminal, names at the left, numbers at the right."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.lines, strict=True)]
        return "\n".join(
            "  ".join(
                word.ljust(width) if column < self.names else word.rjust(width)
                for column, (word, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [self.head, *self.lines]
        )

    def markdown(self) -> str:
        rule = [":--" if column < self.names else "--:" for column in range(len(self.head))]
        lines = [[word.replace("|", "\\|") for word in line] for line in self.lines]
        if self.worst:
            lines[:1] = [[f"**{word}**" for word in line] for line in lines[:1]]
        return "\n".join(f"| {' | '.join(line)} |" for line in [self.head, rule, *lines])

    def html(self) -> str:
        """In a box of its own, which scrolls where a phone is narrower than the table."""
        head = "".join(self._cell("th", column, word) for column, word in enumerate(self.head))
        body = ""
        for number, line in enumerate(self.lines):
            mark = " class='worst'" if self.worst and not number else ""
            cells = "".join(self._cell("td", column, word) for column, word in enumerate(line))
            body += f"<tr{mark}>{cells}</tr>\n"
        return f"<div class='box'><table><tr>{head}</tr>\n{body}</table></div>"

    def _cell(self, tag: str, column: int, word: str) -> str:
        number = "" if column < self.names else " class='n'"
        return f"<{tag}{number}>{html.escape(word)}</{tag}>"


def settings_table(rows: list[dict], num_classes: int) -> Table:
    """A line for each countermeasure and architecture, the worst case first. What is the same in
    all lines or known of none (victim, random noise, aux) has no column."""
    found = settings(rows, num_classes)
    columns = {
        "countermeasure": lambda one: one.label,
        "victim": lambda one: one.arch,
        "worst seed": lambda one: _number(one.kept if one.authorized else one.reached),
        "clean, same countermeasure": lambda one: _mean(one, "clean", "stopped"),
        "recovered": lambda one: UNKNOWN if one.recovered is None else _percent(one.recovered),
        "mean": lambda one: _mean(one, "protected", "stopped"),
        "last epoch": lambda one: _mean(one, "protected", "final"),
        "random noise": lambda one: _number(one.random),
        "oracle epoch": lambda one: _number(one.arms.get("protected", {}).get("peak_max")),
        "aux": lambda one: _aux(one.aux),
        "seeds": lambda one: str(max(line["seeds"] for line in one.arms.values())),
    }
    if len({one.arch for one in found}) == 1:
        del columns["victim"]
    if all(one.random is None for one in found):
        del columns["random noise"]
    if all(one.aux is None for one in found):
        del columns["aux"]
    lines = [[value(one) for value in columns.values()] for one in found]
    names = 2 if "victim" in columns else 1
    return Table(list(columns), lines, names, worst=found[0].reached is not None)


def arms_table(rows: list[dict], num_classes: int) -> Table:
    """A line for each training set of each setting: what the other table is made of."""
    head = ["countermeasure", "victim", "trained on", "last epoch", "early stop", "worst seed"]
    head += ["oracle epoch", "seeds"]
    lines = [
        [
            *(one.label, one.arch, arm, _mean(one, arm, "final")),
            *(_mean(one, arm, "stopped"), _number(line["stopped_max"])),
            *(_number(line["peak_max"]), str(line["seeds"])),
        ]
        for one in settings(rows, num_classes)
        for arm, line in one.arms.items()
    ]
    return Table(head, lines, names=3)


def found_table(rows: list[dict], num_classes: int) -> Table | None:
    """What countermeasures found beside accuracies (a linear separability …), as means over seeds."""
    known = {"accuracy_final", "accuracy_stopped", "accuracy_peak", "train_accuracy", "seconds"}
    labels = {(o.countermeasure, o.arch): (o.label, o.arch) for o in settings(rows, num_classes)}
    values: dict[tuple, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and name not in known:
                label = labels[row["countermeasure"], row["arch"]]
                key = (*label, row["arm"], name.replace("_", " "))
                values.setdefault(key, []).append(value)
    lines = [[*key, f"{sum(each) / len(each):.3g}"] for key, each in values.items()]
    head = ["countermeasure", "victim", "trained on", "what", "mean"]
    return Table(head, lines, names=4) if lines else None


def survival_table(card: list[dict]) -> Table:
    lines = [
        [
            one["handling"],
            _percent(one["energy"]),
            UNKNOWN if one["correlation"] is None else f"{one['correlation']:.2f}",
        ]
        for one in card
    ]
    return Table(["saved as", "energy left", "correlation"], lines, names=1)


def _mean(one: Setting, arm: str, figure: str) -> str:
    """One seed has no spread."""
    if arm not in one.arms:
        return UNKNOWN
    line = one.arms[arm]
    spread = f" ± {line[f'{figure}_sd']:.1f}" if line["seeds"] > 1 else ""
    return f"{line[f'{figure}_mean']:.1f}{spread}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _aux(aux: int | str | None) -> str:
    return UNKNOWN if aux is None else "ORACLE" if aux == ORACLE else str(aux)
