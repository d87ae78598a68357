"""Time K copies of a small network in one launch: `python -m bench.grouped [--arch cnn-w8]`.

The convolutions of K copies of a CNN, BatchNorm folded, as one convolution each: the first with K
times the filters, for all copies see the same pictures, the others in K groups; the heads as one
batched product. `channels_last` and `contiguous` are the layouts; "one by one" is what a core does
in fastue.certificates.smoothing, and one core does all of this. Before anything is timed the logits
of all ways must agree. The ways take turns; rows, milliseconds a copy, are appended to
bench/results/grouped-<device>.csv.
"""

import argparse
import os
import sys
import time

import torch

from bench.ops import facts, quantiles, write
from fastue import models
from fastue.core.heap import freed_memory_kept
from fastue.models.frozen import FrozenCopy

FIELDS = (
    "arch", "pictures", "copies", "way", "rounds", "p50_ms", "cpu_ms", "times_one_by_one",
    "device", "threads", "load", "torch", "triton", "fastue", "commit", "time",
)  # fmt: skip


def grouped(networks: list, layout: torch.memory_format):
    """One function for the logits [K, B, classes] of K networks of pictures [B, C, H, W]."""
    layers = []
    for place in range(len(networks[0].features)):
        parts = [network.features[place][0] for network in networks]
        stride, padding, dilation, _ = parts[0].settings
        weight = torch.cat([part.weight for part in parts]).contiguous(memory_format=layout)
        bias = torch.cat([part.bias for part in parts])
        groups = len(networks) if place else 1
        layers.append((weight, bias, padding, stride, dilation, groups, "relu", [], ""))
    heads = torch.stack([network.head.weight.T for network in networks])
    biases = torch.stack([network.head.bias[None] for network in networks])

    def logits(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=layout)
        for layer in layers:
            x = torch.ops.mkldnn._convolution_pointwise(x, *layer)
        features = x.mean((2, 3)).view(len(x), len(networks), -1).transpose(0, 1)
        return torch.baddbmm(biases, features, heads)

    return logits


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.grouped", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arch", default="cnn-w8", help="a cnn of any width")
    parser.add_argument("--pictures", type=int, default=256, help="of 32 x 32, in one batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = facts(torch.device("cpu"))
    x = torch.rand(given.pictures, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    rows = []
    for copies in (1, 2, 4, 8):
        networks = [
            FrozenCopy(models.build(given.arch, 10, seed=seed).eval(), "float32").module
            for seed in range(copies)
        ]
        ways = {
            "one by one": lambda x, n=networks: torch.stack([network(x) for network in n]),
            "channels_last": grouped(networks, torch.channels_last),
            "contiguous": grouped(networks, torch.contiguous_format),
        }
        wanted = ways["one by one"](x)
        for name, way in ways.items():
            if not torch.allclose(way(x), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
                print(f"wrong results, nothing is timed: {copies} {name}")
                return 1
        wall, cores = {name: [] for name in ways}, {name: [] for name in ways}
        with freed_memory_kept():
            for _ in range(given.rounds):
                for name, way in ways.items():
                    start, busy = time.perf_counter(), time.process_time()
                    way(x)
                    wall[name].append(1e3 * (time.perf_counter() - start) / copies)
                    cores[name].append(1e3 * (time.process_time() - busy) / copies)
        cpu = {name: quantiles(found)[1] for name, found in cores.items()}
        for name in ways:
            rows.append({
                "arch": given.arch, "pictures": given.pictures, "copies": copies, "way": name, "rounds": given.rounds,
                "p50_ms": f"{quantiles(wall[name])[1]:.2f}", "cpu_ms": f"{cpu[name]:.2f}",
                "times_one_by_one": f"{cpu['one by one'] / cpu[name]:.2f}",
                "load": f"{os.getloadavg()[0]:.1f}", **about,
            })  # fmt: skip
            print(*(f"{key} {rows[-1][key]}" for key in FIELDS[:8]), sep="  ", flush=True)
    if not given.dry_run:
        print(write(rows, f"grouped-{about['device']}", FIELDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
