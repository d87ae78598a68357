"""What is chosen before the first draw, with its defaults: the claim, the smoothing, the network.

Imports no torch, so that the command line shows these defaults at once.
"""

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

from fastue.core.errors import UsageError

BN_POLICIES = {
    "stored": "the statistics that the network came with",
    "frozen-noisy": "re-estimated once, on one noisy copy, and then the same for all",
    "reestimated": "re-estimated for each noisy copy on fixed pictures without their labels",
}
ARITHMETIC = {"fp32": "float32", "bf16-folded": "bf16"}  # what is evaluated is what is certified
SCALES = {
    "canonical": "in units of the root mean square of each filter or layer",
    "raw": "the same on every weight, as published",
}

RULES = {
    "anytime": "holds at every moment: look, stop and go on as you like",
    "fixed": "of N draws declared beforehand, which all have to be made",
}

DRAWS = 1200

_ETA_SHARES = (0.04, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)  # of sigma


@dataclass(frozen=True)
class Claim:
    """What is to be certified: for each q and eta, at confidence 1 - alpha for all together."""

    q: tuple[float, ...] = (0.9,)
    eta: tuple[float, ...] = ()  # radii
    alpha: float = 0.01
    simultaneous: bool = True
    rule: str = "anytime"
    n: int | None = None  # draws, where the rule is "fixed"
    delta: float = 0.01  # of the step from these pictures to all pictures of their kind

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UsageError(f"--rule {self.rule}: use one of {', '.join(RULES)}")
        if (self.n is None) != (self.rule == "anytime") or (self.n is not None and self.n < 1):
            raise UsageError(f"--N {self.n}: must be at least 1")
        if not self.q or not all(0 < q < 1 for q in self.q):
            raise UsageError(f"--q {_comma_list(self.q)}: each must be between 0 and 1")
        if not self.eta or not all(0 <= eta < math.inf for eta in self.eta):
            raise UsageError(f"--eta {_comma_list(self.eta)}: each must be at least 0")
        if not 0 < self.alpha < 1 or not 0 < self.delta < 1:
            raise UsageError(f"--alpha {self.alpha:g}: must be between 0 and 1")

    def points(self) -> list[tuple[float, float]]:
        """(q, eta), for every q and, within it, every eta."""
        return [(q, eta) for q in self.q for eta in self.eta]

    def content(self) -> dict:
        """As JSON has it."""
        return {**asdict(self), "q": list(self.q), "eta": list(self.eta)}


def radii(eta: Sequence[str | float], sigma: float) -> tuple[float, ...]:
    """Radii: numbers, or shares of sigma such as "0.4s"; of none, shares up to 1.2 sigma."""
    try:
        return tuple(_radius(value, sigma) for value in eta or [f"{s}s" for s in _ETA_SHARES])
    except ValueError as error:
        raise UsageError(
            f"--eta {','.join(map(str, eta))}: numbers, or shares of sigma such as 0.4s"
        ) from error


def _radius(value: str | float, sigma: float) -> float:
    share = isinstance(value, str) and value.strip().endswith("s")
    return float(f"{sigma * float(value.strip()[:-1]):.6g}") if share else float(value)


@dataclass(frozen=True)
class Question:
    """Is the (q, eta)-learnability at most `at_most` percent?"""

    q: float
    eta: float
    at_most: float

    def correct(self, total: int) -> int:
        """The largest count of `total` that is no more."""
        return math.floor(Fraction(str(self.at_most)) * total / 100)


def question(text: str, sigma: float) -> Question:
    """Of "q=0.9,eta=0.4s <= 68%"."""
    number = r"([-+.\de]+)"
    found = re.fullmatch(rf"q={number},eta=({number}s?)<={number}%", "".join(text.split()))
    try:
        q, eta, _, at_most = found.groups()
        asked = Question(float(q), _radius(eta, sigma), float(at_most))
        if not 0 <= asked.at_most <= 100:
            raise ValueError
    except (AttributeError, ValueError):
        raise UsageError(f'--until {text!r}: write it as "q=0.9,eta=0.4s <= 68%"') from None
    return asked


@dataclass(frozen=True)
class Smoothing:
    """What a count depends on beside the network and the pictures.

    `sigma` is in the units of `scale` and rounded to float32, in which the noise is made. Without a
    `seed` the Sampler derives it from what is certified.
    """

    sigma: float = 0.25
    seed: int | None = None
    bn: str = "stored"
    arithmetic: str = "fp32"
    batch: int = 256  # the rounding of sums may depend on it
    scale: str = "canonical"

    def __post_init__(self) -> None:
        if not 0 < (rounded := _float32(self.sigma)) < math.inf:
            raise UsageError(f"--sigma {self.sigma}: must be above 0, and finite, in float32")
        object.__setattr__(self, "sigma", rounded)
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise UsageError(f"--seed {self.seed}: must be in [0, 2^64)")
        if self.bn not in BN_POLICIES:
            raise UsageError(f"--bn {self.bn}: use one of {', '.join(BN_POLICIES)}")
        if self.arithmetic not in ARITHMETIC:
            raise UsageError(f"--arithmetic {self.arithmetic}: use one of {', '.join(ARITHMETIC)}")
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: must be at least 1")
        if self.scale not in SCALES:
            raise UsageError(f"--scale {self.scale}: use one of {', '.join(SCALES)}")


@dataclass(frozen=True)
class Training:
    """How a network is trained only to be certified: the victim's recipe."""

    arch: str = "resnet18"
    epochs: int = 60
    seed: int = 0
    precision: str = "auto"


def _float32(value: float) -> float:
    """The nearest float32; infinite where there is none."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.inf


def _comma_list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
