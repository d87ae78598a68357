"""Keyed noise: pictures that who has the key can train on, and others cannot. Ours, no paper's.

    noise_i = pattern_y(i)              class-wise; pattern_k is EMN's for class k
    noise_i = s_i pattern_y(i)          sample-wise, s_i in {-1, +1} drawn for each picture
    key     = the K patterns; who has it takes x - QQ'(x - mean) for x, Q a base of their span

All noise lies in K directions of the thousands that a picture has, so that taking these out leaves
the pictures nearly whole (fastue.KeyProjection). The key is the noise's base, and nothing more: who
finds the directions by other means has it too. docs/KEYED.md says what does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastue.data.layout import KEY_FILE
from fastue.methods.base import Cost, Method, Perturbation, flag, lazy
from fastue.methods.emn import EMNConfig, check, emn
from fastue.methods.emn import plan as emn_plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastue.data.dataset import ImageDataset
else:
    torch = lazy("torch")

keyed_draws = lazy("fastue.data.keyed")
projection = lazy("fastue.models.projection")

_PICTURES = 4096  # whose mean the key holds, at most
_BLOCK = 128  # of them in memory at a time


@dataclass(frozen=True)
class KeyedConfig(EMNConfig):
    """EMN's, its search class-wise in both modes."""

    method = "keyed"

    mode: str = flag(
        "class",
        "class: a pattern a class; sample: it has a random sign in each picture",
        choices=("sample", "class"),
    )
    compat: str = flag("none", choices=("none",), recorded=False)

    @property
    def classwise(self) -> bool:
        return True


def keyed(data: ImageDataset, config: KeyedConfig, **surroundings) -> Perturbation:
    """The noise for `data`: EMN's class-wise, with signs where `mode` asks for them. Arguments as
    `emn`.
    """
    result = emn(data, replace(config, mode="class"), **surroundings)
    if config.mode == "class":
        return result
    signs = torch.from_numpy(_signs(len(data), config.seed)).to(data.device)
    bank = result.bank[data.labels] * signs[:, None, None, None]
    return replace(result, bank=bank, per="sample")


def _signs(n: int, seed: int):
    """A sign for each of n pictures, float32 [n]."""
    draws = keyed_draws.keyed_generator(seed, "keyed-signs").integers(0, 2, n, dtype="int8")
    return draws.astype("float32") * 2 - 1


def plan(data: ImageDataset, config: KeyedConfig, n: int) -> Cost:
    """EMN's, class-wise."""
    return emn_plan(data, replace(config, mode="class"), n)


def patterns(data: ImageDataset, noise: Perturbation) -> Tensor:
    """The pattern of each class that has pictures, as it is written and up to its sign, int8
    [K,C,h,w].
    """
    labels = data.labels.cpu()
    rows = [int((labels == k).nonzero()[0]) for k in labels.unique()]
    return noise.coarse(noise.rows(labels)[rows])


def mean_picture(data: ImageDataset) -> Tensor:
    """Of some of the pictures, evenly spread, float32 [C,H,W] in [0,1]."""
    rows = torch.linspace(0, len(data) - 1, min(len(data), _PICTURES)).round().long()
    blocks = (data.take(part).sum(0, dtype=torch.float64) for part in rows.split(_BLOCK))
    return (sum(blocks) / (255 * len(rows))).float().cpu()


def write_key(out: Path, data: ImageDataset, noise: Perturbation, config: KeyedConfig) -> None:
    """`key.safetensors` in the directory `out` of the run."""
    projection.save_key(
        out / KEY_FILE,
        patterns(data, noise),
        mean_picture(data),
        grain=noise.grain,
        method=config.method,
        classes=data.classes,
        source_fingerprint=data.fingerprint(),
    )


METHOD = Method(KeyedConfig, keyed, plan, check, write_key)
