"""Draws of a smoothed network: how many clean pictures each noisy copy of it gets right.

    A_i = A_D(theta + sigma s z_i),  z_i ~ N(0, I),  i = 0, 1 ...       (PUE, arXiv 2405.03316)

s is the scale of each parameter. Draw i is a pure function of (seed, i), so draws can be made in
any order, on any machine, again. The theorem needs the count to be a function of the perturbed
weights alone: hence the batches are fixed, BatchNorm statistics are stored, frozen, or re-estimated
from fixed pictures, weights are perturbed before BatchNorm is folded, and nothing is cached from
one draw to the next (torch.autocast would: its copies of the first draw's weights serve all
others). The step from the pictures to others of their kind needs more: that the classifier was made
without them. So the pictures of the statistics are not counted.
"""

import contextlib
import contextvars
import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from fastue.certificates.claim import ARITHMETIC, Smoothing
from fastue.certificates.scale import parameter_scale
from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.models.flat import FlatParameters
from fastue.models.frozen import FrozenCopy
from fastue.models.training import to_input
from fastue.ops import WEIGHTS_CERTIFY, WEIGHTS_STATISTICS, count_correct, has_kernel

STATISTICS_PICTURES = 512
_RESIDENT_BYTES = 1 << 30  # of network input; pictures above it are converted again at every draw


