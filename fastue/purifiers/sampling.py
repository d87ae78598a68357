"""What is sampled with a purifier: noise put on a picture and taken off again, step by step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastue.ops.diffusion_step import diffusion_step
from fastue.purifiers.perceptual import Distance, uphill
from fastue.purifiers.schedule import alpha_bar, beta, posterior, times

BATCH = 64  # of the network, always: the last one is filled up


@dataclass(frozen=True)
class Sampler:
    """`iterations` times: noise to time start - 1, then `steps` steps back to a picture.

    pull    the fraction of the way from the predicted picture to the given one that each step goes,
            in [0, 1], for each picture on its own
    push    likewise, of the part of the way that lies in the direction in which the two come to
            look alike; needs a Distance
    batch   pictures that are done together. What comes out depends on it only in a compat form.
    compat  "jcdp2023": the released sampler to the letter, see _released
    """

    start: int
    steps: int
    iterations: int = 1
    pull: float = 0.0
    push: float = 0.0
    batch: int = BATCH
    compat: str | None = None

    @property
    def looks(self) -> bool:
        """Whether it needs a Distance."""
        return self.push > 0 or self.compat is not None


SAMPLERS = {
    "oneshot": Sampler(start=61, steps=1),
    "avatar": Sampler(start=100, steps=10),
    "jcdp": Sampler(start=20, steps=20, iterations=4, pull=0.05, push=0.05),
}
COMPAT = {"jcdp2023": Sampler(start=20, steps=20, iterations=4, batch=500, compat="jcdp2023")}


@torch.no_grad()
def purify(
    net: nn.Module,
    images: Tensor,
    ids: Tensor,
    sampler: Sampler,
    *,
    seed: int,
    distance: Distance | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """images uint8 [N,C,H,W] -> purified, uint8 [N,C,H,W], on the device of `images`.

    net   (x float32 [B,C,H,W] in [-1,1] units, t int64 [B]) -> noise, on the device of `images`
    ids   int64 [N], stable: the noise of a picture depends on (seed, id, iteration, time) alone
    distance  for samplers with `push` or `compat`
    A picture comes out the same in any company, since the network always sees BATCH at a time; but
    for compat, where the guidance is averaged over those of its `batch`.
    """
    out = torch.empty_like(images)
    ends = [*range(0, len(images), sampler.batch), len(images)]
    for begin, end in zip(ends, ends[1:], strict=False):
        for first in range(begin, end, BATCH):
            y = images[first : min(first + BATCH, end)].contiguous()
            count = len(y)
            y = torch.cat([y, y.new_zeros(BATCH - count, *y.shape[1:])])
            own = torch.cat([ids[first : first + count], ids.new_zeros(BATCH - count)])
            if sampler.compat:
                x = _released(net, y, own, sampler, seed, distance, end - begin)
                levels = ((x + 1) * 127.5).clamp(0, 255)  # truncated, as released
            else:
                x = _block(net, y, own, sampler, seed, distance)
                levels = ((x + 1) * 127.5).round().clamp(0, 255)
            out[first : first + count] = levels[:count].byte()
            progress(first + count, len(images))
    return out


def _block(
    net: nn.Module, y: Tensor, ids: Tensor, sampler: Sampler, seed: int, distance: Distance | None
) -> Tensor:
    aim = y.float() / 127.5 - 1
    x = aim.clone()
    plan = times(sampler.start, sampler.steps)
    for iteration in range(sampler.iterations):
        key = {"seed": seed, "iteration": iteration}
        bar = alpha_bar(plan[0])
        diffusion_step(x, None, ids, cx=bar**0.5, sigma=(1 - bar) ** 0.5, t=plan[0], **key)
        for t, to in zip(plan, [*plan[1:], -1], strict=True):
            c0, cx, sigma = posterior(t, to)
            bar, eps = alpha_bar(t), net(x, torch.full_like(ids, t))
            grad = _nearer(distance, x, eps, aim, bar) if sampler.push else None
            diffusion_step(
                x, eps, ids, c0=c0, cx=cx, sigma=sigma, t=t, alpha_bar=bar,
                y=y if sampler.pull else None, pull=sampler.pull,
                grad=grad, push=sampler.push * c0, **key,
            )  # fmt: skip
    return x


def _nearer(distance: Distance, x: Tensor, eps: Tensor, aim: Tensor, bar: float) -> Tensor:
    """The way from the predicted picture to `aim`, projected on the one to look like it."""
    x0 = ((x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)).clamp(-1, 1)
    grad = uphill(distance, x0, aim)
    along = ((aim - x0) * grad).sum((1, 2, 3), keepdim=True).clamp_min(0)
    return grad * (along / grad.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-30))


SCALE, LEVELS, LATE = 70_000, 8, 10  # guide_scale; ptb; the last time that looks guide


def _released(
    net: nn.Module, y: Tensor, ids: Tensor, sampler: Sampler, seed: int, distance: Distance,
    together: int,
) -> Tensor:  # fmt: skip
    """The sampler of the code released with JCDP: noise to one time more than the first step takes
    off; variance beta; x itself compared with copies of the protected picture that are noised
    afresh, pixel by pixel in the first steps and by looks in the last eleven; both averaged over
    the `together` pictures of a batch, so that guidance is weaker the larger the batch.
    """
    aim = y.float() / 127.5 - 1
    x = aim.clone()
    values = aim[0].numel()
    for iteration in range(sampler.iterations):
        key = {"seed": seed, "iteration": iteration}
        bar = alpha_bar(sampler.start)
        diffusion_step(x, None, ids, cx=bar**0.5, sigma=(1 - bar) ** 0.5, t=sampler.start, **key)
        for t in range(sampler.start - 1, -1, -1):
            bar, variance = alpha_bar(t), beta(t) if t else posterior(1, 0)[2] ** 2
            scale = released_scale(t) * variance / together
            c0, cx, _ = posterior(t, t - 1)
            guide = {"y": y, "noisy": True, "pull": 2 * scale / values}
            if t <= LATE:
                copy = aim.clone()
                diffusion_step(copy, None, ids, cx=bar**0.5, sigma=(1 - bar) ** 0.5, t=t, **key)
                guide = {"grad": uphill(distance, x, copy), "push": scale}
            diffusion_step(
                x, net(x, torch.full_like(ids, t)), ids, c0=c0, cx=cx, alpha_bar=bar,
                sigma=variance**0.5 if t else 0.0, t=t, **guide, **key,
            )  # fmt: skip
    return x


def released_scale(t: int) -> float:
    """What the released code multiplies its gradients with at time t, before the variance."""
    bar = alpha_bar(t)
    return math.sqrt((1 - bar) / bar) / (LEVELS * 2 / 255 / 3 / SCALE)
