"""What is chosen beforehand, and what is said of it afterwards."""

import itertools
import math
import re
import warnings

import pytest

from fastue.certificates.claim import Claim, question, radii
from fastue.certificates.declaration import declare
from fastue.certificates.document import certificate_document
from fastue.certificates.plot import plot
from fastue.certificates.text import plan_text, table
from fastue.core.errors import UsageError


def declared(n=None, q=(0.5, 0.9), eta=(0.01, 0.05), smoothing=(), **others) -> dict:
    """As in declared.json, of a network with 1000 weights and 200 pictures in 4 classes."""
    claim = {"q": list(q), "eta": list(eta), "alpha": 0.01, "simultaneous": True, "delta": 0.01}
    settings = {"sigma": 0.1, "bn": "stored", "arithmetic": "fp32", "batch": 50, "scale": "raw"}
    return {
        "claim": {**claim, "rule": "fixed" if n else "anytime", "n": n},
        "smoothing": {**settings, **dict(smoothing)},
        "digest": "abc",
        "total": 200,
        "held_out": 0,
        "classes": 4,
        "parameters": 1000,
        "drawn": 1024,
        "noiseless_correct": 150,
        **others,
    }


@pytest.mark.parametrize(
    "flag, arguments",
    [
        ("--N 0", {"n": 0, "rule": "fixed"}),
        ("--rule sometimes", {"rule": "sometimes"}),
        ("--q 0.5,1", {"q": (0.5, 1.0)}),
        ("--q ", {"q": ()}),
        ("--eta -1", {"eta": (-1.0,)}),
        ("--eta inf", {"eta": (math.inf,)}),
        ("--eta ", {"eta": ()}),
        ("--alpha 0", {"alpha": 0.0}),
    ],
)
def test_a_claim_without_a_sense_is_named(flag, arguments):
    with pytest.raises(UsageError, match=f"^{flag}"):
        Claim(**{"eta": (0.1,), **arguments})


def test_radii_are_numbers_or_shares_of_sigma():
    assert radii((0.5,), 0.1) == (0.5,) and radii(("0.5", "0.4s"), 0.1) == (0.5, 0.04)
    assert radii((), 0.2)[-1] == 0.24
    small = radii((), 1e-6)
    assert min(small) > 0 and len(set(small)) == len(small)
    with pytest.raises(UsageError, match="--eta 0.1,half: numbers, or shares of sigma"):
        radii(("0.1", "half"), 0.1)


def test_a_question_is_read_as_written():
    asked = question("q=0.9, eta=0.4s <= 68.1 %", 0.05)
    assert (asked.q, asked.eta, asked.at_most) == (0.9, 0.02, 68.1)
    assert asked.correct(1000) == 681 and asked.correct(999) == 680  # 68.1 % exactly, or less
    for bad in ("q=0.9,eta=0.4s", "q=0.9,eta=0.4s<=0.68", "eta=1,q=0.5<=3%", "q=1,eta=1<=101%"):
        with pytest.raises(UsageError, match="--until .*write it as"):
            question(bad, 0.05)


@pytest.mark.parametrize("rule", [{"n": 1000, "rule": "fixed"}, {"rule": "anytime"}])
def test_a_plan_names_draws_or_says_that_none_are_enough(rule):
    claim = Claim(q=(0.9,), eta=radii(("0.2s", "6s"), 0.1), **rule)
    lines = plan_text(claim, 0.1, 1000, budget=5e-6).splitlines()
    assert lines[1].startswith("q 0.9: 1000 draws reach eta 0.1")
    assert "needs" in lines[2] and lines[3].endswith("no number of draws is enough")


def test_a_second_declaration_may_only_repeat_the_first(tmp_path):
    declare(tmp_path, declared())
    before = (tmp_path / "declared.json").read_bytes()
    declare(tmp_path, declared())
    with pytest.raises(UsageError, match="for another rule, n. "):
        declare(tmp_path, declared(n=50, digest="x"))
    with pytest.raises(UsageError, match="for another q. "):
        declare(tmp_path, declared(q=(0.5,), digest="x"))
    with pytest.raises(UsageError, match="for another digest. "):
        declare(tmp_path, declared(digest="xyz"))
    assert (tmp_path / "declared.json").read_bytes() == before


COUNTS = {draw: 100 + draw % 20 for draw in range(400)}


