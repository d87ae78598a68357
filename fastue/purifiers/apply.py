"""A data set through a sampler, its purifier trained on the auxiliary pictures first."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset
from fastue.purifiers.perceptual import trained_features
from fastue.purifiers.sampling import Sampler, purify
from fastue.purifiers.training import CONFIGS, trained


def check_aux(data: ImageDataset, aux: ImageDataset) -> None:
    """Raises DataError where the pictures of `aux` are of another size or number of channels."""
    if aux.shape != data.shape:
        raise DataError(
            f"{aux.source or 'auxiliary set'}: pictures of {list(aux.shape)} (channels, height, "
            f"width) cannot purify those of {list(data.shape)}; --size S makes pictures square"
        )


def purified(
    data: ImageDataset,
    sampler: Sampler,
    *,
    aux: ImageDataset,
    seed: int,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> ImageDataset:
    """`data` with its pictures purified, their rows being the ids of the noise.

    Labels, ids and classes stay. Raises DataError where `aux` is empty or does not fit.
    """
    check_aux(data, aux)
    net = trained(aux, CONFIGS["small"], cache=cache, progress=progress)
    distance = trained_features(aux, cache=cache) if sampler.looks else None
    rows = torch.arange(len(data), device=data.device)
    images = purify(
        net,
        data.take(rows),
        rows,
        sampler,
        seed=seed,
        distance=distance,
        progress=lambda done, total: progress("purified", done, total),
    )
    return replace(data, images=images)
