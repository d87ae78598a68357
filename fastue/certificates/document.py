"""The content of certificate.json: certificates from what was declared and what was counted."""

import statistics
from collections.abc import Sequence

from fastue.certificates import bounds
from fastue.certificates.anytime import AnytimeBounds
from fastue.certificates.text import statement
from fastue.core import info


def certificate_document(declared: dict, correct_of_draw: dict[int, int]) -> dict:
    """JSON values throughout. A draw without a count is taken as all right."""
    total = declared["total"]
    n = declared["claim"]["n"] or 1 + max(correct_of_draw, default=-1)
    correct = [correct_of_draw[draw] for draw in sorted(correct_of_draw)]
    in_order = [correct_of_draw.get(draw, total) for draw in range(n)]
    budget = bounds.tail_budget(declared["drawn"])
    document = {
        **declared,
        "n": n,
        "missing": n - len(correct),
        "tail_budget": budget,
        "noisy_accuracy": _accuracy_range(correct, total),
        "noiseless_accuracy": 100 * declared["noiseless_correct"] / total,
        "certificates": _certificates(declared, in_order, budget),
        "population": _population(declared, in_order, budget),
        "correct": correct,
        "versions": info.collect(),
    }
    document["statement"] = statement(document)
    return document


def _certificates(declared: dict, correct: Sequence[int], budget: float) -> list[dict]:
    claim, total = declared["claim"], declared["total"]
    found = _bounds(declared, correct, claim["q"], claim["eta"], budget, claim["simultaneous"])
    for one in found:
        one["accuracy"] = None if one["correct"] is None else 100 * one["correct"] / total
    return found


def _bounds(
    declared: dict,
    correct: Sequence[int],
    q: Sequence[float],
    eta: Sequence[float],
    budget: float,
    joint: bool,
) -> list[dict]:
    """Upper bounds of the quantiles of the counts, which are in the order of the draws.

    "correct" is the k-th smallest of the first n; None: abstains. "alpha" is of each alone.
    """
    claim, total = declared["claim"], declared["total"]
    alpha, sigma = claim["alpha"], declared["smoothing"]["sigma"]
    if claim["rule"] == "fixed":
        certificates = bounds.certify(
            correct,
            total,
            q=q,
            eta=eta,
            sigma=sigma,
            alpha=alpha,
            budget=budget,
            simultaneous=joint,
        )
        columns = [(c.level, c.alpha_local, c.n, c.k, c.correct) for c in certificates]
    else:
        levels = bounds.grid_levels(q, eta, sigma, budget)
        columns = []
        for together in [levels] if joint else [[level] for level in levels]:
            watched = AnytimeBounds(together, total, alpha)
            watched.update(correct)
            for level, bound, origin in zip(together, watched.bounds, watched.origins, strict=True):
                columns.append(
                    (level, watched.alpha_local, *(origin or (len(correct), None)), bound)
                )
    names = ("q", "eta", "level", "alpha", "n", "k", "correct")
    points = [(a, b) for a in q for b in eta]
    return [
        dict(zip(names, point + column, strict=True))
        for point, column in zip(points, columns, strict=True)
    ]


def _population(declared: dict, correct: Sequence[int], budget: float) -> list[dict]:
    """The step from these pictures to others of their kind, at the largest eta of each q.

    Of counts alone: none where a draw without one would be the bound.
    """
    claim, total = declared["claim"], declared["total"]
    eta, sigma, rows = max(claim["eta"]), declared["smoothing"]["sigma"], []
    for q in claim["q"]:
        step = bounds.generalisation(q, eta, sigma, total, claim["delta"], budget)
        (bound,) = _bounds(declared, correct, [q], [eta], budget + step.rho, joint=False)
        none = bound["correct"] in (None, total)
        rows.append(
            {"q": q, "eta": eta, "accuracy": None if none else 100 * step.bound(bound["correct"])}
        )
    return rows


def _accuracy_range(correct: Sequence[int], total: int) -> dict[str, float]:
    """Percent right of the noisy copies; as certified, all right where there is not one draw."""
    accuracies = sorted(100 * count / total for count in correct) or [100.0]
    median = statistics.median(accuracies)
    return {"min": accuracies[0], "median": median, "max": accuracies[-1]}
