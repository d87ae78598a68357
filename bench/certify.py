"""Time noisy copies of a network: `python -m bench.certify [--arch resnet18] [--peer pue=DIR]`.

A draw is: perturb all weights, classify all test pictures, count. The sides take turns on the same
network:

  published   the loop of the public PUE code in our words: randn, scale, add, subtract a parameter;
              PIL decode and ToTensor of every picture at every draw; autograd on; a Python loop
              over the predicted classes; the network as the public one, with activations that are
              not in place
  peer        the public repository's own certify.py, from a checkout you name, on the CPU, around
              the same network
  fastue      fastue.certificates.smoothing.Sampler at its own batch, with the heap as the command
              sets it: fp32, bf16-folded, and both under torch.compile with --compile

How far a side is from what the machine can do: its rate over the network's multiplications is
printed beside that of a large matrix product in the same arithmetic, timed in the same rounds.

Before anything is timed, the first draws of all float32 sides are made from the same noise and must
give the same counts, picture by picture argmax for argmax. Rows are appended to
bench/results/certify-<device>.csv.
"""

import argparse
import contextlib
import copy
import os
import sys
import time
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from bench.ops import facts, quantiles, write
from fastue.certificates.smoothing import Sampler, Smoothing
from fastue.core.heap import freed_memory_kept
from fastue.data.dataset import ImageDataset
from fastue.data.sources import open_dataset
from fastue.models.flat import FlatParameters
from fastue.models.training import resolve_precision
from fastue.ops import WEIGHTS_CERTIFY
from fastue.victims.train import VictimConfig, fit

FIELDS = (
    "side", "arch", "arithmetic", "compiled", "pictures", "sigma", "draws", "rounds", "p50_s", "min_s", "max_s",
    "times_published", "GFLOP_per_s", "matmul_GFLOP_per_s",
    "counts", "device", "threads", "load", "torch", "triton", "fastue", "commit", "time",
)  # fmt: skip


class Decoded(Dataset):
    """Test pictures as torchvision gives them: an array, made a PIL picture and a float tensor at
    every access."""

    def __init__(self, data: ImageDataset):
        self.arrays = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        picture = np.array(Image.fromarray(self.arrays[i]), copy=True)
        return torch.from_numpy(picture).permute(2, 0, 1).contiguous().to(torch.float32).div(
            255
        ), self.labels[i]


def out_of_place(model):
    """A copy whose activations are fresh tensors, as those of the public networks."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False
    return model


def matmul_rate(dtype: torch.dtype, n: int = 2048) -> float:
    """GFLOP/s of one product of n x n matrices, the middle of five."""
    a, b, seconds = torch.rand(n, n).to(dtype), torch.rand(n, n).to(dtype), []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2e-9 * n**3 / quantiles(seconds[1:])[1]


def given_noise(model, seed: int, draw: int):
    """z of fastue's draw, a tensor a parameter: base 0 and sigma 1."""
    noise = copy.deepcopy(model)
    flat = FlatParameters(noise)
    flat.base.zero_()
    flat.perturb(1.0, seed=seed, purpose=WEIGHTS_CERTIFY, draw=draw)
    for p in noise.parameters():
        yield p.detach().clone()


def published(model, loader, sigma, draws, noise=None) -> list[int]:
    """The published loop; `noise(draw)` gives the standard normal tensors instead of randn_like."""
    scores = []
    classes = [0] * 1000
    model.eval()
    for draw in range(draws):
        added = {}
        source = iter(noise(draw)) if noise else None
        for name, p in model.named_parameters():
            z = next(source) if source else torch.randn_like(p.data)
            added[name] = sigma * z
            p.data = p.data + added[name]
        right = 0
        for x, y in loader:
            found = torch.max(model(x), 1)[1]
            right += int((found == y).sum().data.cpu().numpy())
            for k in found:
                classes[k] += 1
        scores.append(right)
        for name, p in model.named_parameters():
            p.data = p.data - added[name]
    return scores


