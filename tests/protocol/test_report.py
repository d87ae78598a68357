"""Tables, plots, CSV, Markdown and the page."""

import csv
import re
from dataclasses import replace

import pytest
import torch

from fastue.core.errors import UsageError
from fastue.data.dataset import ImageDataset
from fastue.protocol.pictures import keep, kept, shown
from fastue.protocol.report import write_report
from fastue.protocol.tables import settings_table


@pytest.fixture
def rows(setting):
    """Two seeds without and with jpeg, one with a name that is HTML."""
    return [
        *setting("none", [12.0, 14.0], [90.0, 90.0], [85.0]),
        *setting("jpeg", [60.0, 70.0], [80.0, 80.0], linear_separability=99.5),
        *setting("<i>", [20.0], [88.0]),
    ]


def test_settings_table(rows):
    lines = [re.split(r"  +", line) for line in settings_table(rows, 10).text().splitlines()]
    assert lines[0] == [
        *("countermeasure", "worst seed", "clean, same countermeasure", "recovered", "mean"),
        *("last epoch", "random noise", "oracle epoch", "seeds"),
    ]
    assert lines[1] == [
        *("jpeg", "70.0", "80.0 ± 0.0", "68 %", "65.0 ± 7.1", "65.0 ± 7.1", "–", "70.0", "2")
    ]
    assert [line[0] for line in lines[2:]] == ["<i>", "none"] and lines[3][6] == "85.0"


def test_columns_are_there_where_they_say_something(setting):
    aux = setting("jcdp", [50.0], [80.0], aux=500)
    oracle = setting("avatar", [60.0], [80.0], aux="oracle", arch="vgg11")
    table = settings_table([*setting("none", [12.0], [90.0]), *aux, *oracle], 10)
    assert table.head[1] == "victim" and "random noise" not in table.head
    column = table.head.index("aux")
    words = {line[0]: line[column] for line in table.lines}
    assert words == {"jcdp": "500", "none": "–", "avatar (ORACLE)": "ORACLE"}
    assert table.lines[-1][0] == "avatar (ORACLE)", "the oracle is no worst case"


def test_csv_has_a_line_a_victim(rows, tmp_path):
    write_report(tmp_path, rows, {}, 10)
    found = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(found) == len(rows)
    assert found[0]["accuracy_stopped"] == "12.0" and found[0]["linear_separability"] == ""
    assert found[5]["linear_separability"] == "99.5" and "accuracy_curve" not in found[0]


def test_markdown(rows, tmp_path):
    card = [{"handling": "JPEG 75", "energy": 0.6, "correlation": 0.81}]
    write_report(tmp_path, rows, {}, 10, survival=card, failures=["clean cnn seed 1: no memory"])
    text = (tmp_path / "report.md").read_text()
    assert "**Jpeg restores 70.0 of 90.0 points: this protection does not hold." in text
    assert "| **jpeg** | **70.0** |" in text and "| none | 14.0 |" in text
    assert (
        "| JPEG 75 | 60 % | 0.81 |" in text and "Not trained: clean cnn seed 1: no memory" in text
    )
    assert "| jpeg | cnn | protected | linear separability | 99.5 |" in text


def test_page_is_one_file_without_links(rows, tmp_path):
    pictures = {"": {"clean": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}}
    pictures["After <i>"] = {"grey": torch.zeros(2, 1, 200, 9, dtype=torch.uint8)}
    files = write_report(
        tmp_path, rows, {"note": "</pre><script>"}, 10, pictures=pictures, failures=["<u>"]
    )
    page = (tmp_path / "report.html").read_text()
    assert [path.name for path in files] == ["results.csv", "report.md", "report.html"]
    sources = re.findall(r"(?:src|href)='([^']*)'", page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.count("<img class='sharp'") == 2, "large pictures are made smaller, smoothly"
    assert not re.search("<script|<i>|<u>", page) and "65.0 ± 7.1" in page
    assert "jpeg: training pictures encoded as JPEG of quality 10" in page
    first = re.findall(r"<tr class='worst'><td>(.*?)</td>", page)
    assert first == ["jpeg"], "the worst case is marked"


def test_poison_rate_is_drawn_where_parts_were_protected(setting, row, tmp_path):
    plain = setting("none", [12.0], [90.0])
    title = "share of protected pictures"
    write_report(tmp_path, plain, {}, 10)
    assert title not in (tmp_path / "report.html").read_text()
    parts = [
        row("protected-25", 85.0),
        row("protected-50", 70.0),
        row("protected-50", 60.0, seed=1),
    ]
    write_report(tmp_path, [*plain, *parts], {}, 10)
    page = (tmp_path / "report.html").read_text()
    line = re.search(r"<polyline class='protected' points='([^']*)'", page.partition(title)[2])
    points = [tuple(map(float, point.split(","))) for point in line[1].split()]
    assert len(points) == 4, "0, 25, 50 and 100 %, at 50 the mean"
    x, y = zip(*points, strict=True)
    assert x[1] - x[0] == pytest.approx((x[3] - x[0]) / 4, abs=0.1)
    share = (y[0] - y[2]) / (y[0] - y[3])  # of the way from 90 to 12 %
    assert share == pytest.approx((90 - 65) / (90 - 12), abs=0.01)


def test_shown_pictures(tiny):
    clean = tiny(2)
    protected = ImageDataset(clean.images + 3, clean.labels, clean.ids, clean.classes)
    columns = shown(clean, protected)[""]
    assert columns["clean"].shape == (4, 3, 12, 12) and (columns["difference x10"] == 30).all()
    assert torch.equal(columns["clean"][1], clean.images[2]), "another class a row"
    assert list(shown(None, protected)[""]) == ["protected"]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_after_a_countermeasure_are_kept(tiny, tmp_path, channels):
    """As they were; nothing where none has changed, or where others take their places."""
    data = tiny(2)
    data = replace(data, images=data.images[:, :channels])
    treated = replace(data, images=255 - data.images)
    keep(tmp_path, "turned", data, treated)
    keep(tmp_path, "same", data, replace(data, images=data.images.clone()))
    keep(tmp_path, "fewer", data, treated.subset(torch.arange(4, len(data))))
    found = kept(tmp_path, ["turned", "same", "fewer", "unknown"], data)
    first = torch.arange(0, len(data), 2)
    assert list(found) == ["turned"] and torch.equal(found["turned"], treated.images[first])
    grid = shown(data, treated, found)["After turned"]
    assert list(grid) == ["clean", "protected", "turned", "to clean x10"]
    assert {len(column) for column in grid.values()} == {3}
    assert torch.equal(grid["protected"], grid["turned"]) and grid["to clean x10"].any()


def test_nothing_is_reported_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="no row"):
        write_report(tmp_path, [], {}, 10)
