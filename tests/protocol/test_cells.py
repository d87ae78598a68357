"""Arms, rows and what is said of them."""

import json
import re

import numpy as np
import pytest
import torch

from fastue.core.errors import UsageError
from fastue.data.preview import preview_grid
from fastue.protocol import cells as protocol
from fastue.protocol.cells import (
    ARMS,
    arm_pictures,
    evaluate,
    random_noise,
    summarise,
    verdict,
)
from fastue.protocol.report import text_table, write_report
from fastue.victims.train import VictimConfig

CONFIG = VictimConfig(epochs=2, batch=16)


def row(arm, final, peak=None, seed=0, arch="cnn", countermeasure="none"):
    return {
        "countermeasure": countermeasure, "arm": arm, "arch": arch, "seed": seed, "accuracy_final": final,
        "accuracy_peak": peak or final, "accuracy_curve": [10.0, final], "loss_curve": [2.0, 1.0],
    }  # fmt: skip


@pytest.mark.parametrize("per, rows", [("sample", 96), ("class", 4)])
def test_random_noise_fills_the_budget_and_is_keyed(tiny, per, rows):
    noise = random_noise(tiny(), 8, per, seed=0)
    assert noise.shape == (rows, 3, 12, 12) and noise.dtype == torch.int8
    assert noise.min() == -8 and noise.max() == 8 and abs(float(noise.float().mean())) < 0.5
    assert torch.equal(noise, random_noise(tiny(), 8, per, seed=0))
    assert not torch.equal(noise, random_noise(tiny(), 8, per, seed=1))


def test_arms_hold_what_they_say(tiny):
    originals, protected = tiny(), tiny(seed=9)
    arms = {arm: arm_pictures(arm, 0, protected, originals, 8).images.int() for arm in ARMS}
    assert torch.equal(arms["clean"], originals.images.int()) and torch.equal(
        arms["protected"], protected.images.int()
    )
    change = arms["random-class"] - arms["clean"]
    assert change.abs().max() <= 8
    for k in range(4):
        assert (
            change[originals.labels == k] == change[originals.labels == k][0]
        ).float().mean() > 0.99
    change = arms["random-sample"] - arms["clean"]
    assert change.abs().max() <= 8 and not torch.equal(change[0], change[1])


def test_every_cell_is_a_row_and_is_trained_once(tiny, tmp_path, monkeypatch):
    trained = []

    def fake(train, test, config, *, seed, progress):
        trained.append((train.source, config.arch, seed))
        return {"accuracy": [20.0, 10.0 + seed], "loss": [1.0, 0.5], "train_accuracy": [99.0]}

    monkeypatch.setattr(protocol, "train_victim", fake)
    arguments = {
        "levels": 8,
        "suite": "none",
        "archs": ["cnn", "vgg11"],
        "config": CONFIG,
        "out": tmp_path,
    }
    protected, originals, test = tiny(seed=9, source="p"), tiny(source="o"), tiny(seed=1)
    rows = list(evaluate(protected, originals, test, seeds=[0, 1], **arguments))
    assert len(rows) == len(trained) == 16
    assert {"countermeasure", "arch", "seed", "arm", "accuracy_final", "accuracy_peak"} <= set(
        rows[0]
    )
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert {r["arm"] for r in rows} == set(ARMS) and rows[-1]["accuracy_final"] == 11.0
    assert rows[-1]["accuracy_peak"] == 20.0
    again = list(evaluate(protected, originals, test, seeds=[0, 1, 2], **arguments))
    assert len(again) == 24 and len(trained) == 24
    # Another protection of the same source: its controls are the same victims, only the protected arm is new.
    other = list(evaluate(tiny(seed=8), originals, test, seeds=[0, 1, 2], **arguments))
    assert len(other) == 24 and len(trained) == 30


