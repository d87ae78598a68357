"""One function, many networks: what a certificate says of each of them.

`python -m bench.rescaling SURROGATE TEST` multiplies the filters in front of each BatchNorm by 0.1,
0.3, 3 and by random factors, and their statistics with them: the network stays what it is. Prints
its accuracy and the certificate (q = 0.5, eta = 0.4 sigma) of each, in the raw and in the canonical
scale, from the same noise.
"""

import argparse
import copy
import sys

import torch
from torch import nn

from fastue.certificates.anytime import AnytimeBounds
from fastue.certificates.bounds import grid_levels
from fastue.certificates.claim import SCALES, Smoothing, Training
from fastue.certificates.smoothing import Sampler
from fastue.certificates.text import at_most
from fastue.commands.certify import prepare


@torch.no_grad()
def rescaled(model: nn.Module, factor: float | None) -> nn.Module:
    """A copy with the filters of each Conv2d before a BatchNorm2d in a Sequential times `factor`
    (none: random ones), and the same logits."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for part in model.modules():
        if not (isinstance(part, nn.Sequential) and len(part) > 1):
            continue
        conv, norm = part[0], part[1]
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        filters = torch.full([conv.out_channels], factor or 1.0)
        if factor is None:
            filters = torch.exp(2 * torch.rand(conv.out_channels, generator=generator) - 1)
        conv.weight *= filters[:, None, None, None]
        if conv.bias is not None:
            conv.bias *= filters
        norm.running_mean *= filters
        norm.running_var.copy_((norm.running_var + norm.eps) * filters**2 - norm.eps)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rescaling", description=__doc__.splitlines()[0]
    )
    parser.add_argument("surrogate", help="what fastue protect wrote, or a network's file")
    parser.add_argument("test", help="clean test pictures")
    parser.add_argument("--sigma", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    subject = prepare(
        surrogate=given.surrogate,
        clean=given.test,
        training=Training(),
        device=torch.device("cpu"),
    )
    print(f"{'filters times':<14} {'noiseless':>9} " + " ".join(f"{s:>10}" for s in SCALES))
    for name, factor in [("1", 1.0), ("0.1", 0.1), ("0.3", 0.3), ("3", 3.0), ("random", None)]:
        model, cells = rescaled(subject.model, factor), []
        for scale in SCALES:
            sampler = Sampler(model, subject.data, Smoothing(given.sigma, seed=0, scale=scale))
            total, sigma = len(sampler.data), sampler.config.sigma
            anytime = AnytimeBounds(grid_levels(0.5, 0.4 * sigma, sigma), total, 0.01)
            anytime.update(sampler.counts(range(given.draws)).tolist())
            cells.append(f"{at_most(anytime.bounds[0], total):>10}")
        noiseless = 100 * sampler.noiseless() / total
        print(f"{name:<14} {noiseless:9.2f} " + " ".join(cells), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
