"""Time noisy copies of a network: `python -m bench.certify [--arch resnet18] [--peer pue=DIR]`.

A draw is: perturb all weights, classify all test pictures, count. The sides take turns on the same
network:

  published   the loop of the public PUE code in our words: randn, scale, add, subtract a parameter;
              PIL decode and ToTensor of every picture at every draw; autograd on; a Python loop
              over the predicted classes; the network as the public one, with activations that are
              not in place
  peer        the public repository's own certify.py, from a checkout you name, on the CPU, around
              the same network
  tuned       what somebody who knows PyTorch would write: inference mode, pictures resident in
              channels_last, one flat normal_ a draw, BatchNorm folded behind it, argmax; each core
              a draw or all cores on one, whichever is faster here; fp32 and bf16-folded
  fastue      fastue.certificates.smoothing.Sampler: the same two, and both under torch.compile with
              --compile

tuned and fastue run at fastue's own batch, with the heap as the command sets it, and in bf16 only
where the CPU has it: elsewhere it is emulated.

How far a side is from what the machine can do: its rate over the network's multiplications is
printed beside that of a large matrix product in the same arithmetic, timed in the same rounds.
`cpu_s` are the seconds of all cores together, which hardly count what else the machine does.

Before anything is timed, the first draws of all sides are made from the same noise, and those in
float32 must give the same counts. Rows are appended to bench/results/certify-<device>.csv.
"""

import argparse
import contextlib
import copy
import os
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.utils import fuse_conv_bn_weights
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from bench.ops import facts, quantiles, write
from fastue.certificates.smoothing import Sampler, Smoothing
from fastue.core.heap import freed_memory_kept
from fastue.data.dataset import ImageDataset
from fastue.data.sources import open_dataset
from fastue.models.flat import FlatParameters
from fastue.models.training import resolve_precision, to_input
from fastue.ops import WEIGHTS_CERTIFY
from fastue.victims.train import VictimConfig, fit

FIELDS = (
    "side", "arch", "arithmetic", "compiled", "pictures", "sigma", "draws", "rounds", "p50_s", "min_s", "max_s",
    "cpu_s", "times_published", "times_tuned", "GFLOP_per_s", "matmul_GFLOP_per_s",
    "counts", "device", "threads", "load", "torch", "triton", "fastue", "commit", "time",
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16-folded": torch.bfloat16}
SIDES = ("published", "peer", "tuned", "fastue")


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


class Tuned:
    """Competent PyTorch: counts of noisy copies, of noise of its own or of `noise(draw)`.

    `workers` threads take a draw each; 1 leaves all of torch's threads to every draw.
    """

    def __init__(self, model, data, smoothing: Smoothing, workers: int):
        dtype = DTYPES[smoothing.arithmetic]
        self.sigma = smoothing.sigma
        batches = to_input(data.images).to(dtype).split(smoothing.batch)
        self.batches = list(zip(batches, data.labels.split(smoothing.batch), strict=True))
        self.copies = [NoisyCopy(model, dtype) for _ in range(workers)]

    def counts(self, draws, noise=None) -> list[int]:
        cores = len(self.copies)
        if cores == 1:
            return [self._count(self.copies[0], draw, noise) for draw in draws]
        threads, counts = torch.get_num_threads(), [0] * len(draws)

        def share(i: int) -> None:
            counts[i::cores] = [self._count(self.copies[i], d, noise) for d in draws[i::cores]]

        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(share, range(cores)))
        torch.set_num_threads(threads)
        return counts

    @torch.inference_mode()
    def _count(self, network: "NoisyCopy", draw: int, noise) -> int:
        network.perturb(self.sigma, draw, noise)
        return int(sum((network.folded(x).argmax(1) == y).sum() for x, y in self.batches))


class NoisyCopy:
    """A network with its parameters in one tensor, and the same with BatchNorm folded."""

    def __init__(self, model, dtype: torch.dtype):
        self.live, self.folded = copy.deepcopy(model), copy.deepcopy(model)
        self.base = flat(model.parameters())
        self.noisy, self.noise = self.base.clone(), torch.empty_like(self.base)
        self.generator = torch.Generator()
        torch.nn.utils.vector_to_parameters(self.noisy, self.live.parameters())  # views of it
        self.pairs = []
        for name, part in self.live.named_modules():
            kinds = [type(module) for module in part.children()][:2]
            if isinstance(part, torch.nn.Sequential) and kinds[1:] == [torch.nn.BatchNorm2d]:
                conv = part[0]
                target = self.folded.get_submodule(name)
                target[0].bias = torch.nn.Parameter(torch.zeros(conv.out_channels))
                del target[1]
                self.pairs.append((target[0], *part[:2]))
        self.folded.to(dtype, memory_format=torch.channels_last)
        self.head = list(
            zip(self.folded.head.parameters(), self.live.head.parameters(), strict=True)
        )

    def perturb(self, sigma: float, draw: int, noise) -> None:
        if noise:
            z = flat(noise(draw))
        else:
            z = self.noise.normal_(generator=self.generator.manual_seed(draw))
        torch.add(self.base, z, alpha=sigma, out=self.noisy)
        for target, conv, norm in self.pairs:
            weight, bias = fuse_conv_bn_weights(
                *(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps),
                *(norm.weight, norm.bias),
            )
            target.weight.copy_(weight)
            target.bias.copy_(bias)
        for target, source in self.head:
            target.copy_(source)


