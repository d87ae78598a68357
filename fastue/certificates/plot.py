"""certificate.png: what is certified, what was counted, and how strong the noise is."""

import io
from collections.abc import Sequence

_WITHOUT_NOISE = {"color": "#c1121f", "lw": 1, "ls": "--"}
_CHANCE = {"color": "black", "lw": 0.8, "ls": ":", "label": "chance"}


def plot(document: dict, attacks: Sequence[dict] = ()) -> bytes | None:
    """PNG of two panels, or three in the raw scale; None without matplotlib.

    `attacks`: rows of attack.json.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    panels = 3 if document["smoothing"]["scale"] == "raw" else 2
    figure = Figure(figsize=(4.7 * panels, 4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    _certificates(axes[0], document, attacks)
    _noisy_accuracies(axes[1], document)
    if panels == 3:  # in the canonical scale all have the same noise
        _layers(axes[2], document)
    for axis in axes:
        axis.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _certificates(axis, document: dict, attacks: Sequence[dict]) -> None:
    """Certified accuracy over eta, a line a q, over what attacks reached and beside what no
    certificate speaks of."""
    claim = document["claim"]
    for number, q in enumerate(claim["q"]):
        color = f"C{number}"
        points = [
            (c["eta"], c["accuracy"])
            for c in document["certificates"]
            if c["q"] == q and c["accuracy"] is not None
        ]
        if points:
            axis.plot(*_sides(points), color=color, marker="o", ms=4, label=f"q = {q:g}, at most")
        reached: dict[float, float] = {}
        for row in attacks:
            if row["q"] == q and row["reached"] is not None:
                percent = 100 * row["reached"] / document["total"]
                reached[row["eta"]] = max(percent, reached.get(row["eta"], 0.0))
        if reached:
            label = f"q = {q:g}, an attack reaches"
            axis.plot(*_sides(reached.items()), color=color, ls="", marker="^", ms=5, label=label)
    label = "without noise (not certified)"
    axis.axhline(document["noiseless_accuracy"], **_WITHOUT_NOISE, label=label)
    axis.axhline(100 / document["classes"], **_CHANCE)
    axis.set(
        xlabel="eta (l2 shift of the weights)",
        ylabel="certified accuracy (%)",
        xlim=(0, 1.05 * (max(claim["eta"]) or document["smoothing"]["sigma"])),
    )
    axis.locator_params(axis="x", nbins=5)
    axis.legend(fontsize=8)


def _sides(points) -> tuple:
    return tuple(zip(*points, strict=True))


def _noisy_accuracies(axis, document: dict) -> None:
    """How many of the pictures the noisy copies get right."""
    accuracies = [100 * count / document["total"] for count in document["correct"]]
    bins = min(60, max(10, len(set(accuracies))))
    axis.hist(accuracies, bins=bins, color="#1d6fa5")
    axis.axvline(document["noiseless_accuracy"], **_WITHOUT_NOISE, label="without noise")
    axis.axvline(100 / document["classes"], **_CHANCE)
    axis.set(xlabel="accuracy of a noisy copy (%)", ylabel="draws")
    axis.legend(fontsize=8)


def _layers(axis, document: dict) -> None:
    """The weights beside the noise on them."""
    relative = [row["relative"] for row in document["layers"] if row["size"] > 1]
    axis.bar(range(len(relative)), relative, color="#6c757d")
    axis.axhline(1, color="black", lw=0.8, ls=":")
    axis.set(xlabel="parameter, first to last", ylabel="rms weight / sigma", yscale="log")
