"""The result of an attack as text, as plots, and as one HTML file that needs nothing beside it."""

import base64
import html
import io
import json
from pathlib import Path

from fastue.core.errors import UsageError
from fastue.countermeasures import SUMMARIES
from fastue.data.atomic import atomic_write_bytes, atomic_write_text
from fastue.protocol.summary import setting_name, settings
from fastue.protocol.verdict import verdict

ARM_COLOURS = {
    "clean": "#2a9d3a",
    "protected": "#c1121f",
    "protected-75": "#e85d04",
    "protected-50": "#f48c06",
    "protected-25": "#d4a017",
    "random-sample": "#6c757d",
    "random-class": "#1d6fa5",
}
HEADINGS = ("countermeasure", "victim", "trained on")
NUMBERS = ("final", "early stop, worst seed", "oracle, worst seed", "seeds")

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
tr.protected td { font-weight: 600; border-top: 2px solid #999 }
.verdict { font-size: 1.15rem; padding: .8rem 1rem; background: #f4f1e8;
           border-left: 4px solid #c1121f }
img { max-width: 100% }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 12.5px }
"""


def text_table(rows: list[dict]) -> str:
    """The summary for a terminal: clean-test accuracy in percent, the setting that is the worst
    case for the owner first, with its controls."""
    width = max([15, *(len(row["countermeasure"]) for row in rows)])
    table = [
        f"{'countermeasure':<{width}} {'victim':<16} {'trained on':<14} "
        f"{'final %':>15} {'stopped %':>9} {'oracle %':>8} seeds"
    ]
    for line in _lines(rows):
        table.append(
            f"{line['countermeasure']:<{width}} {line['arch']:<16} {line['arm']:<14} "
            f"{_mean_and_spread(line, '+-', 4):>15} {line['stopped_max']:9.1f} "
            f"{line['peak_max']:8.1f} {line['seeds']:5d}"
        )
    return "\n".join(table)


def _lines(rows: list[dict]) -> list[dict]:
    return [line for arms in settings(rows).values() for line in arms.values()]


def _mean_and_spread(line: dict, sign: str, width: int = 0) -> str:
    """One seed has no spread."""
    spread = f" {sign} {line['final_sd']:{width}.1f}" if line["seeds"] > 1 else ""
    return f"{line['final_mean']:.1f}{spread}"


def accuracy_plot(rows: list[dict], num_classes: int) -> bytes | None:
    """PNG of clean-test accuracy over epochs, a panel for each setting, the worst case first; None
    without matplotlib (extra `report`)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    panels = list(settings(rows))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * lines), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (countermeasure, arch) in zip(axes, panels, strict=False):
        members = [r for r in rows if (r["countermeasure"], r["arch"]) == (countermeasure, arch)]
        _panel(axis, members, num_classes)
        axis.set_title(setting_name(countermeasure, arch), fontsize=10)
        axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _panel(axis, rows: list[dict], num_classes: int) -> None:
    """One curve a victim, one colour an arm."""
    for arm, colour in ARM_COLOURS.items():
        label = arm
        for row in rows:
            if row["arm"] != arm:
                continue
            curve = row["accuracy_curve"]
            marker = "o" if len(curve) == 1 else None  # a line through one point shows nothing
            epochs = range(1, len(curve) + 1)
            axis.plot(epochs, curve, color=colour, alpha=0.8, label=label, marker=marker)
            label = None  # one legend entry an arm
    axis.axhline(100 / num_classes, color="black", lw=0.8, ls=":", label="chance")
    axis.set(xlabel="epoch", ylabel="accuracy on clean test pictures (%)", ylim=(0, 100))
    axis.grid(alpha=0.25)


def write_report(
    out: Path, rows: list[dict], config: dict, num_classes: int, preview: Path | None
) -> list[Path]:
    """Write `report.html` and, with matplotlib, `accuracy.png` into `out`; the paths written."""
    if not rows:
        raise UsageError(f"{out}: there is no row to report")
    files = []
    plot = accuracy_plot(rows, num_classes)
    if plot:
        atomic_write_bytes(out / "accuracy.png", plot)
        files.append(out / "accuracy.png")
    body = [
        f"<p class='verdict'>{html.escape(verdict(rows, num_classes))}</p>",
        "<p>Accuracy on clean test pictures in percent. Final: after the last epoch, mean over "
        "seeds. Early stop: at the epoch that is best on one half of the test pictures, scored on "
        "the other half, in the seed that is worst for the owner; the verdict goes by it. Oracle: "
        "the best epoch picked with all test pictures, which no adversary has. Noise alone (random-*) is "
        "the control. The worst case for the owner comes first.</p>",
        _html_table(rows),
        _countermeasure_list(rows),
        _plot_section(plot),
    ]
    if preview and preview.exists():
        image = _image(preview.read_bytes(), "clean, noise, protected, difference")
        body.append(f"<h2>Pictures</h2>{image}")
    settings_text = html.escape(json.dumps(config, indent=2, sort_keys=True))
    body.append(f"<h2>Configuration</h2><pre>{settings_text}</pre>")
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>fastue attack</title>"
        f"<style>{STYLE}</style></head><body>"
        "<h1>What a victim learns from the protected pictures</h1>\n"
        + "\n".join(body)
        + "</body></html>\n"
    )
    atomic_write_text(out / "report.html", page)
    return [*files, out / "report.html"]


def _plot_section(plot: bytes | None) -> str:
    if plot is None:
        return "<p>No plot: matplotlib is not installed (pip install 'fastue[report]').</p>"
    return f"<h2>Accuracy over epochs</h2>{_image(plot, 'accuracy over epochs')}"


def _image(png: bytes, alt: str) -> str:
    """Inside the page: the report is one file."""
    data = base64.b64encode(png).decode()
    return f"<img alt='{alt}' src='data:image/png;base64,{data}'>"


def _html_table(rows: list[dict]) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEADINGS)
    head += "".join(f"<th class='n'>{name}</th>" for name in NUMBERS)
    body = "".join(_html_line(line) for line in _lines(rows))
    return f"<table><tr>{head}</tr>{body}</table>"


def _html_line(line: dict) -> str:
    names = (line["countermeasure"], line["arch"], line["arm"])
    numbers = (
        _mean_and_spread(line, "&plusmn;"),
        f"{line['stopped_max']:.1f}",
        f"{line['peak_max']:.1f}",
        str(line["seeds"]),
    )
    cells = "".join(f"<td>{html.escape(str(name))}</td>" for name in names)
    cells += "".join(f"<td class='n'>{number}</td>" for number in numbers)
    return f"<tr class='{line['arm']}'>{cells}</tr>"


def _countermeasure_list(rows: list[dict]) -> str:
    """What the names stand for; nothing where no countermeasure was tried."""
    names = dict.fromkeys(row["countermeasure"] for row in rows)
    if set(names) <= {"none"}:
        return ""
    meanings = (f"{name}: {SUMMARIES[name]}" for name in names if name in SUMMARIES)
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in meanings)}</ul>"
