"""Gradients that are there once: a second derivative is an error, never a wrong number."""

from collections.abc import Sequence

import torch


def once(op: str, gradients: list[torch.Tensor], of: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a backward returns: the gradients, which depend on the tensors `of`. To differentiate
    them raises RuntimeError. (torch's once_differentiable takes no lists, and sees only whether the
    incoming gradient is to be differentiated.)"""
    if not (torch.is_grad_enabled() and any([t.requires_grad for t in of])):
        return gradients
    return list(_Once.apply(op, len(gradients), *gradients, *of))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, count, *tensors):
        ctx.op = op
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(f"{ctx.op} is differentiable once: its gradient has no derivative")
