"""The result of an attack as text, as plots, and as one HTML file that needs nothing beside it."""

import base64
import html
import io
import json
from pathlib import Path

from fastue.core.errors import UsageError
from fastue.data.atomic import atomic_write_bytes, atomic_write_text
from fastue.protocol.cells import summarise, verdict

ARM_COLOURS = {
    "clean": "#2a9d3a",
    "protected": "#c1121f",
    "random-sample": "#6c757d",
    "random-class": "#1d6fa5",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } tr.protected td { font-weight: 600 }
.verdict { font-size: 1.15rem; padding: .8rem 1rem; background: #f4f1e8; border-left: 4px solid #c1121f }
img { max-width: 100% } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12.5px }
"""


def text_table(rows: list[dict]) -> str:
    """The summary for a terminal: clean-test accuracy in percent, worst case for the owner (highest) first."""
    lines = [
        f"{'countermeasure':<15} {'victim':<16} {'trained on':<14} {'final %':>15} {'highest':>8} {'peak %':>7} seeds"
    ]
    for line in _ordered(rows):
        spread = f"{line['final_mean']:.1f}" + (
            f" +- {line['final_sd']:4.1f}" if line["seeds"] > 1 else ""
        )
        lines.append(
            f"{line['countermeasure']:<15} {line['arch']:<16} {line['arm']:<14} {spread:>15} {line['final_max']:8.1f} "
            f"{line['peak_mean']:7.1f} {line['seeds']:5d}"
        )
    return "\n".join(lines)


def _ordered(rows: list[dict]) -> list[dict]:
    arms = list(ARM_COLOURS)
    return sorted(
        summarise(rows), key=lambda line: (arms.index(line["arm"]) != 1, -line["final_mean"])
    )


def accuracy_plot(rows: list[dict], num_classes: int) -> bytes | None:
    """PNG of clean-test accuracy over epochs, a panel a victim; None without matplotlib (extra `report`)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    panels = list(dict.fromkeys((row["countermeasure"], row["arch"]) for row in rows))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * lines), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        for arm, colour in ARM_COLOURS.items():
            label = arm
            for row in rows:
                if (row["countermeasure"], row["arch"], row["arm"]) == (*panel, arm):
                    curve = row["accuracy_curve"]
                    style = {"marker": "o"} if len(curve) == 1 else {}
                    axis.plot(
                        range(1, len(curve) + 1),
                        curve,
                        color=colour,
                        alpha=0.8,
                        label=label,
                        **style,
                    )
                    label = None  # one legend entry an arm
        axis.axhline(100 / num_classes, color="black", lw=0.8, ls=":", label="chance")
        axis.set(xlabel="epoch", ylabel="accuracy on clean test pictures (%)", ylim=(0, 100))
        axis.set_title(panel[1] if panel[0] == "none" else f"{panel[1]}, {panel[0]}", fontsize=10)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_report(
    out: Path, rows: list[dict], config: dict, num_classes: int, preview: Path | None
) -> list[Path]:
    """Write `report.html` and, with matplotlib, `accuracy.png` into `out`; the paths written."""
    if not rows:
        raise UsageError(f"{out}: there is no row to report")
    written = []
    plot = accuracy_plot(rows, num_classes)
    if plot:
        atomic_write_bytes(out / "accuracy.png", plot)
        written.append(out / "accuracy.png")
    body = [
        f"<p class='verdict'>{html.escape(verdict(rows, num_classes))}</p>",
        "<p>Accuracy on clean test pictures in percent, after the last epoch; highest = the best seed, peak = the best "
        "epoch picked with the test set, an upper bound for the adversary. Noise alone (random-*) is the control.</p>",
        _html_table(rows),
        f"<h2>Accuracy over epochs</h2><img alt='accuracy over epochs' src='{_uri(plot)}'>"
        if plot else "<p>No plot: matplotlib is not installed (pip install 'fastue[report]').</p>",
    ]  # fmt: skip
    if preview and preview.exists():
        body.append(
            f"<h2>Pictures</h2><img alt='clean, noise, protected, difference' src='{_uri(preview.read_bytes())}'>"
        )
    body.append(
        f"<h2>Configuration</h2><pre>{html.escape(json.dumps(config, indent=2, sort_keys=True))}</pre>"
    )
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>fastue attack</title>"
        f"<style>{STYLE}</style></head><body><h1>What a victim learns from the protected pictures</h1>"
        + "\n".join(body) + "</body></html>\n"
    )  # fmt: skip
    atomic_write_text(out / "report.html", page)
    return [*written, out / "report.html"]


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _html_table(rows: list[dict]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("countermeasure", "victim", "trained on")) + "".join(
        f"<th class='n'>{h}</th>" for h in ("final", "highest", "peak", "seeds")
    )
    lines = []
    for line in _ordered(rows):
        names = "".join(
            f"<td>{html.escape(str(line[k]))}</td>" for k in ("countermeasure", "arch", "arm")
        )
        final = f"{line['final_mean']:.1f}" + (
            f" &plusmn; {line['final_sd']:.1f}" if line["seeds"] > 1 else ""
        )
        numbers = (
            final,
            f"{line['final_max']:.1f}",
            f"{line['peak_mean']:.1f}",
            str(line["seeds"]),
        )
        cells = "".join(f"<td class='n'>{number}</td>" for number in numbers)
        lines.append(f"<tr class='{line['arm']}'>{names}{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
