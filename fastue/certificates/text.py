"""Certificates in words and tables: what is certified, what is not, and what N draws can reach.

What is at most is rounded up, what is at least is rounded down.
"""

import math
from fractions import Fraction

from fastue.certificates import bounds
from fastue.certificates.claim import BN_POLICIES, Claim
from fastue.certificates.rounding import confidence, rounded_down, rounded_up, shortened_down


def table(document: dict) -> str:
    """Certificates in percent, a line an eta and a column a q; under them what an attack reached.

    `-` where the draws are too few to say anything.
    """
    claim, sigma = document["claim"], document["smoothing"]["sigma"]
    found = {(c["q"], c["eta"]): c["correct"] for c in document["certificates"]}
    columns = [f"q={q:g}" for q in claim["q"]]
    lines = [" ".join([f"{'eta':>8} {'eta/sigma':>9}", *(f"{name:>7}" for name in columns)])]
    for eta in claim["eta"]:
        cells = [f"{at_most(found[q, eta], document['total']):>7}" for q in claim["q"]]
        lines.append(" ".join([f"{shortened_down(eta):>8} {eta / sigma:9.3g}", *cells]))
    return "\n".join(lines)


def at_most(correct: int | None, total: int) -> str:
    """An upper bound in percent, never below the count's share."""
    return "-" if correct is None else rounded_up(Fraction(100 * correct, total), 2)


def at_least(correct: int | None, total: int) -> str:
    """A lower bound in percent, never above the count's share."""
    return "-" if correct is None else rounded_down(Fraction(100 * correct, total), 2)


def statement(document: dict) -> str:
    """What is certified, and what is not."""
    parts = [
        _certified(document),
        _abstained(document),
        _not_certified(document),
        _conditions(document),
        _missing_draws(document),
        _near_chance(document),
        *_beyond_the_pictures(document),
    ]
    return "\n".join(part for part in parts if part)


def plan_text(claim: Claim, sigma: float, n: int, budget: float = 0.0) -> str:
    """What n draws reach, and what each eta needs."""
    levels = bounds.grid_levels(claim.q, claim.eta, sigma, budget)
    alpha = claim.alpha
    if claim.simultaneous:
        alpha /= max(1, len({level for level in levels if level < 1}))
    lines = [f"sigma {sigma:g}, N {n}, alpha {claim.alpha:g}, rule {claim.rule}"]
    needed = planned(claim.content(), sigma, budget)
    for q in claim.q:
        reach = bounds.largest_eta(n, q, sigma, alpha, budget, claim.rule)
        lines.append(f"q {q:g}: {n} draws reach eta {shortened_down(reach, 4)}")
        for eta in claim.eta:
            lines.append(f"  eta {eta:<8g} {_wants(needed[q, eta])}")
    return "\n".join(lines)


def planned(claim: dict, sigma: float, budget: float) -> dict[tuple[float, float], float]:
    """The draws from which on each (q, eta) does not abstain; inf where no number is enough."""
    found = bounds.needed_draws(
        claim["q"],
        claim["eta"],
        sigma,
        claim["alpha"],
        budget,
        claim["simultaneous"],
        claim["rule"],
    )
    points = [(q, eta) for q in claim["q"] for eta in claim["eta"]]
    return dict(zip(points, found, strict=True))


def attack_table(rows: list[dict], total: int) -> str:
    """What attacks within the radii reach, beside the certificate of that radius."""
    lines = [f"{'eta':>8} {'q':>5} {'attack':<8} {'at least':>8} {'certified, at most':>18}"]
    for row in rows:
        lines.append(
            f"{row['eta']:8g} {row['q']:5g} {row['attack']:<8} "
            f"{at_least(row['reached'], total):>8} {at_most(row['certified'], total):>18}"
        )
    return "\n".join(lines)