class Sampler:
    """Counts of right answers of noisy copies of `model` on pictures of `data`, on its device.

    statistics  pictures for the BatchNorm statistics, if config.bn takes any; up to 512 of them
                that are not in `data` are used. None: up to 512, a fifth, of `data`.
    claim       what the counts are for, as text: other claims get other draws
    compile     pass the evaluated network through torch.compile

    data      the pictures that are counted; `held_out` others of them make the statistics
    identity  sha256 (hex) of what is certified: network, pictures, statistics, smoothing
    seed      of the draws: config.seed, or made from identity and claim
    digest    sha256 (hex) of all that the counts depend on, rounding included: logs of draws may be
              joined where it is the same
    scale     of each parameter, float32 [D]; None: 1

    Raises DataError where there are too few pictures or those of `statistics` do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageDataset,
        config: Smoothing,
        *,
        statistics: ImageDataset | None = None,
        claim: str = "",
        compile: bool = False,
    ):
        self.config, self.compile = config, compile
        self._twins: list[Sampler] = []
        self._compiled = False
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False).to(data.device)
        images = None
        self.data, self.held_out = data, 0
        if config.bn != "stored":
            images = self._statistics(statistics)
        self.public = None if images is None else to_input(images)
        few = to_input(self.data.take(torch.arange(2, device=data.device).clamp(max=len(data) - 1)))
        self.scale = None
        if config.scale != "raw":
            self.scale = parameter_scale(self.model, few, config.scale)
        pictures = _picture_digests(self.data)
        self.identity = self._identity(images, pictures)
        made = int(_sha256(f"{self.identity} {claim}")[:16], 16)
        self.seed = made if config.seed is None else config.seed
        self.digest = self._digest(claim, pictures)
        self.weights = FlatParameters(self.model)
        if config.bn == "frozen-noisy":
            # Without the claim: one classifier, and nobody may look for a copy that suits.
            seed = int(self.identity[:16], 16) if config.seed is None else config.seed
            self._perturb(seed, WEIGHTS_STATISTICS, 0)
            with _exact():
                self._estimate()
            self.weights.restore()
        self.frozen = FrozenCopy(self.model, ARITHMETIC[config.arithmetic], compile=compile)
        small = self.data.images.numel() * self.frozen.dtype.itemsize <= _RESIDENT_BYTES
        self._resident = list(self._inputs()) if small else None

    def counts(self, draws: Sequence[int], *, purpose: int = WEIGHTS_CERTIFY) -> Tensor:
        """Right answers of each noisy copy: int64 [len(draws)] on the device, a GPU not waited for.

        On a CPU a core takes whole draws: small layers share badly, draws share nothing.
        """
        with _exact():
            return self._counts_by_core(draws, purpose)

    def moved(self, shift: Tensor) -> "Sampler":
        """The same classifier, scale, pictures and draws around theta + shift, float32 [D].

        Statistics that are re-estimated follow the weights, all others stay. The shift is flat as
        in FlatParameters and is not scaled.
        """
        moved = self._twin()
        moved.weights.base += shift.to(moved.weights.base)
        moved.weights.restore()
        moved._compiled = False
        moved.digest = _sha256(f"{self.digest} {_tensor_digest(shift)}")
        return moved

    @torch.no_grad()
    def network(self) -> nn.Module:
        """A copy of the network without noise, with the BatchNorm statistics it has here."""
        self.weights.restore()
        if self.config.bn == "reestimated":
            self._estimate()
        return copy.deepcopy(self.model)

    def _counts_by_core(self, draws: Sequence[int], purpose: int) -> Tensor:
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

    def _statistics(self, given: ImageDataset | None) -> Tensor:
        """Pictures of the statistics, uint8 [B,C,H,W]; what is held out for them is not counted."""
        data = self.data
        if given is None:
            if len(data) < 2:
                raise DataError(
                    f"{data.source}: --bn {self.config.bn} needs pictures that are not counted, "
                    "and there is one in all; name some with --bn-data"
                )
            self.held_out = min(STATISTICS_PICTURES, -(-len(data) // 5))
            order = epoch_order(len(data), 0, 0)  # a random choice, and always the same
            images = data.take(order[: self.held_out].sort().values.to(data.device))
            self.data = data.subset(order[self.held_out :].sort().values)
            return images
        if given.shape != data.shape:
            raise DataError(
                f"{given.source}: its pictures are {given.shape} (channels, height, width), those "
                f"of {data.source} {data.shape}; pass --size"
            )
        given = given.to(data.device)
        rows = epoch_order(len(given), 0, 0)[:STATISTICS_PICTURES].sort().values
        images = given.take(rows.to(data.device))
        counted = set()
        wanted = _pixels(images)
        for x, _, _ in batches(data, 1000):
            counted.update(set(wanted).intersection(_pixels(x)))
        apart = [row for row, pixels in enumerate(wanted) if pixels not in counted]
        if not apart:
            raise DataError(
                f"{given.source}: its pictures are all counted, too; --bn-data are others than "
                "those of --clean"
            )
        return images[torch.tensor(apart, device=data.device)]

    def _identity(self, statistics: Tensor | None, pictures: list[str]) -> str:
        """Without what only rounds (batch, device, versions) or names: it makes the seed, and
        nobody may look for a name, an order or a rounding whose draws suit.
        """
        described = {
            "weights": weights_digest(self.model),
            "pictures": sorted(pictures),
            "statistics": None if statistics is None else _tensor_digest(statistics),
            "scale": None if self.scale is None else _tensor_digest(self.scale),
            "sigma": self.config.sigma,
            "bn": self.config.bn,
            "arithmetic": self.config.arithmetic,
            "generator": "philox4x32-10/box-muller/40",
        }
        return _sha256(json.dumps(described, sort_keys=True))

    def _digest(self, claim: str, pictures: list[str]) -> str:
        # Other kernels round otherwise: their draws are not mixed.
        device = self.data.device
        fp32 = self.config.arithmetic == "fp32"
        kernel, dtype = ("conv3x3", torch.float32) if fp32 else ("conv", torch.bfloat16)
        ours = has_kernel(kernel, device, dtype) and not self.compile
        chip = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
        )
        described = {
            "identity": self.identity,
            "pictures": pictures,  # in their order: batches may round by it
            "claim": claim,
            "seed": self.seed,
            "batch": self.config.batch,
            "compiled": self.compile,
            "convolutions": "fastue" if ours else "torch",
            "chip": chip,
            "torch": torch.__version__,
        }
        return _sha256(json.dumps(described, sort_keys=True))

    def _twin(self) -> "Sampler":
        """The same with weights of its own; pictures are shared."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model)
        twin.weights = FlatParameters(twin.model)
        precision = ARITHMETIC[self.config.arithmetic]
        twin.frozen = FrozenCopy(twin.model, precision, compile=self.compile)
        twin._twins = []
        return twin

    def _perturb(self, seed: int, purpose: int, draw: int) -> None:
        sigma, scale = self.config.sigma, self.scale
        self.weights.perturb(sigma, seed=seed, purpose=purpose, draw=draw, scale=scale)

    @torch.no_grad()
    def _counts(self, draws: Sequence[int], purpose: int) -> Tensor:
        counts = torch.zeros(len(draws), dtype=torch.int64, device=self.data.device)
        for slot, draw in enumerate(draws):
            self._perturb(self.seed, purpose, draw)
            self._count(counts, slot)
        self.weights.restore()
        return counts

    @torch.no_grad()
    def noiseless(self) -> int:
        """Right answers of the network as it is, of which no certificate speaks."""
        counts = torch.zeros(1, dtype=torch.int64, device=self.data.device)
        self.weights.restore()
        with _exact():
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


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """float32 is float32: no TF32 on a GPU, no bf16 products on a CPU."""
    products, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn
    convolutions = cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32 = convolutions


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor_digest(tensor: Tensor) -> str:
    head = f"{list(tensor.shape)} {tensor.dtype}".encode()
    return hashlib.sha256(head + tensor.cpu().contiguous().numpy().tobytes()).hexdigest()


def _picture_digests(data: ImageDataset) -> list[str]:
    """sha256 (hex) of each picture and its label."""
    digests = []
    for x, y, _ in batches(data, 1000):
        for pixels, label in zip(_pixels(x), y.tolist(), strict=True):
            digests.append(hashlib.sha256(pixels + b" %d" % label).hexdigest())
    return digests


def _pixels(images: Tensor) -> list[bytes]:
    return [picture.tobytes() for picture in images.permute(0, 2, 3, 1).cpu().numpy()]


def weights_digest(model: nn.Module) -> str:
    """sha256 (hex) over names, shapes and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def layer_norms(model: nn.Module, sigma: float) -> list[dict]:
    """|W| and |W| / sqrt(n) / sigma of each parameter: how strong noise of the raw scale is.

    There the certificate changes when a layer before a BatchNorm is rescaled, though the network
    does not, so these numbers belong to it.
    """
    rows = []
    for name, p in model.named_parameters():
        norm = float(p.detach().double().norm())
        relative = norm / p.numel() ** 0.5 / sigma
        rows.append({"name": name, "size": p.numel(), "norm": norm, "relative": relative})
    return rows
