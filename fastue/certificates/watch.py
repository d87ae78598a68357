"""What can be said while draws are made: how far the bound has fallen, whether a question is decided."""

from fastue.certificates import bounds
from fastue.certificates.anytime import AnytimeBounds, Decision
from fastue.certificates.claim import Question
from fastue.certificates.text import at_most


class Watch:
    """Takes counts in the order of the draws, after those of `logged` that come first.

    Of a claim of fixed N nothing may be said before the end.
    """

    def __init__(self, declared: dict, logged: dict[int, int], asked: Question | None):
        claim, sigma = declared["claim"], declared["smoothing"]["sigma"]
        self.total, self.asked = declared["total"], asked
        budget = bounds.tail_budget(declared["drawn"])
        levels = bounds.grid_levels(claim["q"], claim["eta"], sigma, budget)
        self.anytime = self.decision = None
        if claim["rule"] == "anytime":
            self.points = [(q, eta) for q in claim["q"] for eta in claim["eta"]]
            self.anytime = AnytimeBounds(levels, self.total, claim["alpha"])
        if asked:
            level = levels[self.points.index((asked.q, asked.eta))]
            self.decision = Decision(level, asked.correct(self.total), self.anytime.alpha_local)
        draws = range(next(draw for draw in range(len(logged) + 1) if draw not in logged))
        self.look({draw: logged[draw] for draw in draws})

    def look(self, counts: dict[int, int]) -> dict[str, str]:
        """What to print beside the progress."""
        if self.anytime is None:
            return {}
        self.anytime.update(list(counts.values()))
        if self.decision:
            self.decision.update(list(counts.values()))
        bounded = [
            (q, eta, bound)
            for (q, eta), bound in zip(self.points, self.anytime.bounds, strict=True)
            if bound is not None
        ]
        if not bounded:
            return {}
        q, eta, bound = max(bounded)
        return {f"q={q:g}, eta={eta:g} <=": f"{at_most(bound, self.total)} %"}

    @property
    def answered(self) -> bool:
        return self.decision is not None and self.decision.answer is not None

    def answer(self) -> str:
        if not self.asked:
            return ""
        q, eta, tau = self.asked.q, self.asked.eta, self.asked.at_most
        said = {
            "yes": "yes",
            "no": "no: more draws would not bring the certificate there (a larger sigma or a "
            "smaller eta may)",
            None: "not decided; a larger --N goes on",
        }[self.decision.answer]
        return f"q={q:g}, eta={eta:g} <= {tau:g} %: {said}, after {self.decision.draws} draws."
