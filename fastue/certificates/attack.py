"""The attack beside a certificate: a shift within the radius that noisy copies profit from.

Projected ascent of the smoothed accuracy in the certificate's own coordinates u = v / s, by many
short steps: a gradient's error lies where the network is sensitive, one long step along it does
more harm than good, and the next gradients take it back. They are path-wise (through a few noisy
copies each, of a smooth stand-in for right and wrong). It starts from theta, and from where the
draws that were counted anyway point: sum of (count - mean) z. What it reaches is measured on fresh
draws of the very classifier that is certified: a lower bound with a confidence of its own, which
must not exceed the certificate.
"""

import copy
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.certificates import bounds
from fastue.certificates.smoothing import Sampler
from fastue.data.dataset import batches, epoch_order
from fastue.models.flat import FlatParameters, flattened
from fastue.models.training import to_input
from fastue.ops import WEIGHTS_ATTACK, WEIGHTS_CERTIFY

_WIDTH = 0.2  # of the stand-in, in root mean square margins
_STEP = 0.3  # of the radius, falling to 0
_PICTURES = 512  # of a noisy copy's gradient
_SELECT, _MEASURE = 1 << 30, 1 << 31  # where the draws of these uses begin; gradients' from 0 on
FRESH = 300  # draws that a lower bound is made from
_INSIDE = 1 - 1e-6  # of the radius: float32 must not leave the ball


def press(
    sampler: Sampler,
    etas: Sequence[float],
    qs: Sequence[float],
    *,
    alpha: float,
    counted: Mapping[int, int],
    steps: int = 16,
    copies: int = 4,
    selection: int = 64,
    fresh: int = FRESH,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict]:
    """What a shift within each radius reaches: rows of eta, q and "reached", right answers.

    etas      radii |v / scale|_2; the direction is found at the largest
    counted   {draw: right answers} of the certificate's draws, for the score's start; may be empty
    steps     of each of two ascents, each step with `copies` noisy copies
    selection draws that candidates are compared on, the same for all
    fresh     draws that the chosen one is measured on, for each eta

    The q-quantile of the noisy networks around the shifted weights is at least "reached", in all
    rows together with probability 1-alpha. None where `fresh` draws are too few to say anything. A
    function of its arguments and sampler.seed. Costs about 6 * steps * copies * min(1, 512 /
    pictures) draws for the direction, 3 * selection for the choice and fresh * etas for the rows.
    """
    total = 2 * steps + len(etas)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    direction = torch.zeros_like(sampler.weights.base)
    if max(etas) > 0:
        direction = _found(sampler, max(etas), counted, steps, copies, selection, step)
    rows, best = [], dict.fromkeys(qs)
    for eta in sorted(etas):
        around = sampler.moved(shift(sampler, direction, eta)) if eta > 0 else sampler
        for q, lower in lower_bounds(around, qs, alpha / len(etas), fresh).items():
            # What a smaller ball holds, a larger one holds.
            best[q] = max((one for one in (best[q], lower) if one is not None), default=None)
            rows.append({"eta": eta, "q": q, "reached": best[q]})
        step()
    return rows


def lower_bounds(
    sampler: Sampler, qs: Sequence[float], alpha: float, fresh: int = FRESH
) -> dict[float, int | None]:
    """Lower bounds of the quantiles of its counts, all together with probability 1-alpha.

    From `fresh` draws that nothing else is made of. None where they are too few.
    """
    draws = range(_MEASURE, _MEASURE + fresh)
    counts = sampler.counts(draws, purpose=WEIGHTS_ATTACK).tolist()
    return {q: bounds.quantile_lower(counts, q, alpha / len(qs)) for q in qs}


def shift(sampler: Sampler, direction: Tensor, eta: float) -> Tensor:
    """The shift v, float32 [D], of length |v / scale|_2 just below eta along a unit vector."""
    step = eta * _INSIDE * direction
    return step if sampler.scale is None else step * sampler.scale


