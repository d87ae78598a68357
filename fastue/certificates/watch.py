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
        self.total, self.asked, self.anytime = declared["total"], asked, None
        if claim["rule"] == "fixed":
            return
        budget = bounds.tail_budget(declared["drawn"])
        self.points = [(q, eta) for q in claim["q"] for eta in claim["eta"]]
        levels = bounds.grid_levels(claim["q"], claim["eta"], sigma, budget)
        if asked:
            at = self.points.index((asked.q, asked.eta))
            self.never = Decision(levels[at], asked.correct(self.total), claim["alpha"])
            if not claim["simultaneous"]:
                self.points, levels = [self.points[at]], [levels[at]]
        self.anytime = AnytimeBounds(levels, self.total, claim["alpha"])
        first = next(draw for draw in range(len(logged) + 1) if draw not in logged)
        self.look([logged[draw] for draw in range(first)])

    def look(self, counts: list[int]) -> dict[str, str]:
        """What to print beside the progress."""
        if self.anytime is None:
            return {}
        self.anytime.update(counts)
        if self.asked:
            self.never.update(counts)
        found = zip(self.points, self.anytime.bounds, strict=True)
        bounded = [(q, eta, bound) for (q, eta), bound in found if bound is not None]
        if not bounded:
            return {}
        q, eta, bound = max(bounded)
        return {f"q={q:g}, eta={eta:g} <=": f"{at_most(bound, self.total)} %"}

    @property
    def answer(self) -> str | None:
        """To the question: "yes", "no" or None, not decided yet."""
        if not self.asked:
            return None
        at = self.points.index((self.asked.q, self.asked.eta))
        bound = self.anytime.bounds[at]
        if bound is not None and bound <= self.asked.correct(self.total):
            return "yes"
        return "no" if self.never.answer == "no" else None

    def words(self) -> str:
        if not self.asked:
            return ""
        said = {
            "yes": "yes",
            "no": "no: more draws would not bring the certificate there; a larger sigma or a smaller "
            "eta may",
            None: "not decided; a larger --N goes on",
        }[self.answer]
        q, eta, tau = self.asked.q, self.asked.eta, self.asked.at_most
        return f"q={q:g}, eta={eta:g} <= {tau:g} %: {said}, after {self.anytime.draws} draws."
