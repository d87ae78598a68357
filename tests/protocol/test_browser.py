"""The page in a real browser, as wide as a phone: all is seen, and no request leaves it."""

import pytest
import torch

from fastue.core import env
from fastue.protocol.report import write_report
from tests.protocol.browser import PHONE, browser, chromium

if chromium() is None and "browser" not in env.required_backends():
    pytest.skip("no chromium on PATH: make test-browser", allow_module_level=True)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def problems(page, path, **size) -> list[str]:
    """What is wrong with the page in this file."""
    page.open(path, **size)
    found = [url for url in page.requests if not url.startswith(("data:", path.as_uri()))]
    hidden = "[...document.images].filter(i => !(i.naturalWidth && i.width)).map(i => i.alt)"
    found += [f"picture {name!r} is not seen" for name in page.value(hidden)]
    rows = "[...document.querySelectorAll('tr')].filter(r => !r.getBoundingClientRect().height)"
    found += ["a table's row is not seen"] * len(page.value(f"{rows}.map(r => 1)"))
    if page.value("[...document.querySelectorAll('table')].some(t => t.rows.length < 2)"):
        found.append("a table is empty")
    width = page.value("document.documentElement.scrollWidth")
    if width > size.get("width", PHONE["width"]):
        found.append(f"{width} pixels wide")
    return found


@pytest.fixture
def report(setting, row, tmp_path):
    """Everything that a report may hold, with long names."""
    rows = [
        *setting("none", [12.0, 14.0], [90.0, 91.0], [85.0]),
        *(row(f"protected-{share}", 95.0 - share / 2) for share in (25, 50, 75)),
        *setting("orthogonal-projection", [60.0, 70.0], [80.0, 80.0], linear_separability=99.5),
        *setting("a-countermeasure-of-" + 20 * "ones-own-", [20.0], [88.0], aux="oracle"),
    ]
    grid = {
        name: torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
        for name in ("clean", "protected", "difference x10")
    }
    pictures = {"": grid, "After grayscale": grid, "After " + 9 * "very-long": grid}
    card = [{"handling": "JPEG 75, 4:2:0", "energy": 0.6, "correlation": 0.81}]
    config = {"directory": "/" + "a/very/long/path/" * 9}
    write_report(tmp_path, rows, config, 10, survival=card, pictures=pictures, failures=["x" * 300])
    return tmp_path / "report.html"


@pytest.mark.parametrize("width", [PHONE["width"], 1280])
def test_report(page, report, width):
    assert problems(page, report, width=width) == []
    assert page.value("document.images.length") == 27
    assert page.value("document.querySelectorAll('table').length") == 4
    assert page.value("document.querySelectorAll('svg').length") == 4
    sharp = "getComputedStyle(document.images[0]).imageRendering"
    assert page.value(sharp) == "pixelated"
    bold = "[...document.querySelectorAll('table')[0].rows].map(r => getComputedStyle(r.cells[0]).fontWeight)"
    assert page.value(bold) == ["600", "700", "400", "400"], "the worst case alone is bold"


def test_dark_and_light_are_both_readable(page, report, tmp_path):
    """Ink and paper are far apart in either; a picture of each is left for people."""
    page.open(report)
    for dark in (False, True):
        page.screenshot(tmp_path / "page.png", dark=dark)
        style = "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
        ink, paper = (
            sum(map(int, colour.strip("rgb()").split(","))) for colour in page.value(style)
        )
        assert (ink > paper) is dark and abs(ink - paper) > 450


def test_the_problems_are_found(page, tmp_path):
    """What the test above is worth."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><meta name='viewport' content='width=device-width'><body style='margin: 0'>"
        "<img alt=gone src='https://example.invalid/a.png'>"
        "<table><tr><td>head</td></tr></table><div style='width: 900px'>wide</div>"
        "<table><tr><td>head</td></tr><tr style='display: none'><td>1</td></tr></table>"
    )
    assert problems(page, bad) == [
        "https://example.invalid/a.png",
        "picture 'gone' is not seen",
        "a table's row is not seen",
        "a table is empty",
        "900 pixels wide",
    ]