def _found(
    sampler: Sampler,
    eta: float,
    counted: Mapping[int, int],
    steps: int,
    copies: int,
    selection: int,
    step: Callable[[], None],
) -> Tensor:
    """The direction that gains most at radius eta, a unit vector in u, float32 [D]; or zeros."""
    gradient = _Gradient(sampler, copies)
    here = torch.zeros_like(sampler.weights.base)
    candidates = [here]
    for start in (here, _unit(_score(sampler, counted))):
        u, mean = eta * start, here
        for number in range(steps):
            u = u + eta * _STEP * (1 - number / steps) * _unit(gradient(u))
            u = u * min(1.0, eta / max(float(u.norm()), 1e-30))
            if 2 * number >= steps:
                mean = mean + u
            step()
        candidates.append(_unit(mean))
    numbers = range(_SELECT, _SELECT + selection)  # the same draws for all
    moved = [sampler.moved(shift(sampler, candidate, eta)) for candidate in candidates]
    gains = [int(m.counts(numbers, purpose=WEIGHTS_ATTACK).sum()) for m in moved]
    return candidates[gains.index(max(gains))]


class _Gradient:
    """Path-wise gradient of the smoothed accuracy in u, float32 [D]; fresh copies at each call."""

    def __init__(self, sampler: Sampler, copies: int):
        self.sampler, self.copies, self.drawn = sampler, copies, 0
        self.model = sampler.network().requires_grad_(True)
        self.weights = FlatParameters(self.model)
        self.start = self.weights.base.clone()
        self.public = sampler.public if sampler.config.bn == "reestimated" else None
        if self.public is not None:
            for part in self.model.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.forward = functools.partial(_normalised, part, len(self.public))

    def __call__(self, u: Tensor) -> Tensor:
        sampler, total = self.sampler, torch.zeros_like(u)
        scale = 1.0 if sampler.scale is None else sampler.scale
        self.weights.base.copy_(self.start + scale * u)
        parameters = list(self.model.parameters())
        for draw in range(self.drawn, self.drawn + self.copies):
            self.weights.perturb(
                sampler.config.sigma,
                seed=sampler.seed,
                purpose=WEIGHTS_ATTACK,
                draw=draw,
                scale=sampler.scale,
            )
            # Other pictures for each copy: they vary no less than the copies do.
            rows = epoch_order(len(sampler.data), 0, draw)[:_PICTURES]
            for x, y, _ in batches(sampler.data, sampler.config.batch, rows):
                value = _nearly_right(self._logits(to_input(x)), y)
                total += flattened(torch.autograd.grad(value, parameters, materialize_grads=True))
        self.drawn += self.copies
        return scale * total

    def _logits(self, x: Tensor) -> Tensor:
        if self.public is None:
            return self.model(x)
        return self.model(torch.cat([self.public, x]))[len(self.public) :]


def _nearly_right(logits: Tensor, y: Tensor) -> Tensor:
    """How many are right, smoothly: a sigmoid of the margin, as wide as a part of its size."""
    own = logits.gather(1, y[:, None])
    margin = own - logits.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True)
    size = margin.detach().square().mean().sqrt().clamp_min(1e-12)
    return torch.sigmoid(margin / (_WIDTH * size)).sum()


def _normalised(norm: nn.Module, count: int, x: Tensor) -> Tensor:
    """BatchNorm by the statistics of the first `count` of a batch; the gradient goes through."""
    axes = [0, *range(2, x.ndim)]
    var, mean = torch.var_mean(x[:count], axes, keepdim=True)
    y = (x - mean) * torch.rsqrt(var + norm.eps)
    if not norm.affine:
        return y
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def _score(sampler: Sampler, counted: Mapping[int, int]) -> Tensor:
    """sum of (count - mean) z, float32 [D]: no forward pass, the noise is made again."""
    weights = FlatParameters(copy.deepcopy(sampler.model))
    weights.base.zero_()
    total = torch.zeros_like(weights.base)
    mean = sum(counted.values()) / max(1, len(counted))
    for draw in sorted(counted):
        weights.perturb(1.0, seed=sampler.seed, purpose=WEIGHTS_CERTIFY, draw=draw)
        total += (counted[draw] - mean) * weights.live
    inside = [torch.ones_like(p) for p in sampler.model.parameters()]
    return total * flattened(inside)  # not in the padding


def _unit(vector: Tensor) -> Tensor:
    """Of length 1; 0 stays 0."""
    return F.normalize(vector.double(), dim=0).float()
