"""Noise that knows nothing: what a protection has to do better than."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastue.data.budget import Budget
from fastue.data.keyed import keyed_generator


def random_noise(shape: Sequence[int], rows: int, budget: Budget, seed: int, per: str) -> Tensor:
    """Random noise that uses up `budget`, int8 [rows, *shape] in 1/255; `shape` is (C, H, W).

    linf: uniform in [-levels, levels], the control of the EMN paper (section 4). l2: a random
    direction of the full length. A function of (seed, per, row) only, where `per` is "sample" or
    "class".
    """
    generator = keyed_generator(seed, f"random-{per}")
    if budget.norm == "linf":
        draw = generator.uniform(-budget.levels, budget.levels, size=(rows, *shape)).round()
        return torch.from_numpy(draw).to(torch.int8)
    direction = torch.from_numpy(generator.standard_normal((rows, *shape)))
    length = direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return budget.quantise(direction * (budget.eps / length))
