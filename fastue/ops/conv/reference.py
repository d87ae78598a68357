"""conv in plain PyTorch: the definition."""

import torch
from torch.nn import functional as F


def conv(x, weight, bias, gate, residual, out, stride, padding, transposed, relu):
    """out = relu(conv(x) + bias + residual), or the gradient of a convolution's input; see
    fastue.ops.conv."""
    if gate is not None:
        x = torch.where(gate <= 0, 0.0, x).to(x.dtype)
    if transposed:
        reached = [
            (n - 1) * stride - 2 * padding + k
            for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)
        ]
        # rows and columns no window ends in
        missing = [n - r for n, r in zip(out.shape[2:], reached, strict=True)]
        y = F.conv_transpose2d(x, weight, None, stride, padding, missing)
    else:
        y = F.conv2d(x, weight, None, stride, padding)
    if bias is not None:
        y = y + bias[:, None, None]
    if residual is not None:
        y = y + residual
    out.copy_(F.relu(y) if relu else y)
