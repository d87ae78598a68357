"""Does a protection hold? A small victim tells, before the protection is called done.

Of a keyed draw of the pictures a tenth is held out: their originals are the clean test. The victim
learns the others twice, as protected and as they were, with crop and flip. Its best epoch counts:
an adversary who has some clean pictures stops there. Where only some identities are protected, they
are among the pictures drawn, and the held-out ones are theirs.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.methods.base import Config, Perturbation, silent
from fastue.victims.train import VictimConfig, train_victim

ARCH, OTHER_ARCH = "vgg11-w8", "cnn-w16"  # the other one where the surrogate is of ARCH's family
EPOCHS = 4
BATCH = 64
# At least: where there are few pictures, batches are smaller and epochs are more.
STEPS_OF_EPOCH, STEPS = 35, 280
PER_CLASS, CLASSES = 500, 10  # pictures drawn at most, so that the cost does not grow with the data
HELD_OUT = 0.1
# The clean victim has to learn so many points above chance, and so many standard deviations of
# what chance gives on the held-out pictures, or it says nothing of the protection.
LEAST_POINTS, LEAST_DEVIATIONS = 10.0, 4.0


@dataclass(frozen=True)
class CheckResult:
    """What a small victim reaches on held-out clean pictures at its best epoch, in percent.

    `reached` where it was trained on the protected pictures, `clean` where on the originals;
    `chance` is what naming the largest class reaches. `holds`: at least half of the gap between
    clean and chance is closed; None where the clean victim learnt too little to tell.
    """

    arch: str
    seed: int
    epochs: int
    pictures: int  # to train on
    held_out: int
    reached: float
    clean: float
    chance: float

    @property
    def holds(self) -> bool | None:
        gap, share = self.clean - self.chance, self.chance / 100
        deviation = 100 * math.sqrt(share * (1 - share) / max(self.held_out, 1))
        if gap < max(LEAST_POINTS, LEAST_DEVIATIONS * deviation):
            return None
        return self.reached <= self.chance + gap / 2

    def text(self) -> str:
        """For people, in one line."""
        if not self.pictures:
            return "check: says nothing, there are too few pictures of each class"
        if self.holds is None:
            return (
                f"check: says nothing, a small victim ({self.arch}) reaches {self.clean:.0f} % on "
                f"clean pictures, where chance is {self.chance:.0f} %"
            )
        return (
            f"check: a small victim ({self.arch}) reaches {self.reached:.0f} % at its best epoch, "
            f"{self.clean:.0f} % on clean pictures"
            + ("" if self.holds else ": this does not protect")
        )

    def record(self) -> dict[str, Any]:
        """What the manifest holds."""
        return {**asdict(self), "holds": self.holds}

    @classmethod
    def of(cls, record: dict[str, Any]) -> "CheckResult":
        """The reverse of `record`."""
        return cls(**{field.name: record[field.name] for field in fields(cls)})


def check_protection(
    data: ImageDataset,
    perturbation: Perturbation,
    config: Config,
    *,
    before: CheckResult | None = None,
    progress: Callable[[str, int, int, dict], None] = silent,
) -> CheckResult:
    """Train the victim on a part of the protected pictures and on the same originals.

    A function of the data, the noise, the config and the number of threads. `before` is what came
    of an earlier check of the same pictures: an equal victim is not trained on the originals again.
    """
    own_classes = config.protected_classes(data.classes)
    rows, held = draw(data.labels, config.seed, own_classes)
    victim, seed = _victim(config, len(rows))
    about = CheckResult(victim.arch, seed, victim.epochs, len(rows), len(held), 0.0, 0.0, 0.0)
    if not len(rows):
        return about
    train, test = _part(data, rows, rows), _part(data, held, rows)
    own = perturbation.rows(data.labels)[rows.to(data.device)]
    protected = replace(train, images=perturbation.change_pictures(train.images, own))
    if len(own_classes) == data.num_classes:
        chance = int(test.labels.bincount().max()) / len(test)
    else:
        chance = 1 / train.num_classes  # all held-out pictures may be of one identity
    about = replace(about, chance=100 * chance)

    def best(pictures: ImageDataset, name: str) -> float:
        def told(epoch: int, epochs: int, info: dict) -> None:
            progress(f"check, {name}", epoch * len(train), epochs * len(train), info)

        return max(train_victim(pictures, test, victim, seed=seed, progress=told)["accuracy"])

    if before and replace(before, reached=0.0, clean=0.0) == about:
        clean = before.clean
    else:
        clean = best(train, "clean pictures")
    return replace(about, reached=best(protected, "protected pictures"), clean=clean)


def draw(
    labels: Tensor, seed: int, protected: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, int64: of at most CLASSES classes with at least two
    pictures, and of at most PER_CLASS pictures of each. Where only some classes are `protected`,
    half of the classes are of them, if there are so many, and only theirs are held out. Both empty
    where that is no two classes.
    """
    generator, known = keyed_generator(seed, "check-pictures"), labels.cpu().numpy()
    several = np.flatnonzero(np.bincount(known) > 1)
    parts: tuple[list, list] = ([], [])
    several = generator.permutation(several)
    own = np.isin(several, several if protected is None else list(protected))
    first = several[own][: CLASSES if own.all() else CLASSES // 2]
    for label in np.sort(np.concatenate([first, several[~own][: CLASSES - len(first)]])):
        rows = generator.permutation(np.flatnonzero(known == label))[:PER_CLASS]
        cut = max(1, round(HELD_OUT * len(rows)))
        parts[0].append(rows[cut:])
        if label in first:
            parts[1].append(rows[:cut])
    if len(parts[0]) < 2 or not parts[1]:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    train, held = (torch.from_numpy(np.concatenate(part)) for part in parts)
    return train, held


def seconds(data: ImageDataset, labels: Tensor, config: Config) -> float:
    """How long a check takes, about: `data` has some of the pictures and `labels` are those of all.
    An epoch of a few batches is timed.
    """
    rows, _ = draw(labels, config.seed, config.protected_classes(data.classes))
    if not len(rows):
        return 0.0
    victim, seed = _victim(config, len(rows))
    few = torch.arange(min(len(data), len(rows), 3 * victim.batch))
    few = _part(data, few, few)
    start = time.perf_counter()
    train_victim(few, few.subset([0]), replace(victim, epochs=1), seed=seed)
    return (time.perf_counter() - start) * 2 * victim.epochs * len(rows) / len(few)


def _victim(config: Config, pictures: int) -> tuple[VictimConfig, int]:
    """A victim of another architecture than the surrogate's, and a seed other than the method's."""
    surrogate = getattr(config, "arch", "").rpartition(":")[2]
    arch = OTHER_ARCH if surrogate.startswith(ARCH.partition("-")[0]) else ARCH
    precision = "bf16" if getattr(config, "precision", "") == "bf16" else "float32"
    seed = int(keyed_generator(config.seed, "check-victim").integers(1 << 31))
    batch = min(BATCH, max(16, pictures // STEPS_OF_EPOCH))
    epochs = max(EPOCHS, -(-STEPS // max(pictures // batch, 1)))
    return VictimConfig(arch=arch, epochs=epochs, batch=batch, precision=precision), seed


def _part(data: ImageDataset, rows: Tensor, learnt: Tensor) -> ImageDataset:
    """These rows, their classes numbered from 0 among those of the rows `learnt`."""
    part, known = data.subset(rows), data.labels[learnt.to(data.device)].unique()
    labels = torch.searchsorted(known, part.labels)
    return replace(part, labels=labels, classes=[data.classes[k] for k in known.tolist()])
