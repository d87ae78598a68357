"""All parameters of a network in one buffer: one launch of `weight_noise` perturbs them all."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastue.ops import weight_noise

BLOCK = 64  # each parameter is padded to a multiple of this (see fastue.ops.weight_noise)


def flattened(tensors: Sequence[Tensor], padding: float = 0.0) -> Tensor:
    """Tensors of the shapes of a network's parameters, one after another: float32 [D].

    The layout of FlatParameters; what pads each to a multiple of BLOCK elements is `padding`.
    """
    parts = []
    for tensor in tensors:
        flat = tensor.detach().reshape(-1).float()
        parts += [flat, flat.new_full((-len(flat) % BLOCK,), padding)]
    return torch.cat(parts)


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
        self.live = flattened(parameters)
        self._zero: Tensor | None = None
        # A block's entry: which parameter it is of, and its number within it.
        table = [torch.arange(blocks) + (number << 32) for number, blocks in enumerate(blocks_of)]
        self.table = torch.cat(table).to(device)
        start = 0
        for parameter, blocks in zip(parameters, blocks_of, strict=True):
            view = self.live[start : start + parameter.numel()].view(parameter.shape)
            parameter.data = view
            start += BLOCK * blocks
        self.base = self.live.clone()

    def perturb(
        self, sigma: float, *, seed: int, purpose: int, draw: int, scale: Tensor | None = None
    ) -> None:
        """live = base + sigma * scale * N(0, 1); scale float32 [D], none: 1.

        A pure function of (base, sigma, scale, seed, purpose, draw); seed in [0, 2^64).
        """
        base = self.base
        if scale is not None:
            base = self._zero = torch.zeros_like(base) if self._zero is None else self._zero
        weight_noise(
            base,
            self.table,
            torch.full((1,), draw, device=self.live.device),  # a tensor of Python's waits for a GPU
            sigma=sigma,
            seed=(seed + (1 << 63)) % (1 << 64) - (1 << 63),  # the op's 64 bits have a sign
            purpose=purpose,
            out=self.live.unsqueeze(0),
        )
        if scale is not None:
            torch.addcmul(self.base, scale, self.live, out=self.live)

    def restore(self) -> None:
        self.live.copy_(self.base)

    def commit(self) -> None:
        self.base.copy_(self.live)