def _certified(document: dict) -> str:
    """The certificate that says most: of the highest q, and there the largest eta."""
    claim, smoothing, total = document["claim"], document["smoothing"], document["total"]
    certificates = [c for c in document["certificates"] if c["correct"] is not None]
    best = max(certificates, key=lambda c: (c["q"], c["eta"]), default=None)
    if best is None:
        return "Nothing is certified."
    scope = "for each line of the table by itself"
    if claim["simultaneous"]:
        scope = "for all lines of the table together"
    if claim["rule"] == "anytime":
        scope += ", whenever you look or stop"
    canonical = smoothing["scale"] == "canonical"
    measure = (
        " (each weight measured against the root mean square of its filter or layer)"
        if canonical
        else ""
    )
    return (
        f"Certified with confidence {confidence(claim['alpha'])} %, {scope}; the last one reads: "
        f"however the weights are shifted by an l2 distance of at most "
        f"{shortened_down(best['eta'])}{measure}, at least {shortened_down(100 * Fraction(str(best['q'])))} % "
        f"of the noisy networks around the shifted weights (standard deviation "
        f"{smoothing['sigma']:g}{' of the same measure' if canonical else ''} on each of "
        f"{document['parameters']} weights) get at most {at_most(best['correct'], total)} % of "
        f"these {total} pictures right."
    )


def _abstained(document: dict) -> str:
    """Lines of the table that say nothing, and what they would need."""
    claim, sigma = document["claim"], document["smoothing"]["sigma"]
    needed = planned(claim, sigma, document["tail_budget"])
    parts = []
    for q in claim["q"]:
        etas = [c["eta"] for c in document["certificates"] if c["q"] == q and c["k"] is None]
        if etas:
            wants = (f"{eta:g} ({_wants(needed[q, eta])})" for eta in etas)
            parts.append(f"q = {q:g}: eta {', '.join(wants)}")
    if not parts:
        return ""
    return f"{document['n']} draws are too few for " + "; ".join(parts) + "."


def _wants(draws: float) -> str:
    return "no number of draws is enough" if draws == math.inf else f"needs {draws:,.0f}"


def _not_certified(document: dict) -> str:
    noise_length = document["smoothing"]["sigma"] * document["parameters"] ** 0.5
    return (
        "Not certified: the networks without noise. This one gets "
        f"{document['noiseless_accuracy']:.2f} % without noise, "
        f"{document['noisy_accuracy']['median']:.2f} % in the median with it. The noise has length "
        f"{noise_length:.4g}, the shift at most {max(document['claim']['eta']):g}."
    )


def _conditions(document: dict) -> str:
    smoothing = document["smoothing"]
    bn = smoothing["bn"]
    scale = (
        "It holds for this parameterisation, in which a filter in front of a BatchNorm may be "
        "rescaled and the network stay what it is (--scale canonical is free of that)"
        if smoothing["scale"] == "raw"
        else "It is the same for every rescaling of the filters in front of a BatchNorm"
    )
    held_out = ""
    if document["held_out"]:
        held_out = f", on {document['held_out']} pictures of the set that are not counted"
    return (
        f"{scale}, for {smoothing['arithmetic']} arithmetic, and for BatchNorm statistics {bn} "
        f"({BN_POLICIES[bn]}{held_out})."
    )


def _missing_draws(document: dict) -> str:
    if not document["missing"]:
        return ""
    return f"{document['missing']} of {document['n']} draws are missing and count as 100 % right."


def _near_chance(document: dict) -> str:
    chance = 100 / document["classes"]
    if document["noisy_accuracy"]["median"] >= 1.5 * chance:
        return ""
    return (
        f"Careful: in the median the noisy networks are near chance ({chance:.3g} %), as networks "
        "ruined by noise are whatever they were trained on. Compare with a network trained on the "
        "clean pictures at this sigma; if that is near chance too, the certificate says nothing "
        "about the data: take a smaller --sigma."
    )


def _beyond_the_pictures(document: dict) -> list[str]:
    """The step from these pictures to others of their kind."""
    left = confidence(document["claim"]["alpha"], document["claim"]["delta"])
    return [
        f"Beyond these pictures (if they are independent draws of a population and the network was "
        f"made without them), q = {row['q']:g}, eta = {row['eta']:g}: at most "
        f"{rounded_up(row['accuracy'], 2)} % of the population, confidence {left} % for this "
        "line by itself."
        for row in document["population"]
        if row["accuracy"] is not None
    ]
