"""conv_weights in plain PyTorch: the definition."""

import torch


def conv_weights(x, grad, out, stride, padding):
    """out = gradient of the weight of conv2d(x, weight, None, stride, padding); see
    fastue.ops.conv_weights."""
    x, grad = x.to(out.dtype), grad.to(out.dtype)
    out.copy_(torch.nn.grad.conv2d_weight(x, out.shape, grad, stride, padding))
