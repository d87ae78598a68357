"""D-VAE (Yu et al., ICML 2024): an autoencoder with little room, with what it finds of the classes
taken out, trained on the protected pictures themselves. Smaller than published; see
fastue.purifiers.dvae.
"""

from dataclasses import replace

from fastue.countermeasures.base import Countermeasure, Means
from fastue.data.dataset import ImageDataset
from fastue.purifiers import dvae


def purified(data: ImageDataset, seed: int, means: Means) -> ImageDataset:
    images = dvae.dvae(data, dvae.CONFIG, seed=seed, cache=means.cache, progress=means.progress)
    return replace(data, images=images)


COUNTERMEASURE = Countermeasure("dvae", data=purified, cost=3)
