"""Dilution: the adversary adds clean pictures of its own (Wang et al. 2025, BridgePure, table 6).

`dilution` adds as many as 10 % of the training set has, as the paper's 4,000 beside 40,000;
dilution-25 as many as 25 %; 1 to 1000 can be had. They come from `--aux`, drawn anew for each seed;
more of them always hold the fewer.
"""

import functools
from dataclasses import replace

import torch

from fastue.core.errors import DataError
from fastue.countermeasures.base import Countermeasure, Means, number
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator

PERCENT = 10


def diluted(data: ImageDataset, seed: int, means: Means, *, share: int) -> ImageDataset:
    """`data` and then `share` percent of its number from means.aux, ids beginning with `aux:`.

    Raises DataError where means.aux has not as many.
    """
    aux, count = means.aux, round(len(data) * share / 100)
    assert aux is not None  # the attack asks for it where `aux` is set
    if count > len(aux):
        raise DataError(
            f"--aux {aux.source}: has {len(aux)} pictures, and {share} % of {len(data)} are "
            f"{count}; use a smaller dilution-PERCENT or more pictures"
        )
    added = aux.subset(keyed_generator(seed, "dilution").permutation(len(aux))[:count])
    return replace(
        data,
        images=torch.cat([data.images, added.images.to(data.images.device)]),
        labels=torch.cat([data.labels, added.labels]),
        ids=[*data.ids, *(f"aux:{name}" for name in added.ids)],
        root=None,
    )


@functools.cache
def at(share: int) -> Countermeasure:
    name = "dilution" if share == PERCENT else f"dilution-{share}"
    data = functools.partial(diluted, share=share)
    return Countermeasure(name, data=data, aux=True, cost=1 + share / 100)


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 1, 1000))


COUNTERMEASURE = at(PERCENT)
