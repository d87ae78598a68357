"""The content of certificate.json: certificates from what was declared and what was counted."""

import statistics
from collections.abc import Sequence

from fastue.certificates import bounds
from fastue.certificates.text import statement
from fastue.core import info


def certificate_document(declared: dict, correct_of_draw: dict[int, int]) -> dict:
    """JSON values throughout. A declared draw without a count is taken as all right."""
    n, total = declared["claim"]["n"], declared["total"]
    correct = [correct_of_draw[draw] for draw in sorted(correct_of_draw)]
    budget = bounds.tail_budget(declared["parameters"])
    document = {
        **declared,
        "missing": n - len(correct),
        "tail_budget": budget,
        "noisy_accuracy": _accuracy_range(correct, total),
        "noiseless_accuracy": 100 * declared["noiseless_correct"] / total,
        "certificates": _certificates(declared, correct, budget),
        "correct": correct,
        "versions": info.collect(),
    }
    document["statement"] = statement(document)
    return document


def _certificates(declared: dict, correct: Sequence[int], budget: float) -> list[dict]:
    claim = declared["claim"]
    certificates = bounds.certify(
        correct,
        declared["total"],
        q=claim["q"],
        eta=claim["eta"],
        sigma=declared["smoothing"]["sigma"],
        alpha=claim["alpha"],
        n=claim["n"],
        budget=budget,
        simultaneous=claim["simultaneous"],
    )
    return [
        {
            "q": c.q,
            "eta": c.eta,
            "level": c.level,
            "alpha": c.alpha_local,
            "k": c.k,
            "correct": c.correct,
            "accuracy": None if c.abstains else 100 * c.accuracy,
        }
        for c in certificates
    ]


def _accuracy_range(correct: Sequence[int], total: int) -> dict[str, float]:
    """Percent right of the noisy copies; as certified, all right where there is not one draw."""
    accuracies = sorted(100 * count / total for count in correct) or [100.0]
    median = statistics.median(accuracies)
    return {"min": accuracies[0], "median": median, "max": accuracies[-1]}
