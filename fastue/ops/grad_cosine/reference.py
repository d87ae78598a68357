"""grad_cosine in plain PyTorch: the definition."""

import torch


def grad_cosine(g, h):
    """(|g|^2, <g, h - g>, |h - g|^2) over all tensors; see fastue.ops.grad_cosine."""
    device = g[0].device if g else None
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    for target, source in zip(g, h, strict=True):
        target, source = (t if t.dtype == torch.float64 else t.float() for t in (target, source))
        difference = (source - target).double()
        target = target.double()
        sums += torch.stack(
            [(target * target).sum(), (target * difference).sum(), (difference * difference).sum()]
        )
    return sums
