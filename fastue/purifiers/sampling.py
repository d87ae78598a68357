"""What is sampled with a purifier: noise put on a picture and taken off again, step by step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastue.ops.diffusion_step import diffusion_step
from fastue.purifiers.schedule import alpha_bar, posterior, times

BATCH = 64  # of the network, always: the last one is filled up


@dataclass(frozen=True)
class Sampler:
    """`iterations` times: noise to time start - 1, then `steps` steps back to a picture.

    pull is the fraction of the way from the predicted picture to the given one that each step goes,
    in [0, 1], for each picture on its own.
    """

    start: int
    steps: int
    iterations: int = 1
    pull: float = 0.0


SAMPLERS = {
    "oneshot": Sampler(start=61, steps=1),
    "avatar": Sampler(start=100, steps=10),
    "jcdp": Sampler(start=20, steps=20, iterations=4, pull=0.05),
}


@torch.no_grad()
def purify(
    net: nn.Module,
    images: Tensor,
    ids: Tensor,
    sampler: Sampler,
    *,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """images uint8 [N,C,H,W] -> purified, uint8 [N,C,H,W], on the device of `images`.

    net   (x float32 [B,C,H,W] in [-1,1] units, t int64 [B]) -> noise, on the device of `images`
    ids   int64 [N], stable: the noise of a picture depends on (seed, id, iteration, time) alone
    A picture comes out the same in any company, since the network always sees BATCH at a time.
    """
    out = torch.empty_like(images)
    for begin in range(0, len(images), BATCH):
        y = images[begin : begin + BATCH].contiguous()
        count = len(y)
        y = torch.cat([y, y.new_zeros(BATCH - count, *y.shape[1:])])
        own = torch.cat([ids[begin : begin + count], ids.new_zeros(BATCH - count)])
        x = _block(net, y, own, sampler, seed)
        out[begin : begin + count] = ((x[:count] + 1) * 127.5).round().clamp(0, 255).byte()
        progress(begin + count, len(images))
    return out


def _block(net: nn.Module, y: Tensor, ids: Tensor, sampler: Sampler, seed: int) -> Tensor:
    x = y.float() / 127.5 - 1
    plan = times(sampler.start, sampler.steps)
    for iteration in range(sampler.iterations):
        key = {"seed": seed, "iteration": iteration}
        bar = alpha_bar(plan[0])
        diffusion_step(x, None, ids, cx=bar**0.5, sigma=(1 - bar) ** 0.5, t=plan[0], **key)
        for t, to in zip(plan, [*plan[1:], -1], strict=True):
            c0, cx, sigma = posterior(t, to)
            diffusion_step(
                x, net(x, torch.full_like(ids, t)), ids, c0=c0, cx=cx, sigma=sigma, t=t,
                alpha_bar=alpha_bar(t), y=y if sampler.pull else None, pull=sampler.pull, **key,
            )  # fmt: skip
    return x