@pytest.mark.parametrize("n", [400, None])
def test_the_statement_is_of_the_highest_certificate(n):
    document = certificate_document(declared(n), COUNTS)
    certificates = [c for c in document["certificates"] if c["accuracy"] is not None]
    best = max(certificates, key=lambda c: (c["q"], c["eta"]))
    words = document["statement"]
    assert f"distance of at most {best['eta']:g}, at least {100 * best['q']:g} %" in words
    assert f"at most {best['accuracy']:.2f} % of these 200 pictures" in words
    assert "75.00 % without noise" in words and ("whenever you look" in words) == (n is None)
    assert "missing" not in words and "near chance" not in words
    assert "Beyond these pictures (if they are independent draws" in words


def test_what_is_missing_or_near_chance_is_said():
    document = certificate_document(declared(100), {draw: 50 for draw in range(97)})
    assert "3 of 100 draws are missing and count as 100 % right." in document["statement"]
    assert "near chance (25 %)" in document["statement"]
    assert document["noisy_accuracy"] == {"min": 25.0, "median": 25.0, "max": 25.0}


def test_a_gap_counts_as_all_right_until_it_is_filled():
    few = {draw: COUNTS[draw] for draw in range(60)}
    whole = certificate_document(declared(), few)
    gap = certificate_document(declared(), {d: c for d, c in few.items() if d > 4})
    assert (whole["n"], whole["missing"], gap["n"], gap["missing"]) == (60, 0, 60, 5)
    pairs = list(zip(whole["certificates"], gap["certificates"], strict=True))
    assert all(b["correct"] is None or a["correct"] <= b["correct"] for a, b in pairs)
    assert [a["correct"] for a, _ in pairs] != [b["correct"] for _, b in pairs]


def test_more_draws_never_raise_an_anytime_bound():
    bounds = []
    for n in (50, 100, 200, 400):
        document = certificate_document(declared(), {d: COUNTS[d] for d in range(n)})
        bounds.append([c["correct"] or 200 for c in document["certificates"]])
    for before, after in itertools.pairwise(bounds):
        assert all(a >= b for a, b in zip(before, after, strict=True))


def test_what_abstains_is_told_and_what_it_needs():
    document = certificate_document(declared(), {d: COUNTS[d] for d in range(60)})
    (line,) = [part for part in document["statement"].splitlines() if "too few for" in part]
    (needs,) = re.findall(r"q = 0.9: eta 0.01 \(needs (\d+)\), 0.05 \(needs (\d+)\)", line)
    assert 60 < int(needs[0]) < int(needs[1])
    for n in map(int, needs):
        enough = certificate_document(declared(), {d: COUNTS[d] for d in range(n)})
        few = certificate_document(declared(), {d: COUNTS[d] for d in range(n - 1)})
        assert len(abstained(enough)) == len(abstained(few)) - 1
    assert "too few" not in enough["statement"]


def abstained(document) -> list[dict]:
    return [c for c in document["certificates"] if c["correct"] is None]


def test_no_draws_certify_nothing():
    for n in (3, None):
        document = certificate_document(declared(n), {})
        drawn = n or 0
        assert document["statement"].startswith("Nothing is certified.")
        assert f"{drawn} draws are too few for" in document["statement"]
        assert document["noisy_accuracy"]["median"] == 100
        lines = table(document).splitlines()
        assert len(lines) == 3 and all(line.split()[-2:] == ["-", "-"] for line in lines[1:])


def test_what_is_printed_is_never_better_than_what_holds():
    """Accuracies and errors go up, radii and quantiles down."""
    tight = declared(total=3000, q=(0.5, 1 - 1e-9), eta=(0.0100000049,))
    tight["claim"]["alpha"] = 1e-6
    document = certificate_document(tight, {d: 1000 for d in range(200)})
    words = document["statement"]
    assert "33.34 % of these 3000 pictures" in words and "33.34" in table(document)
    assert "confidence 99.9999 %" in words and "at most 0.01," in words
    assert "100 % of the noisy networks" not in words


@pytest.mark.parametrize("scale", ["raw", "canonical"])
def test_a_radius_of_nothing_is_drawn_without_a_warning(scale):
    settings = declared(eta=(0.0,), smoothing={"scale": scale}, layers=LAYERS)
    document = certificate_document(settings, {d: COUNTS[d] for d in range(200)})
    assert document["certificates"][0]["correct"] is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [{"eta": 0.0, "q": 0.5, "reached": 100}]
        assert plot(document, rows)[:4] == b"\x89PNG"


LAYERS = [{"name": "a", "size": 10, "norm": 1.0, "relative": 3.0}]
