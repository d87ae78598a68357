"""Lines over two axes as SVG, which a page holds as text: sharp at every size, light or dark."""

from __future__ import annotations

import html
from dataclasses import dataclass

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 34, 14, 8, 34  # margins


@dataclass(frozen=True)
class Line:
    """`points` (x, y), y in percent, drawn in the colour of the style sheet's class `kind`."""

    kind: str
    points: list[tuple[float, float]]


def svg(title: str, lines: list[Line], *, label: str, ticks: list[float], chance: float) -> str:
    """One panel, y from 0 to 100 %, x from the first of `ticks` to the last. Single points are
    drawn as dots, as are the points of lines through at most eight."""
    low, high = ticks[0], ticks[-1]

    def x(value: float) -> float:
        inside = WIDTH - LEFT - RIGHT
        return round(LEFT + inside * ((value - low) / (high - low) if high > low else 0.5), 1)

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / 100), 1)

    parts = [f"<title>{html.escape(title)}</title>"]
    for value in (0, 25, 50, 75, 100):
        parts.append(f"<path class='grid' d='M{LEFT} {y(value)}H{WIDTH - RIGHT}'/>")
        parts.append(f"<text x='{LEFT - 5}' y='{y(value) + 4}' class='end'>{value}</text>")
    for value in ticks:
        parts.append(f"<text x='{x(value)}' y='{HEIGHT - 20}' class='middle'>{value:g}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f"<text x='{middle}' y='{HEIGHT - 5}' class='middle'>{html.escape(label)}</text>")
    parts.append(f"<path class='chance' d='M{LEFT} {y(chance)}H{WIDTH - RIGHT}'/>")
    for line in lines:
        path = " ".join(f"{x(a)},{y(b)}" for a, b in line.points)
        parts.append(f"<polyline class='{line.kind}' points='{path}'/>")
        if len(line.points) <= 8:
            dots = (f"<circle cx='{x(a)}' cy='{y(b)}' r='2.5'/>" for a, b in line.points)
            parts.append(f"<g class='{line.kind}'>{''.join(dots)}</g>")
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img'>{''.join(parts)}</svg>"
