"""The report as one HTML file: nothing beside it, no script, and no request leaves the page."""

from __future__ import annotations

import base64
import html
import json

from torch import Tensor

from fastue.countermeasures import AUTHORIZATION, SUMMARIES, family_of
from fastue.data.writers import encode_png
from fastue.protocol import tables
from fastue.protocol.plot import Line, svg
from fastue.protocol.summary import Setting, protected_share, settings
from fastue.protocol.verdict import holds, verdict

# Pixels: larger pictures are shown smaller than they are, which wants smoothing.
LARGEST_SHARP = 128

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --soft: #f3f2ee; --line: #d5d3cc;
  --clean: #2a8c38; --protected: #c1121f; --part: #d97706; --sample: #6c757d; --class: #1d6fa5 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --paper: #17181a; --soft: #24262a;
  --line: #43464c; --clean: #5cc46b; --protected: #ff6b6b; --part: #f5a742; --sample: #a0a7ae;
  --class: #62b0e8 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem;
  color: var(--ink); background: var(--paper); overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.2 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.verdict { font-size: 1.1rem; padding: .8rem 1rem; background: var(--soft);
  border-left: 5px solid var(--part) }
.verdict.no { border-color: var(--protected) } .verdict.yes { border-color: var(--clean) }
.verdict b { display: block; font-size: 1.25rem; line-height: 1.3; margin-bottom: .4rem }
.box { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .92rem }
td, th { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  white-space: nowrap }
th { vertical-align: bottom; white-space: normal; line-height: 1.2; font-weight: 600 }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper) }
.n { text-align: right; font-variant-numeric: tabular-nums }
tr.worst td { font-weight: 700 } tr.worst td:nth-child(3) { color: var(--protected) }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr));
  gap: 1rem } figure { margin: 0 } figcaption { font-size: .9rem; font-weight: 600 }
svg { width: 100%; height: auto; display: block } svg text { font-size: 11px; fill: var(--ink) }
.end { text-anchor: end } .middle { text-anchor: middle } .grid { stroke: var(--line) }
.chance { stroke: var(--ink); stroke-dasharray: 2 3 }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; opacity: .85 }
.clean { stroke: var(--clean) } .protected { stroke: var(--protected) }
.part { stroke: var(--part) } .random-sample { stroke: var(--sample) }
.random-class { stroke: var(--class) } g > circle { stroke: none }
g.clean, i.clean { fill: var(--clean); background: var(--clean) }
g.protected, i.protected { fill: var(--protected); background: var(--protected) }
g.part, i.part { fill: var(--part); background: var(--part) }
g.random-sample, i.random-sample { fill: var(--sample); background: var(--sample) }
g.random-class, i.random-class { fill: var(--class); background: var(--class) }
.key span { margin-right: 1.2rem; white-space: nowrap }
.key i { display: inline-block; width: 1.2rem; height: .25rem; vertical-align: middle;
  margin-right: .4rem }
.pictures { display: grid; gap: 6px; max-width: 40rem; font-size: .85rem }
.pictures img { width: 100%; display: block } .sharp { image-rendering: pixelated }
@media (max-width: 30rem) { td, th { padding: .35rem .4rem } table { font-size: .85rem } }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .8rem }
"""

EXPLANATION = (
    "Accuracy on clean test pictures, in percent. Worst seed and mean (± standard deviation over "
    "seeds): at the epoch that is best on one half of the test pictures, scored on the other half, "
    "as an adversary with some clean pictures would stop. Oracle epoch: picked with all test "
    "pictures, which no adversary can. Recovered: of the points that the protection costs plain "
    "training, those that the countermeasure brings back (means). The worst case for the owner "
    "comes first."
)
SURVIVAL = (
    "The noise after the pictures were saved again, as the difference between a protected picture "
    "and its original that were both saved so. Energy left: of the noise's energy, what is still "
    "there in the noise's own direction. Correlation: of what is left with the noise."
)


def page(
    rows: list[dict],
    config: dict,
    num_classes: int,
    *,
    survival: list[dict],
    pictures: dict[str, dict[str, Tensor]],
    failures: list[str],
) -> str:
    """The whole file. `pictures`: {title: {name of a column: uint8 [R,C,H,W]}}, one
    row a picture."""
    found = settings(rows, num_classes)
    beside = tables.found_table(rows, num_classes)
    parts = [
        "<h1>What a victim learns from the protected pictures</h1>",
        _verdict(rows, num_classes),
        *(f"<p class='failed'>Not trained: {html.escape(each)}</p>" for each in failures),
        tables.settings_table(rows, num_classes).html(),
        f"<p>{EXPLANATION}</p>",
        _meanings(found),
        _section("Also found", beside.html() if beside else ""),
        _section("Accuracy over epochs", _curves(found, rows)),
        _section("Accuracy over the share of protected pictures", _poison_rate(found, rows)),
        _section(
            "What is left of the noise",
            f"<p>{SURVIVAL}</p>{tables.survival_table(survival).html()}" if survival else "",
        ),
        _section("Pictures", _grids(pictures)),
        _section("All that was trained", tables.arms_table(rows, num_classes).html()),
        _section(
            "Configuration",
            f"<pre>{html.escape(json.dumps(config, indent=2, sort_keys=True))}</pre>",
        ),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        # Whatever the page came to hold, a browser loads nothing from elsewhere.
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>fastue attack</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _verdict(rows: list[dict], num_classes: int) -> str:
    kind = {True: " yes", False: " no", None: ""}[holds(rows, num_classes)]
    first, _, rest = verdict(rows, num_classes).partition(" Worst of ")
    rest = f"Worst of {rest}" if rest else ""
    return f"<p class='verdict{kind}'><b>{html.escape(first)}</b>{html.escape(rest)}</p>"


def _meanings(found: list[Setting]) -> str:
    """What the names stand for; nothing where no countermeasure was tried."""
    known = {**SUMMARIES, **AUTHORIZATION}
    labels = (one.countermeasure for one in found)
    names = dict.fromkeys(name if name in known else family_of(name) for name in labels)
    if set(names) <= {"none", None}:
        return ""
    items = (f"<li>{html.escape(f'{name}: {known[name]}')}</li>" for name in names if name)
    return f"<ul>{''.join(items)}</ul>"


def _kind(arm: str) -> str:
    """The class of the style sheet that has an arm's colour."""
    share = protected_share(arm)
    return arm if share in (None, 0, 100) else "part"


