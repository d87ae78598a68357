"""What the purifying countermeasures share."""

from dataclasses import dataclass, replace

from fastue.core.errors import UsageError
from fastue.countermeasures.base import Countermeasure, Means
from fastue.data.dataset import ImageDataset
from fastue.purifiers.apply import purified
from fastue.purifiers.sampling import SAMPLERS, Sampler


@dataclass(frozen=True)
class Purified:
    """The `data` hook of a sampler; two of the same sampler are equal."""

    sampler: Sampler

    def __call__(self, data: ImageDataset, seed: int, means: Means) -> ImageDataset:
        if means.aux is None:
            raise UsageError("purifying needs clean pictures of the adversary's own: --aux")
        return purified(
            data,
            self.sampler,
            aux=means.aux.to(data.device),
            seed=seed,
            cache=means.cache,
            progress=means.progress,
        )


def countermeasure(name: str, steps: str | None = None) -> Countermeasure:
    """That of a sampler, with another number of steps an iteration where one is told."""
    sampler, full = SAMPLERS[name], name
    if steps is not None:
        if not steps.isdecimal() or not 1 <= int(steps) <= sampler.start:
            raise UsageError(f"{steps}: steps are a whole number from 1 to {sampler.start}")
        sampler, full = replace(sampler, steps=int(steps)), f"{name}-{steps}"
    calls = sampler.iterations * sampler.steps
    return Countermeasure(full, data=Purified(sampler), aux=True, cost=1 + calls / 32)