def peer(folder: Path, model, loader, sigma, draws, noise=None) -> list[int]:
    """main() of the public certify.py, its modules around it replaced by what this machine has."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    log = types.SimpleNamespace(info=lambda *words: None)
    meters = types.SimpleNamespace(avg=0.0)
    stubs = {
        "mlconfig": {"register": lambda c: c},
        "util": {
            "count_parameters_in_MB": lambda m: 0.0,
            "load_model": lambda **k: k["model"].load_state_dict(state),
        },
        "dataset": {
            "DatasetGenerator": lambda **k: types.SimpleNamespace(
                getDataLoader=lambda **k: {
                    "train_dataset": loader,
                    "test_dataset": loader,
                }  # fmt: skip
            )
        },
        "madrys": {"MadrysLoss": None},
        "toolbox": {},
        "evaluator": {
            "Evaluator": lambda *a: types.SimpleNamespace(
                eval=lambda epoch, model: None, acc_meters=meters, loss_meters=meters
            )
        },
        "trainer": {"Trainer": None},
        "tqdm": {"tqdm": lambda it: it},
    }
    kept = {name: sys.modules.get(name) for name in stubs}
    argv, cuda, randn_like, printed = sys.argv, torch.Tensor.cuda, torch.randn_like, sys.stdout
    sources = (z for draw in range(draws) for z in noise(draw)) if noise else None
    scores: list[float] = []
    module = types.ModuleType("peer_certify")
    try:
        for name, members in stubs.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(members)
        sys.argv = ["certify.py", "--N", str(draws), "--sigma", str(sigma)]
        exec(
            compile((folder / "certify.py").read_text(), str(folder / "certify.py"), "exec"),
            vars(module),
        )
        module.logger, module.device = log, torch.device("cpu")
        module.config = types.SimpleNamespace(
            model=lambda: model, optimizer=lambda p: None, scheduler=lambda o: None
        )
        module.checkpoint_path_file = ""
        collected = []

        def keep(accuracies, *rest):
            collected[:] = accuracies
            return -1

        module.certify = keep
        torch.Tensor.cuda = lambda self, *a, **k: self
        if sources:
            torch.randn_like = lambda t: next(sources)
        with open(os.devnull, "w") as sys.stdout:
            module.main()
        scores = collected
    finally:
        sys.stdout = printed
        sys.argv, torch.Tensor.cuda, torch.randn_like = argv, cuda, randn_like
        for name, old in kept.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
        with contextlib.suppress(RuntimeError):
            model.load_state_dict(state)
    # it averages over equal batches, sorted
    return [round(score / 100 * len(loader.dataset)) for score in scores]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.certify", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument(
        "--train", default="demo:train", help="what the network is trained on first"
    )
    parser.add_argument("--clean", default="demo:test")
    parser.add_argument(
        "--epochs", type=int, default=4, help="of that training: enough to be above chance"
    )
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument(
        "--batch",
        type=int,
        default=500,
        help="of the published loop, whose default is 512; the pictures divide by it",
    )
    parser.add_argument("--sigma", type=float, default=0.01)
    parser.add_argument("--draws", type=int, default=2, help="noisy copies a side makes in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also under torch.compile")
    parser.add_argument("--peer", metavar="pue=DIR", help="a checkout of the public PUE repository")
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    given = parser.parse_args()
    folder = None
    if given.peer:
        name, _, path = given.peer.partition("=")
        folder = Path(path)
        if name != "pue" or not (folder / "certify.py").exists():
            parser.error("--peer takes pue=DIR where DIR holds the public repository's certify.py")
    train, test = open_dataset(given.train), open_dataset(given.clean)
    count = min(given.pictures, len(test)) // given.batch * given.batch
    if not count:
        parser.error(f"--batch {given.batch}: there are only {len(test)} pictures")
    test = test.subset(
        torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:count]
    )
    about = facts(torch.device("cpu"))
    print("  ".join(f"{k} {v}" for k, v in about.items()), f" load {os.getloadavg()[0]:.1f}")
    config = VictimConfig(arch=given.arch, epochs=given.epochs, precision=resolve_precision("auto"))
    model, curves = fit(train, test, config, seed=0)
    model = model.float().eval()
    print(f"{given.arch}: {curves['accuracy'][-1]:.1f} % on {count} clean pictures", flush=True)
    loader = DataLoader(Decoded(test), batch_size=given.batch)

    samplers = {
        (arithmetic, compiled): Sampler(
            model, test, Smoothing(given.sigma, arithmetic=arithmetic), compile=compiled
        )
        for compiled in ((False, True) if given.compile else (False,))
        for arithmetic in ("fp32", "bf16-folded")
    }

    def noise(draw):
        return given_noise(model, 0, draw)

    plain = out_of_place(model)
    wanted = published(copy.deepcopy(plain), loader, given.sigma, given.draws, noise)
    counts = {key: s.counts(range(given.draws)).tolist() for key, s in samplers.items()}
    print(
        "counts of the same draws: published",
        wanted,
        *(f"{k} {v}" for k, v in counts.items()),
        flush=True,
    )
    red = [
        f"{key}: {found}" for key, found in counts.items() if key[0] == "fp32" and found != wanted
    ]
    if folder and peer(
        folder, copy.deepcopy(plain), loader, given.sigma, given.draws, noise
    ) != sorted(wanted):
        red.append("peer: its counts differ from the published loop's")
    if red:
        print("wrong results, nothing is timed:", *red, sep="\n  ")
        return 1

    sides = {
        ("published", "fp32", False): lambda: published(live, loader, given.sigma, given.draws)
    }
    live = copy.deepcopy(plain)
    if folder:
        sides["peer", "fp32", False] = lambda: peer(folder, live, loader, given.sigma, given.draws)
    for (arithmetic, compiled), sampler in samplers.items():
        sides["fastue", arithmetic, compiled] = lambda s=sampler: s.counts(
            range(given.draws)
        ).tolist()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *test.shape))
    work = counter.get_total_flops() * count / 1e9
    times: dict[tuple, list[float]] = {side: [] for side in sides}
    rates: dict[str, list[float]] = {"fp32": [], "bf16-folded": []}
    for number in range(given.rounds):
        for side, call in sides.items():
            with freed_memory_kept() if side[0] == "fastue" else contextlib.nullcontext():
                start = time.perf_counter()
                call()
                times[side].append((time.perf_counter() - start) / given.draws)
            print(
                f"round {number + 1} {side} {times[side][-1]:.3f} s a draw, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        for arithmetic, dtype in (("fp32", torch.float32), ("bf16-folded", torch.bfloat16)):
            rates[arithmetic].append(matmul_rate(dtype))
    base = quantiles(times["published", "fp32", False])[1]
    rows = []
    for (side, arithmetic, compiled), seconds in times.items():
        p50, rate = quantiles(seconds)[1], quantiles(rates[arithmetic])[1]
        rows.append({
            "side": side, "arch": given.arch, "arithmetic": arithmetic, "compiled": int(compiled), "pictures": count,
            "sigma": given.sigma, "draws": given.draws, "rounds": given.rounds, "p50_s": f"{p50:.3f}",
            "min_s": f"{min(seconds):.3f}", "max_s": f"{max(seconds):.3f}", "times_published": f"{base / p50:.2f}",
            "GFLOP_per_s": f"{work / p50:.0f}", "matmul_GFLOP_per_s": f"{rate:.0f}",
            "counts": " ".join(map(str, counts.get((arithmetic, compiled), wanted) if side == "fastue" else wanted)),
            "load": f"{os.getloadavg()[0]:.1f}", **about,
        })  # fmt: skip
        print(f"{side:<10} {arithmetic:<12} compiled {int(compiled)} {p50:8.3f} s a draw {base / p50:6.2f}x published "
              f"{work / p50:6.0f} GFLOP/s, {100 * work / p50 / rate:.0f} % of a matrix product's")  # fmt: skip
    if not given.dry_run:
        print(write(rows, f"certify-{about['device']}", FIELDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
