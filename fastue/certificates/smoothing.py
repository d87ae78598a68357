"""Draws of a smoothed network: how many clean pictures each noisy copy of it gets right.

    A_i = A_D(theta + sigma z_i),  z_i ~ N(0, I),  i = 0 ... N-1        (PUE, arXiv 2405.03316)

Draw i is a pure function of (seed, i), so draws can be made in any order, on any machine, again.
The theorem needs the count to be a function of the perturbed weights alone: hence the batches are
fixed, BatchNorm statistics are stored, frozen, or re-estimated from fixed pictures, weights are
perturbed before BatchNorm is folded, and nothing is cached from one draw to the next
(torch.autocast would: its copies of the first draw's weights serve all others).
"""

import contextvars
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch
from torch import Tensor, nn

from fastue.certificates.claim import ARITHMETIC, Smoothing
from fastue.data.dataset import ImageDataset, batches
from fastue.models.flat import FlatParameters
from fastue.models.frozen import FrozenCopy
from fastue.models.training import to_input
from fastue.ops import WEIGHTS_CERTIFY, WEIGHTS_STATISTICS, count_correct, has_kernel

STATISTICS_PICTURES = 512
_RESIDENT_BYTES = 1 << 30  # of network input; pictures above it are converted again at every draw


class Sampler:
    """Counts of right answers of noisy copies of `model` on all pictures of `data`.

    On the device that `data` is on. `digest` (hex) covers all that the counts depend on: logs of
    draws may be joined where it is the same. compile=True passes the evaluated network through
    torch.compile.
    """

    def __init__(
        self, model: nn.Module, data: ImageDataset, config: Smoothing, *, compile: bool = False
    ):
        self.config, self.data, self.compile = config, data, compile
        self._twins: list[Sampler] = []
        self._compiled = False
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False).to(data.device)
        rows = torch.arange(min(STATISTICS_PICTURES, len(data)), device=data.device)
        rows = rows * len(data) // len(rows)  # spread: a folder is sorted by class
        self.public = to_input(data.images.index_select(0, rows))
        self.digest = self._digest()
        self.weights = FlatParameters(self.model)
        if config.bn == "frozen-noisy":
            self.weights.perturb(config.sigma, seed=config.seed, purpose=WEIGHTS_STATISTICS, draw=0)
            self._estimate()
            self.weights.restore()
        self.frozen = FrozenCopy(self.model, ARITHMETIC[config.arithmetic], compile=compile)
        small = data.images.numel() * self.frozen.dtype.itemsize <= _RESIDENT_BYTES
        self._resident = list(self._inputs()) if small else None

    def counts(self, draws: Sequence[int], *, purpose: int = WEIGHTS_CERTIFY) -> Tensor:
        """Right answers of each noisy copy: int64 [len(draws)] on the device, a GPU not waited for.

        On a CPU a core takes whole draws: small layers share badly, draws share nothing.
        """
        threads = torch.get_num_threads()
        cores = min(threads, len(draws)) if self.data.device.type == "cpu" else 1
        if cores == 1:
            return self._counts(draws, purpose)
        self._twins += [self._twin() for _ in range(cores - 1 - len(self._twins))]
        if self.compile and not self._compiled:
            torch.set_num_threads(1)  # the compiler builds the number in
            for sampler in [self, *self._twins]:
                sampler._counts(draws[:1], purpose)
            self._compiled = True
        counts = torch.zeros(len(draws), dtype=torch.int64)
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            shares = []
            for i, sampler in enumerate([self, *self._twins[: cores - 1]]):
                context = contextvars.copy_context()  # holds the backend that was chosen
                shares.append(pool.submit(context.run, sampler._counts, draws[i::cores], purpose))
            for i, share in enumerate(shares):
                counts[i::cores] = share.result()
        torch.set_num_threads(threads)  # what a worker sets holds for threads that are made later
        return counts

    def _digest(self) -> str:
        """sha256 (hex) of all that the counts depend on."""
        # Other kernels round otherwise: their draws are not mixed.
        fp32 = self.config.arithmetic == "fp32"
        kernel, dtype = ("conv3x3", torch.float32) if fp32 else ("conv", torch.bfloat16)
        ours = has_kernel(kernel, self.data.device, dtype) and not self.compile
        described = {
            **asdict(self.config),
            "weights": weights_digest(self.model),
            "pictures": self.data.fingerprint(),
            "statistics_pictures": len(self.public),
            "compiled": self.compile,
            "generator": "philox4x32-10/box-muller/40",
            "convolutions": "fastue" if ours else "torch",
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _twin(self) -> "Sampler":
        """The same with weights of its own; pictures are shared."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model)
        twin.weights = FlatParameters(twin.model)
        precision = ARITHMETIC[self.config.arithmetic]
        twin.frozen = FrozenCopy(twin.model, precision, compile=self.compile)
        twin._twins = []
        return twin

    @torch.no_grad()
    def _counts(self, draws: Sequence[int], purpose: int) -> Tensor:
        counts = torch.zeros(len(draws), dtype=torch.int64, device=self.data.device)
        sigma, seed = self.config.sigma, self.config.seed
        for slot, draw in enumerate(draws):
            self.weights.perturb(sigma, seed=seed, purpose=purpose, draw=draw)
            self._count(counts, slot)
        self.weights.restore()
        return counts

    @torch.no_grad()
    def noiseless(self) -> int:
        """Right answers of the network as it is, of which no certificate speaks."""
        counts = torch.zeros(1, dtype=torch.int64, device=self.data.device)
        self.weights.restore()
        self._count(counts, 0)
        return int(counts)

    def _count(self, counts: Tensor, slot: int) -> None:
        if self.config.bn == "reestimated":
            self._estimate()
        # Perturbed before, folded now: the other way round certifies other parameters.
        self.frozen.refresh()
        for x, y in self._resident or self._inputs():
            count_correct(self.frozen.module(x), y, counts, slot)

    def _inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y, _ in batches(self.data, self.config.batch):
            yield to_input(x).to(self.frozen.dtype), y

    @torch.no_grad()
    def _estimate(self) -> None:
        """BatchNorm statistics of the present weights: of one fixed batch, in float32."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
        self.model(self.public)
        for norm in norms:
            norm.eval()


def weights_digest(model: nn.Module) -> str:
    """sha256 (hex) over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def layer_norms(model: nn.Module, sigma: float) -> list[dict]:
    """|W| and |W| / sqrt(n) / sigma of each parameter: how strong the noise is, layer by layer.

    The certificate changes when a layer before a BatchNorm is rescaled, though the network does
    not: it speaks of this parameterisation, so these numbers belong to it.
    """
    rows = []
    for name, p in model.named_parameters():
        norm = float(p.detach().double().norm())
        relative = norm / p.numel() ** 0.5 / sigma
        rows.append({"name": name, "size": p.numel(), "norm": norm, "relative": relative})
    return rows
