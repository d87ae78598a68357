"""Table, plot and page."""

import re

import pytest
import torch

from fastue.core.errors import UsageError
from fastue.data.preview import preview_grid
from fastue.protocol.arms import ARMS, PARTLY
from fastue.protocol.report import ARM_COLOURS, text_table, write_report
from fastue.protocol.summary import ARM_ORDER


def test_text_table_shows_each_setting_with_its_controls(row):
    rows = [
        row(arm, final, countermeasure=name)
        for name, clean, protected in (("none", 90.0, 12.0), ("jpeg", 80.0, 70.0))
        for arm, final in (("clean", clean), ("protected", protected))
    ]
    words = [
        line.split()[:4]
        for line in text_table([*rows, row("protected", 14.0, seed=1)]).splitlines()
    ]
    assert words[1:] == [
        ["jpeg", "cnn", "protected", "70.0"],
        ["jpeg", "cnn", "clean", "80.0"],
        ["none", "cnn", "protected", "13.0"],
        ["none", "cnn", "clean", "90.0"],
    ]


def test_every_arm_has_a_curve_and_long_names_do_not_shift_columns(row):
    assert set(ARM_COLOURS) == {*ARMS, *PARTLY} == set(ARM_ORDER)
    rows = [
        row("protected", 12.0, countermeasure=name) for name in ("none", "a-name-of-23-characters")
    ]
    assert len({line.index(" cnn") for line in text_table(rows).splitlines()[1:]}) == 1


def test_report_is_one_file_without_links(row, tmp_path):
    rows = [
        row("clean", 90.0),
        row("protected", 12.0),
        row("protected", 14.0, seed=1),
        row("protected", 13.0, arch="<b>"),
        row("protected", 60.0, countermeasure="jpeg"),
        row("protected", 61.0, countermeasure="<i>"),
    ]
    preview = tmp_path / "preview.png"
    preview_grid(*(torch.zeros(2, 3, 8, 8, dtype=torch.uint8),) * 2, 8).save(preview)
    files = write_report(tmp_path, rows, {"seed": 0, "note": "</pre><script>"}, 10, preview)
    page = (tmp_path / "report.html").read_text()
    assert {path.name for path in files} == {"accuracy.png", "report.html"}
    sources = re.findall(r"(?:src|href)='([^']*)'", page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search("<script|<b>|<i>", page) and "13.0 &plusmn; 1.4" in page
    assert "jpeg: training pictures encoded as JPEG of quality 10" in page
    table = re.findall(r"<tr class='protected'><td>(.*?)</td>", page)
    assert table == ["&lt;i&gt;", "jpeg", "none", "none"], "the worst case comes first"


def test_nothing_is_reported_of_nothing(tmp_path):
    with pytest.raises(UsageError, match="no row"):
        write_report(tmp_path, [], {}, 10, None)
