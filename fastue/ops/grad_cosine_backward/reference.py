"""grad_cosine_backward in plain PyTorch: the definition."""

import torch


def grad_cosine_backward(g, h, grad, out, targets):
    """out = alpha g + beta (h - g), the gradient of grad_cosine; see
    fastue.ops.grad_cosine_backward."""
    n, q, m = grad
    alpha, beta = (2 * n - q, q - 2 * m) if targets else (q, 2 * m)
    for target, source, to in zip(g, h, out, strict=True):
        target, source = (t if t.dtype == torch.float64 else t.float() for t in (target, source))
        v = alpha * target.double() + beta * (source - target).double()
        to.copy_(v.to(target.dtype))
