"""Time the two ways of a small bf16 convolution on the CPU: `python -m bench.conv [--batch 128]`.

fastue.models.conv takes the matrix product where `_narrow` says so; this prints why: forward with ReLU, and the
gradients of input and weights, of 3x3 convolutions of a ResNet-18 at 32 and 224 pixels, 512 to 64 channels.
"""

import argparse
import os
import time
from unittest import mock

import torch
from torch import nn

from bench.ops import facts, quantiles
from fastue.core.heap import keep_freed_memory
from fastue.models import conv as convolution

SHAPES = (  # channels in, out, side, stride
    (512, 512, 4, 1), (256, 512, 8, 2), (128, 256, 16, 2), (256, 256, 8, 1), (64, 128, 16, 2), (128, 128, 8, 2),
    (256, 512, 14, 2), (512, 512, 7, 1),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.conv", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    keep_freed_memory()
    print("  ".join(f"{k} {v}" for k, v in facts(torch.device("cpu")).items()), f" load {os.getloadavg()[0]:.1f}")
    chosen = convolution._narrow
    for cin, cout, side, stride in SHAPES:
        conv = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        layer = convolution.FoldedConv(conv, relu=True).to(torch.bfloat16, memory_format=torch.channels_last)
        x = torch.rand(given.batch, cin, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        layer.weight.requires_grad_()
        times: dict[tuple, list[float]] = {}
        for _ in range(given.rounds):
            for product in (False, True):
                with mock.patch.object(convolution, "_narrow", lambda *a, product=product: product):
                    start = time.perf_counter()
                    y = layer(x)
                    middle = time.perf_counter()
                    torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
                    end = time.perf_counter()
                    torch.autograd.grad(y, layer.weight, torch.ones_like(y))
                    last = time.perf_counter()
                times.setdefault(("forward", product), []).append(middle - start)
                times.setdefault(("input", product), []).append(end - middle)
                times.setdefault(("weights", product), []).append(last - end)
        words = [
            f"{way} {1e3 * slow:6.1f} ms oneDNN, {1e3 * fast:6.1f} ms product, {slow / fast:.2f}x"
            for way in ("forward", "input", "weights")
            for slow, fast in [[quantiles(times[way, product])[1] for product in (False, True)]]
        ]
        taken = "product" if chosen(x, layer.weight, layer.settings) else "oneDNN"
        print(f"{cin:4d} -> {cout:4d}, {side:2d} px, stride {stride}:", "; ".join(words), f"; taken: {taken}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
