"""All parameters of a network in one buffer: one launch of `weight_noise` perturbs them all."""

import torch
from torch import nn

from fastue.ops import weight_noise

BLOCK = 64  # each parameter is padded to a multiple of this (see fastue.ops.weight_noise)


class FlatParameters:
    """Makes the parameters of `model` views into `live`, float32 [D].


    `base` holds the unperturbed values: `perturb` writes base + sigma*z into `live`, `restore`
    takes the noise away without a rounding error, `commit` makes the present values the base.
    Element order is that of the contiguous tensors in `model.parameters()`. `count` is the number
    of parameters without padding. Raises ValueError for parameters that are not float32.
    """

    def __init__(self, model: nn.Module):
        parameters = list(model.parameters())
        if not parameters or any(p.dtype != torch.float32 for p in parameters):
            raise ValueError("weight noise needs a model with float32 parameters")
        blocks_of = [-(-p.numel() // BLOCK) for p in parameters]
        device = parameters[0].device
        self.count = sum(p.numel() for p in parameters)
        self.live = torch.zeros(BLOCK * sum(blocks_of), device=device)
        # A block's entry: which parameter it is of, and its number within it.
        table = [torch.arange(blocks) + (number << 32) for number, blocks in enumerate(blocks_of)]
        self.table = torch.cat(table).to(device)
        start = 0
        for parameter, blocks in zip(parameters, blocks_of, strict=True):
            view = self.live[start : start + parameter.numel()].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            start += BLOCK * blocks
        self.base = self.live.clone()

    def perturb(self, sigma: float, *, seed: int, purpose: int, draw: int) -> None:
        """live = base + sigma * N(0, 1): a pure function of (base, sigma, seed, purpose, draw)."""
        draws = torch.tensor([draw], device=self.live.device)
        weight_noise(
            self.base,
            self.table,
            draws,
            sigma=sigma,
            seed=seed,
            purpose=purpose,
            out=self.live.unsqueeze(0),
        )

    def restore(self) -> None:
        self.live.copy_(self.base)

    def commit(self) -> None:
        self.base.copy_(self.live)
