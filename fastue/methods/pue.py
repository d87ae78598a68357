"""PUE: EMN under parametric smoothing (Wang et al., NDSS 2025, arXiv 2405.03316), sample-wise and
class-wise.

    min over theta  E[ min over |delta|_inf <= eps
        mean over levels sigma_j, z ~ N(0, I)  CE(f_{theta + sigma_j z}(x + delta), y) ]

EMN's two moves, each under weight noise of the levels sigma_j = 0 ... sigma: the surrogate takes an
optimiser step a level, on the gradient averaged over noisy copies of itself, and the noise takes a
signed step a level, on the input gradient summed over noisy copies. Smoothing begins once the
surrogate has learnt half of the noisy pictures. The surrogate that is left over, with the BatchNorm
statistics it saw under noise, is the paper's "online surrogate".
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastue.methods import loop
from fastue.methods.base import ABOVE_0, Cost, Method, Perturbation, flag, lazy, number, whole
from fastue.methods.emn import EMNConfig, check, emn
from fastue.methods.emn import plan as emn_plan
from fastue.methods.loop import Surrogate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastue.data.dataset import ImageDataset
else:
    torch = lazy("torch")

F = lazy("torch.nn.functional")
flat = lazy("fastue.models.flat")
ops = lazy("fastue.ops")
training = lazy("fastue.models.training")


@dataclass(frozen=True)
class PUEConfig(EMNConfig):
    """EMN's, with the published values of PUE where they differ."""

    method = "pue"

    recipe: str = flag(
        "paper", "fast: one large noise step a level", choices=("paper", "fast"), recorded=False
    )
    sigma: float = flag(
        0.25, "weight noise of the surrogate at the highest level", parse=number, check=ABOVE_0
    )
    levels: int = flag(
        6,
        "levels of it, from 0 to sigma",
        parse=whole,
        check=(lambda v: v >= 2, "must be at least 2: the noiseless one and sigma"),
    )
    train_draws: int = flag(
        100, "noisy copies at each level of a training step", parse=whole, check=ABOVE_0
    )
    noise_draws: int = flag(
        10, "noisy copies at each level of a noise step", parse=whole, check=ABOVE_0
    )

    train_steps: int = flag(20, parse=whole, check=ABOVE_0)
    # Error rate of a sweep from which on the weights are perturbed.
    smooth_below: float = flag(0.5, parse=number)

    def good_sweeps(self) -> int:
        return 2

    def ladder(self) -> list[float]:
        """The noise levels, from 0 to sigma; the level 0 is passed once, not once a draw."""
        return [self.sigma * j / (self.levels - 1) for j in range(self.levels)]


class SmoothedSurrogate(Surrogate):
    """EMN's surrogate with noise on its weights, keyed by (seed, step, level, copy): a resumed run
    repeats it.
    """

    config: PUEConfig

    def __init__(self, model: nn.Module, config: PUEConfig):
        self.weights = flat.FlatParameters(model)
        super().__init__(model, config)
        self.smooth = False

    def begin(self, history: list[dict]) -> None:
        self.smooth = _switch(history, self.config) is not None
        self.moves = self.config.levels if self.smooth else 1
        self.weights.commit()

    def learn(self, x: Tensor, y: Tensor, number: int) -> None:
        c = self.config
        if not self.smooth:
            super().learn(x, y, number)
            self.weights.commit()
            return
        for level, sigma in enumerate(c.ladder()):
            draws = 1 if sigma == 0 else c.train_draws
            self.optimizer.zero_grad(set_to_none=True)
            for draw in range(draws):
                self._perturb(sigma, ops.WEIGHTS_TRAIN, number, level, draw, c.train_draws)
                with training.autocast(x.device, c.precision):
                    loss = F.cross_entropy(self.model(x), y) / (c.levels * draws)
                loss.backward()
            self.weights.restore()
            if self.average:
                training.average_ranks(self.model)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.clip)
            self.optimizer.step()
            self.weights.commit()

    def gradient(self, noisy: Tensor, y: Tensor, move: int, number: int) -> tuple[Tensor, Tensor]:
        """Summed over noisy copies; level 0 comes first and says how many pictures the surrogate
        itself gets right.
        """
        c, sigma = self.config, self.config.ladder()[move]
        if sigma == 0:
            gradient, self.right = loop.input_gradient(self.frozen.refresh(), noisy, y)
            return gradient, self.right
        total = torch.zeros_like(noisy, dtype=torch.float32)
        for draw in range(c.noise_draws):
            self._perturb(sigma, ops.WEIGHTS_NOISE_STEP, number, move, draw, c.noise_draws)
            folded = self.frozen.refresh()  # perturbed first, folded then
            total += loop.input_gradient(folded, noisy, y)[0]
        self.weights.restore()
        return total, self.right

    def judged(self, history: list[dict]) -> list[dict]:
        """Sweeps made under weight noise."""
        switch = _switch(history, self.config)
        return [] if switch is None else history[switch + 1 :]

    def _perturb(
        self, sigma: float, purpose: int, number: int, level: int, draw: int, draws: int
    ) -> None:
        index = (number * self.config.levels + level) * draws + draw
        self.weights.perturb(sigma, seed=self.config.seed, purpose=purpose, draw=index)


def _switch(history: list[dict], config: PUEConfig) -> int | None:
    """The sweep after which the weights are perturbed."""
    below = (i for i, entry in enumerate(history) if entry["error"] < config.smooth_below)
    return next(below, None)


def pue(data: ImageDataset, config: PUEConfig, **surroundings) -> Perturbation:
    """The noise for `data`: EMN's moves, the surrogate under weight noise. Arguments as `emn`."""
    return emn(data, config, surrogate=SmoothedSurrogate, **surroundings)


class _SmoothAtOnce(SmoothedSurrogate):
    def begin(self, history: list[dict]) -> None:
        super().begin([{"error": -1.0}])


def plan(data: ImageDataset, config: PUEConfig, n: int) -> Cost:
    """EMN's, of sweeps under weight noise, one noisy copy of the network timed for all."""
    one = replace(config, train_draws=1, noise_draws=1)
    draws = (config.train_draws, config.noise_draws)
    passes = [(1 + (config.levels - 1) * count) / config.levels for count in draws]
    smooth = functools.partial(emn, surrogate=_SmoothAtOnce)
    return emn_plan(data, one, n, make=smooth, passes=passes)


METHOD = Method(PUEConfig, pue, plan, check)
