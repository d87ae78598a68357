"""What people run today, in our own words: the chains of eager PyTorch calls that the ops replace.

Each takes an op's benchmark arguments, does once what such a loop does once, and returns the step
that is timed.
"""

from collections.abc import Callable

import torch


def linf_step(
    noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std
) -> Callable[[], torch.Tensor]:
    """The update in the public EMN code: eight calls, on the picture, not the noise; makes the next
    input too."""
    picture = x.float() / 255
    rows = noise[index].float() * scale
    state = {"p": (picture + rows).clamp(0, 1)}
    direction = 1 if ascend else -1

    def run():
        eta = step * grad.sign() * direction
        p = state["p"] + eta
        eta = torch.clamp(p - picture, -eps, eps)
        state["p"] = torch.clamp(picture + eta, 0, 1)
        return eta

    return run


def apply_noise(
    x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip
) -> Callable[[], torch.Tensor]:
    """Clone, add the rows of the bank, clamp, normalise, cast; crop and flip as one gather where
    asked for."""
    picture = x.float() / 255
    bank = noise.float() * scale
    shape = (1, x.shape[1], 1, 1)
    means, stds = torch.tensor(mean or [0.0]).view(shape), torch.tensor(std or [1.0]).view(shape)
    b, _, h, w = x.shape
    g = torch.Generator().manual_seed(seed)

    def run():
        p = picture.clone()
        p += bank[index]
        p = torch.clamp(p, 0, 1)
        if ids is not None:
            p = torch.nn.functional.pad(p, (pad, pad, pad, pad))
            top, left = torch.randint(0, 2 * pad + 1, (2, b), generator=g)
            columns = torch.arange(w).expand(b, w)
            columns = (
                torch.where(torch.rand(b, 1, generator=g) < 0.5, columns.flip(1), columns)
                + left[:, None]
            )
            lines = torch.arange(h) + top[:, None]
            batch = torch.arange(b)[:, None, None]
            p = p[batch, :, lines[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return ((p - means) / stds).to(out.dtype)

    return run


def class_step(noise, grad, x, y, step, eps, ascend) -> Callable[[], torch.Tensor]:
    """The eager update, then a mean for each class: here with one index_add, where public code
    loops over samples."""
    picture = x.float() / 255
    direction = 1 if ascend else -1
    count = torch.bincount(y, minlength=len(noise)).clamp(min=1).view(-1, 1, 1, 1)

    def run():
        eta = step * grad.sign() * direction
        p = torch.clamp(picture + noise[y], 0, 1) + eta
        eta = torch.clamp(p - picture, -eps, eps)
        mean = torch.zeros_like(noise).index_add_(0, y, eta) / count
        return torch.clamp(mean, -eps, eps)

    return run


def weight_noise(base, table, draws, out, sigma, seed, purpose) -> Callable[[], torch.Tensor]:
    """The published loop, for each draw and each parameter: randn, scale, add before the
    evaluation, subtract after."""
    parameters = base.clone().split((64 * torch.bincount(table >> 32)).tolist())

    def run():
        for _ in draws:
            noises = [torch.randn_like(p) * sigma for p in parameters]
            for p, noise in zip(parameters, noises, strict=True):
                p.add_(noise)
            for p, noise in zip(parameters, noises, strict=True):
                p.sub_(noise)
        return parameters[0]

    return run


def diffusion_step(
    x, eps, y, ids, alpha_bar, c0, cx, pull, noisy, sigma
) -> Callable[[], torch.Tensor]:
    """What a careful engineer writes: the protected pictures in floats once and for all, two
    operations in one call and in place where torch has that; a randn for each noise, which knows no
    ids."""
    a, b = (1 / alpha_bar) ** 0.5, (1 / alpha_bar - 1) ** 0.5
    aim = None if y is None else y.float() / 127.5 - 1

    def normal():  # in the order of memory: torch fills a channels_last tensor far more slowly
        return torch.randn(x.numel()).as_strided(x.size(), x.stride())

    def run():
        if eps is None:
            mean = cx * x
        else:
            x0 = (a * x).sub_(eps, alpha=b).clamp_(-1, 1)
            if aim is not None and not noisy:
                x0.lerp_(aim, pull)
            mean = x0.mul_(c0).add_(x, alpha=cx)
        if noisy:
            copy = normal().mul_((1 - alpha_bar) ** 0.5).add_(aim, alpha=alpha_bar**0.5)
            mean.add_(copy.sub_(x), alpha=pull)
        return mean.add_(normal(), alpha=sigma)

    return run


def count_correct(logits, y, counts, slot) -> Callable[[], torch.Tensor]:
    """Find the classes, compare, and fetch the number."""
    right = {"count": 0}

    def run():
        right["count"] += (torch.max(logits, 1).indices == y).sum().item()
        return logits

    return run


def conv(
    x, weight, bias, gate, residual, out, stride, padding, transposed, relu
) -> Callable[[], torch.Tensor]:
    """torch's own convolution, oneDNN's, with its ReLU, or what autograd calls for the gradient of
    its input."""
    sizes = (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), 1

    def run():
        if transposed:
            return torch.ops.aten.convolution_backward(
                x, out, weight, None, *sizes, (True, False, False)
            )[0]
        y = torch.nn.functional.conv2d(x, weight, None, stride, padding)
        return torch.relu_(y) if relu else y

    return run


def conv3x3(x, weight, bias, gate, residual, out, transposed, relu) -> Callable[[], torch.Tensor]:
    return conv(x, weight, bias, gate, residual, out, 1, 1, transposed, relu)


def conv_weights(x, grad, out, stride, padding) -> Callable[[], torch.Tensor]:
    """What autograd calls, oneDNN's."""
    weight = out.to(x.dtype, memory_format=torch.channels_last)
    sizes = (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), 1
    return lambda: torch.ops.aten.convolution_backward(
        grad, x, weight, None, *sizes, (False, True, False)
    )[1]