def flat(tensors) -> torch.Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def faster(model, data, smoothing: Smoothing, draws) -> Tuned:
    """Tuned with a core a draw or with all cores on one."""
    seconds = {}
    for side in (Tuned(model, data, smoothing, n) for n in {1, torch.get_num_threads()}):
        side.counts(draws)
        start = time.perf_counter()
        side.counts(draws)
        seconds[side] = time.perf_counter() - start
    best = min(seconds, key=seconds.__getitem__)
    print(
        f"tuned {smoothing.arithmetic}: {len(best.copies)} draws at a time are faster", flush=True
    )
    return best


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
    parser.add_argument(
        "--sides", help=f"of {','.join(SIDES)} (default: all, peer only with --peer)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    given = parser.parse_args()
    folder = None
    if given.peer:
        name, _, path = given.peer.partition("=")
        folder = Path(path)
        if name != "pue" or not (folder / "certify.py").exists():
            parser.error("--peer takes pue=DIR where DIR holds the public repository's certify.py")
    names = given.sides.split(",") if given.sides else [s for s in SIDES if s != "peer" or folder]
    if wrong := set(names) - set(SIDES if folder else SIDES[:1] + SIDES[2:]):
        parser.error(f"--sides {','.join(sorted(wrong))}: of {','.join(SIDES)}, peer with --peer")
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

    draws, live = range(given.draws), out_of_place(model)

    def noise(draw):
        return given_noise(model, 0, draw)

    # arithmetic -> GFLOP/s of large matrix products
    rates: dict[str, list[float]] = {
        a: [] for a in DTYPES if a == "fp32" or config.precision == "bf16"
    }
    # (side, arithmetic, compiled) -> counts of noise of its own, or of noise(draw)
    sides: dict[tuple, Callable] = {
        ("published", "fp32", False): lambda z=None: published(
            copy.deepcopy(live) if z else live, loader, given.sigma, given.draws, z
        ),
        ("peer", "fp32", False): lambda z=None: peer(
            folder, copy.deepcopy(live) if z else live, loader, given.sigma, given.draws, z
        ),
    }
    sides = {side: call for side, call in sides.items() if side[0] in names}
    for arithmetic in rates:
        smoothing = Smoothing(given.sigma, seed=0, arithmetic=arithmetic, scale="raw")
        if "tuned" in names:
            tuned = faster(model, test, smoothing, draws)
            sides["tuned", arithmetic, False] = lambda z=None, s=tuned: s.counts(draws, z)
        for compiled in (False, True)[: 1 + given.compile] if "fastue" in names else ():
            sampler = Sampler(model, test, smoothing, compile=compiled)
            sides["fastue", arithmetic, compiled] = lambda z=None, s=sampler: s.counts(
                draws
            ).tolist()
    counts = {side: call(noise) for side, call in sides.items()}
    print("counts of the same draws:", *(f"  {k} {v}" for k, v in counts.items()), sep="\n")
    # The peer gives accuracies of equal batches, sorted.
    exact = {k: sorted(v) if "peer" in names else v for k, v in counts.items() if k[1] == "fp32"}
    if len(set(map(tuple, exact.values()))) > 1:
        print("they differ in float32: nothing is timed")
        return 1

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *test.shape))
    work = counter.get_total_flops() * count / 1e9
    times: dict[tuple, list[float]] = {side: [] for side in sides}
    cores_s: dict[tuple, list[float]] = {side: [] for side in sides}
    for number in range(given.rounds):
        for side, call in sides.items():
            ours = side[0] in ("tuned", "fastue")
            with freed_memory_kept() if ours else contextlib.nullcontext():
                start, busy = time.perf_counter(), time.process_time()
                call()
                times[side].append((time.perf_counter() - start) / given.draws)
                cores_s[side].append((time.process_time() - busy) / given.draws)
            print(
                f"round {number + 1} {side} {times[side][-1]:.4f} s a draw, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        for arithmetic, measured in rates.items():
            measured.append(matmul_rate(DTYPES[arithmetic]))
    middle = {side: quantiles(seconds)[1] for side, seconds in times.items()}
    rows = []
    for (side, arithmetic, compiled), seconds in times.items():
        p50, rate = middle[side, arithmetic, compiled], quantiles(rates[arithmetic])[1]
        of = {
            name: f"{middle[name, a, False] / p50:.2f}" if (name, a, False) in middle else ""
            for name, a in (("published", "fp32"), ("tuned", arithmetic))
        }
        rows.append({
            "side": side, "arch": given.arch, "arithmetic": arithmetic, "compiled": int(compiled), "pictures": count,
            "sigma": given.sigma, "draws": given.draws, "rounds": given.rounds, "p50_s": f"{p50:.4f}",
            "min_s": f"{min(seconds):.4f}", "max_s": f"{max(seconds):.4f}",
            "cpu_s": f"{quantiles(cores_s[side, arithmetic, compiled])[1]:.4f}",
            "times_published": of["published"], "times_tuned": of["tuned"],
            "GFLOP_per_s": f"{work / p50:.0f}", "matmul_GFLOP_per_s": f"{rate:.0f}",
            "counts": " ".join(map(str, counts[side, arithmetic, compiled])),
            "load": f"{os.getloadavg()[0]:.1f}", **about,
        })  # fmt: skip
        print(f"{side:<10} {arithmetic:<12} compiled {int(compiled)} {p50:8.4f} s a draw, "
              f"{rows[-1]['cpu_s']} of all cores "
              f"{of['published'] or '-':>6}x published {of['tuned'] or '-':>6}x tuned "
              f"{work / p50:6.0f} GFLOP/s, {100 * work / p50 / rate:.0f} % of a matrix product's")  # fmt: skip
    if not given.dry_run:
        print(write(rows, f"certify-{about['device']}", FIELDS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