def _key(arms: list[str]) -> str:
    words = (f"<span><i class='{_kind(arm)}'></i>{html.escape(arm)}</span>" for arm in arms)
    return f"<p class='key'>{''.join(words)} <span>dotted: chance</span></p>"


def _curves(found: list[Setting], rows: list[dict]) -> str:
    """A panel a setting, a line a victim."""
    panels = []
    for one in found:
        members = [row for row in rows if _is_of(row, one)]
        lines = [
            Line(_kind(row["arm"]), list(enumerate(row["accuracy_curve"], 1))) for row in members
        ]
        last = max(len(line.points) for line in lines)
        ticks = sorted({1, (1 + last) // 2, last})
        panels.append(_panel(one, lines, "epoch", ticks))
    arms = dict.fromkeys(arm for one in found for arm in one.arms)
    return f"{_key(list(arms))}<div class='panels'>{''.join(panels)}</div>"


def _poison_rate(found: list[Setting], rows: list[dict]) -> str:
    """A panel for each setting where a part of the pictures was protected: dots are victims, the
    line is their mean, at the epoch picked on held-out pictures."""
    panels = []
    for one in found:
        means = {
            share: line["stopped_mean"]
            for arm, line in one.arms.items()
            if (share := protected_share(arm)) is not None
        }
        if not set(means) - {0, 100}:
            continue
        dots = [
            Line("protected", [(share, row["accuracy_stopped"])])
            for row in rows
            if _is_of(row, one) and (share := protected_share(row["arm"])) is not None
        ]
        lines = [Line("protected", sorted(means.items())), *dots]
        panels.append(_panel(one, lines, "percent of the pictures protected", sorted(means)))
    return f"<div class='panels'>{''.join(panels)}</div>" if panels else ""


def _is_of(row: dict, one: Setting) -> bool:
    return (row["countermeasure"], row["arch"]) == (one.countermeasure, one.arch)


def _panel(one: Setting, lines: list[Line], label: str, ticks: list[float]) -> str:
    name = one.arch if one.countermeasure == "none" else f"{one.arch} after {one.label}"
    plot = svg(name, lines, label=label, ticks=ticks, chance=one.chance)
    return f"<figure><figcaption>{html.escape(name)}</figcaption>{plot}</figure>"


def _grids(pictures: dict[str, dict[str, Tensor]]) -> str:
    """That without a title alone, the others beside one another."""
    own = "".join(_pictures(columns) for title, columns in pictures.items() if not title)
    panels = (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{_pictures(columns)}</figure>"
        for title, columns in pictures.items()
        if title
    )
    return f"{own}<div class='panels'>{''.join(panels)}</div>" if pictures else ""


def _pictures(columns: dict[str, Tensor]) -> str:
    cells = [f"<div>{html.escape(name)}</div>" for name in columns]
    for number, row in enumerate(zip(*columns.values(), strict=True), 1):
        cells += [
            _image(picture, f"{name}, {number}") for name, picture in zip(columns, row, strict=True)
        ]
    grid = f"grid-template-columns: repeat({len(columns)}, 1fr)"
    return f"<div class='pictures' style='{grid}'>{''.join(cells)}</div>"


def _image(picture: Tensor, alt: str) -> str:
    """uint8 [C,H,W] inside the page, pixel by pixel."""
    pixels = picture.permute(1, 2, 0).cpu().contiguous().numpy()
    data = base64.b64encode(encode_png(pixels)).decode()
    sharp = " class='sharp'" if max(pixels.shape[:2]) <= LARGEST_SHARP else ""
    return f"<img{sharp} alt='{html.escape(alt)}' src='data:image/png;base64,{data}'>"
