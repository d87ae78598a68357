"""Certificates in words and tables: what is certified, what is not, and what N draws can reach."""

from fastue.certificates import bounds
from fastue.certificates.claim import BN_POLICIES, Claim


def table(document: dict) -> str:
    """Certificates in percent, a line an eta and a column a q.

    `-` where the draws are too few to say anything.
    """
    qs, etas = document["claim"]["q"], document["claim"]["eta"]
    sigma = document["smoothing"]["sigma"]
    accuracy = {(c["q"], c["eta"]): c["accuracy"] for c in document["certificates"]}
    lines = [f"{'eta':>8} {'eta/sigma':>9} " + " ".join(f"q={q:<5g}" for q in qs)]
    for eta in etas:
        cells = " ".join(f"{percent(accuracy[q, eta]):>7}" for q in qs)
        lines.append(f"{eta:8g} {eta / sigma:9.3g} {cells}")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def statement(document: dict) -> str:
    """What is certified, and what is not."""
    parts = [
        _certified(document),
        _not_certified(document),
        _conditions(document),
        _missing_draws(document),
        _near_chance(document),
        *(_beyond_the_pictures(document, q) for q in document["claim"]["q"]),
    ]
    return "\n".join(part for part in parts if part)


def plan_text(claim: Claim, sigma: float) -> str:
    """What N draws reach, and what each eta needs."""
    alpha, etas = claim.alpha, claim.grid(sigma)
    if claim.simultaneous:
        levels = [float(bounds.shifted_level(q, eta, sigma)) for q in claim.q for eta in etas]
        alpha = bounds.local_level(claim.n, tuple(levels), alpha)
    lines = [
        f"sigma {sigma:g}, N {claim.n}, alpha {claim.alpha:g} ({alpha:.3g} for each of the grid)"
    ]
    for q in claim.q:
        reach = bounds.largest_eta(claim.n, q, sigma, alpha)
        lines.append(f"q {q:g}: {claim.n} draws reach eta {reach:.4g}")
        for eta in etas:
            if eta > 0:
                draws = bounds.needed_draws(q, eta, sigma, alpha)
                lines.append(f"  eta {eta:<8g} needs {draws:.4g} draws")
    return "\n".join(lines)


def recovery_table(rows: list[dict]) -> str:
    """What attacks within the radii reach, beside the certificate of that radius."""
    lines = [
        f"{'eta':>8} {'attack':<8} {'without noise':>13} {'q':>5} "
        f"{'noisy, at least':>15} {'certified':>9}"
    ]
    for row in rows:
        lines.append(
            f"{row['eta']:8g} {row['attack']:<8} {row['noiseless']:13.2f} {row['q']:5g} "
            f"{percent(row['noisy_lower']):>15} {percent(row['certified']):>9}"
        )
    return "\n".join(lines)


def _certified(document: dict) -> str:
    """The certificate that says most: of the highest q, and there the largest eta."""
    claim = document["claim"]
    certificates = [c for c in document["certificates"] if c["accuracy"] is not None]
    best = max(certificates, key=lambda c: (c["q"], c["eta"]), default=None)
    if best is None:
        return (
            f"Nothing is certified: {claim['n']} draws are too few for any of these (q, eta); "
            "see --plan."
        )
    scope = "for each line of the table by itself"
    if claim["simultaneous"]:
        scope = "for all lines of the table together"
    return (
        f"Certified with confidence {100 * (1 - claim['alpha']):g} %, {scope}; the last one reads: "
        f"however the weights are shifted by an l2 distance of at most {best['eta']:g}, at least "
        f"{100 * best['q']:g} % of the noisy networks around the shifted weights (standard "
        f"deviation {document['smoothing']['sigma']:g} on each of {document['parameters']} "
        f"weights) get at most {best['accuracy']:.2f} % of these {document['total']} pictures "
        "right."
    )


def _not_certified(document: dict) -> str:
    noise_length = document["smoothing"]["sigma"] * document["parameters"] ** 0.5
    return (
        "Not certified: the networks without noise. This one gets "
        f"{document['noiseless_accuracy']:.2f} % without noise, "
        f"{document['noisy_accuracy']['median']:.2f} % in the median with it. The noise has length "
        f"{noise_length:.4g}, the shift at most {max(document['claim']['eta']):g}."
    )


def _conditions(document: dict) -> str:
    arithmetic, bn = document["smoothing"]["arithmetic"], document["smoothing"]["bn"]
    return (
        f"It holds for this parameterisation, for {arithmetic} arithmetic, and for BatchNorm "
        f"statistics {bn} ({BN_POLICIES[bn]})."
    )


def _missing_draws(document: dict) -> str:
    if not document["missing"]:
        return ""
    return (
        f"{document['missing']} of {document['claim']['n']} draws are missing and count as "
        "100 % right."
    )


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


def _beyond_the_pictures(document: dict, q: float) -> str:
    """The step from these pictures to others of their kind, at the largest eta.

    The order statistic lies higher (the level takes in `rho`), and `t` is added to it. Only draws
    that were counted speak here: nothing is said where a missing one would be the bound.
    """
    claim, total, correct = document["claim"], document["total"], document["correct"]
    eta, delta = max(claim["eta"]), claim["delta"]
    sigma, budget = document["smoothing"]["sigma"], document["tail_budget"]
    t, _, level = bounds.generalisation(q, eta, sigma, total, delta, budget)
    k = bounds.order_index(claim["n"], level, claim["alpha"])
    if k is None or k > len(correct):
        return ""
    accuracy = 100 * sorted(correct)[k - 1] / total + 100 * t
    return (
        f"Beyond these pictures (others drawn like them), q = {q:g}, eta = {eta:g}: at most "
        f"{accuracy:.2f} %, confidence {100 * (1 - claim['alpha'] - delta):g} % for this line by "
        "itself."
    )
