"""The definition: a loop over the samples, gradients of the size of the parameters, double
backward."""

import torch
from torch import Tensor, nn


def distances(
    model: nn.Module, loss, x: Tensor, x2: Tensor, y: Tensor, kind="cosine", layers=False
) -> Tensor:
    """[B], differentiable in x2."""
    values = []
    for i in range(len(x)):
        row = slice(i, i + 1)
        g, h = gradients(model, loss, x[row], y[row]), gradients(model, loss, x2[row], y[row])
        owners = [module for module in model.modules() if own(module)]
        groups = [own(module) for module in owners] if layers else [parameters(model)]
        each = []
        for group in groups:
            a = torch.cat([g[p].flatten() for p in group]).detach()
            b = torch.cat([h[p].flatten() for p in group])
            if kind == "l2":
                each.append(((b - a) ** 2).sum())
            else:  # the unit vectors' difference: 1 - cos keeps its digits
                each.append((a / a.norm() - b / b.norm()).square().sum() / 2)
        values.append(torch.stack(each).mean())
    return torch.stack(values)


def gradients(model: nn.Module, loss, x: Tensor, y: Tensor) -> dict:
    wanted = parameters(model)
    found = torch.autograd.grad(
        loss(model(x), y).sum(), wanted, create_graph=True, materialize_grads=True
    )
    return dict(zip(wanted, found, strict=True))


def parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def own(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if p.requires_grad]