def test_a_changed_setting_is_not_mixed_with_old_rows(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(
        protocol,
        "train_victim",
        lambda *a, **k: {"accuracy": [1.0], "loss": [1.0], "train_accuracy": [1.0]},
    )
    arguments = {"levels": 8, "suite": "none", "archs": ["cnn"], "seeds": [0], "out": tmp_path}
    list(evaluate(tiny(), tiny(), tiny(seed=1), config=CONFIG, **arguments))
    monkeypatch.setattr(
        protocol,
        "train_victim",
        lambda *a, **k: {"accuracy": [2.0], "loss": [1.0], "train_accuracy": [1.0]},
    )
    rows = list(
        evaluate(tiny(), tiny(), tiny(seed=1), config=VictimConfig(epochs=3, batch=16), **arguments)
    )
    assert [r["accuracy_final"] for r in rows] == [2.0] * 4


def test_unknown_suites_and_arms_are_named(tiny, tmp_path):
    arguments = {"levels": 8, "archs": ["cnn"], "seeds": [0], "config": CONFIG, "out": tmp_path}
    with pytest.raises(UsageError, match="--suite everything"):
        list(evaluate(tiny(), tiny(), tiny(), suite="everything", **arguments))
    with pytest.raises(UsageError, match="--arms noisy"):
        list(evaluate(tiny(), tiny(), tiny(), suite="none", arms=("noisy",), **arguments))


def test_summary_and_verdict():
    rows = [row("clean", 90.0, seed=s) for s in (0, 1)] + [
        row("protected", a, 40.0, s) for s, a in ((0, 12.0), (1, 16.0))
    ]
    rows += [row("random-class", 85.0)]
    table = {line["arm"]: line for line in summarise(rows)}
    assert table["protected"]["final_mean"] == 14.0 and table["protected"]["final_max"] == 16.0
    assert table["protected"]["final_sd"] == pytest.approx(8**0.5) and table["clean"]["seeds"] == 2
    text = verdict(rows, 10)
    assert (
        "14.0 %" in text and "90.0 %" in text and "76.0 points" in text and "too weak" not in text
    )
    assert "too weak to judge" in verdict([*rows[:-1], row("random-class", 30.0)], 10)
    assert "pass --source" in verdict([row("protected", 12.0)], 10)
    # The worst case for the owner is named, not the best.
    assert "vgg11" in verdict(
        [*rows, row("protected", 55.0, arch="vgg11"), row("clean", 80.0, arch="vgg11")], 10
    )
    assert text_table(rows).splitlines()[1].split()[2] == "protected"


def test_report_is_one_file_without_links(tmp_path):
    rows = [
        row("clean", 90.0),
        row("protected", 12.0),
        row("protected", 14.0, seed=1),
        row("protected", 13.0, arch="<b>"),
    ]
    preview = tmp_path / "preview.png"
    preview_grid(*(torch.zeros(2, 3, 8, 8, dtype=torch.uint8),) * 2, 8).save(preview)
    written = write_report(tmp_path, rows, {"seed": 0, "note": "</pre><script>"}, 10, preview)
    page = (tmp_path / "report.html").read_text()
    assert {path.name for path in written} == {"accuracy.png", "report.html"}
    sources = re.findall(r"(?:src|href)='([^']*)'", page)
    assert len(sources) == 2 and all(
        source.startswith("data:image/png;base64,") for source in sources
    )
    assert "<script" not in page and "<b>" not in page and "13.0 &plusmn; 1.4" in page


def test_preview_shows_noise_around_grey():
    clean = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
    protected = clean.clone()
    protected[0, 0, 0, 0], protected[0, 0, 0, 1] = 108, 92
    grid = np.asarray(preview_grid(clean, protected, 8, cell=4))
    left = 4 + 8  # second column: gap, a cell and a gap to its left
    cell = grid[18 : 18 + 4, left : left + 4, 0]
    assert cell[0, 0] == 255 and cell[0, 1] == 1 and cell[2, 2] == 128
    difference = grid[18 : 18 + 4, 4 + 24 : 4 + 28, 0]
    assert difference[0, 0] == difference[0, 1] == 80 and difference[2, 2] == 0
