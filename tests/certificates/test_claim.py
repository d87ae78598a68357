"""What is chosen beforehand, and what is said of it afterwards."""

import math

import pytest

from fastue.certificates.claim import Claim, Smoothing
from fastue.certificates.declaration import declare
from fastue.certificates.document import certificate_document
from fastue.certificates.text import plan_text, table
from fastue.core.errors import UsageError


def declared(n=100, q=(0.5, 0.9), eta=(0.01, 0.05), **others) -> dict:
    """As in declared.json, of a network with 1000 weights and 200 pictures in 4 classes."""
    claim = {"n": n, "q": list(q), "eta": list(eta), "alpha": 0.01}
    return {
        "claim": {**claim, "simultaneous": True, "delta": 0.01},
        "smoothing": {"sigma": 0.1, "seed": 0, "bn": "stored", "arithmetic": "fp32", "batch": 50},
        "digest": "abc",
        "total": 200,
        "classes": 4,
        "parameters": 1000,
        "noiseless_correct": 150,
        **others,
    }


@pytest.mark.parametrize(
    "flag, arguments",
    [
        ("--N 0", {"n": 0}),
        ("--q 0.5,1", {"q": (0.5, 1.0)}),
        ("--q ", {"q": ()}),
        ("--eta -1", {"eta": (-1.0,)}),
        ("--eta inf", {"eta": (math.inf,)}),
        ("--alpha 0", {"alpha": 0.0}),
    ],
)
def test_a_claim_without_a_sense_is_named(flag, arguments):
    with pytest.raises(UsageError, match=f"^{flag}"):
        Claim(**arguments)


def test_radii_are_shares_of_sigma_unless_they_are_named():
    assert Claim(eta=(0.5,)).grid(0.1) == (0.5,)
    assert Claim().grid(0.2) == tuple(round(2 * eta, 6) for eta in Claim().grid(0.1))
    assert "1000 draws reach eta" in plan_text(Claim(), Smoothing().sigma)


def test_a_second_declaration_may_only_repeat_the_first(tmp_path):
    declare(tmp_path, declared())
    before = (tmp_path / "declared.json").read_bytes()
    declare(tmp_path, declared())
    with pytest.raises(UsageError, match="for another n, q. "):
        declare(tmp_path, declared(n=50, q=(0.5,)))
    with pytest.raises(UsageError, match="for another digest. "):
        declare(tmp_path, declared(digest="xyz"))
    assert (tmp_path / "declared.json").read_bytes() == before


def test_the_statement_is_of_the_highest_certificate():
    document = certificate_document(declared(), {draw: 100 + draw % 20 for draw in range(100)})
    certificates = [c for c in document["certificates"] if c["accuracy"] is not None]
    best = max(certificates, key=lambda c: (c["q"], c["eta"]))
    words = document["statement"]
    assert f"distance of at most {best['eta']:g}, at least {100 * best['q']:g} %" in words
    assert f"at most {best['accuracy']:.2f} % of these 200 pictures" in words
    assert "75.00 % without noise" in words
    assert "missing" not in words and "near chance" not in words
    assert "Beyond these pictures (others drawn like them), q = 0.5" in words


def test_what_is_missing_or_near_chance_is_said():
    document = certificate_document(declared(), {draw: 50 for draw in range(97)})
    assert "3 of 100 draws are missing and count as 100 % right." in document["statement"]
    assert "near chance (25 %)" in document["statement"]
    assert document["noisy_accuracy"] == {"min": 25.0, "median": 25.0, "max": 25.0}


def test_no_draws_certify_nothing():
    document = certificate_document(declared(n=3), {})
    assert document["statement"].startswith("Nothing is certified: 3 draws are too few")
    assert document["noisy_accuracy"]["median"] == 100
    lines = table(document).splitlines()
    assert len(lines) == 3 and all(line.split()[-2:] == ["-", "-"] for line in lines[1:])
