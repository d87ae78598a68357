"""What an adversary does to protected pictures before or while training on them.

One file each, named like the countermeasure, holding `COUNTERMEASURE`; it is imported when it is
used. A line in the table below is all that the parser, the attack and the report need. A file that
has a strength to choose holds `variant(strength)` as well: `jpeg-30` is variant("30") of jpeg.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastue.core.errors import UsageError

if TYPE_CHECKING:  # the table is read for `fastue attack --help`, which must not wait for torch
    from fastue.countermeasures.base import Countermeasure

SUMMARIES = {
    "none": "train on the pictures as they are",
    "adversarial": "adversarial training, PGD L-inf 8/255; adversarial-4: 4/255; adversarial-l2: L2 1.0",
    "grayscale": "colour taken out of the training pictures",
    "jpeg": "training pictures encoded as JPEG of quality 10",
    "bit-depth": "two bits a channel kept",
    "blur": "Gaussian blur, kernel 3, sigma 1",
    "resize": "halved and enlarged again",
    "cutout": "a hole of half a side in every training picture",
    "mixup": "training pictures blended in pairs, and their labels",
    "cutmix": "boxes of other training pictures pasted in, labels mixed by area",
    "randaugment": "two random operations on each training picture",
    "trivialaugment": "one random operation on each training picture",
    "ueraser": "strong augmentations, the worst of five at first; ueraser-lite: one; ueraser-max: five",
    "orthogonal-projection": "what a linear model sees of the classes is taken out",
    "dvae": "training pictures through an autoencoder trained on themselves (D-VAE)",
    "oneshot": "training pictures noised and denoised in one call of a diffusion model",
    "avatar": "training pictures purified by a diffusion model from t = 100 (AVATAR)",
    "jcdp": "training pictures purified four times from t = 20, guided by themselves (JCDP)",
    "dfr": "the last layer fitted anew to auxiliary pictures",
    "recovery": "weights moved to fit auxiliary pictures, within L2 balls of several sizes",
    "dilution": "as many clean pictures (--aux) as 10 % of the set added",
    "simclr": "features learnt without labels, then a linear layer",
}
# What else victims of `--suite authorization` may do: fastue.protocol.authorization.
AUTHORIZATION = {
    "authorized": "who has the initial weights or the key",
    "wrong-key": "other patterns, or a frozen part of other weights, in place of the key",
    "other-run": "the key of a run of the hacker's own",
    "distillation": "trained on the authorized network's answers to the protected pictures",
    "fine-tuning": "from weights that have learnt the auxiliary pictures",
    "class-means": "what the classes are on average is taken out",
}
QUICK = ("none", "grayscale", "jpeg", "bit-depth", "blur", "orthogonal-projection")
STANDARD = (
    *QUICK,
    *("adversarial", "cutout", "mixup", "cutmix", "trivialaugment", "ueraser-lite"),
)
VARIANTS = ("adversarial-4", "adversarial-l2", "ueraser-lite", "ueraser-max")
SUITES = {
    "none": ("none",),
    "quick": QUICK,
    "standard": STANDARD,
    "full": (*SUMMARIES, *VARIANTS),
}


def load(name: str) -> Countermeasure:
    """The countermeasure of this name. Raises UsageError, with the list, where there is none."""
    family = family_of(name)
    if family is None:
        raise UsageError(
            f"--suite {name}: unknown. Use one of {', '.join(SUITES)}, "
            f"or some of {', '.join(SUMMARIES)}, separated by commas"
        )
    module = importlib.import_module(f"fastue.countermeasures.{family.replace('-', '_')}")
    if family == name:
        return module.COUNTERMEASURE
    try:
        return module.variant(name.removeprefix(f"{family}-"))
    except AttributeError:
        raise UsageError(f"--suite {name}: {family} has no strength to choose") from None
    except UsageError as error:
        raise UsageError(f"--suite {name}: {error}") from None


def family_of(name: str) -> str | None:
    """The name in the table of which this is a variant (jpeg of jpeg-30), or the name itself; None
    where there is none."""
    while name and name not in SUMMARIES:
        name = name.rpartition("-")[0]
    return name or None


def suite(spec: str | Sequence[str | Countermeasure]) -> list[Countermeasure]:
    """`quick`, `none`, `jpeg,grayscale`, or a list of names and of your own Countermeasures.

    Raises UsageError for an unknown name, or where two would go by the same one.
    """
    if isinstance(spec, str):
        words = [word.strip() for word in spec.split(",") if word.strip()]
        spec = [name for word in words for name in SUITES.get(word, (word,))]
    members = [load(member) if isinstance(member, str) else member for member in spec]
    if not members:
        raise UsageError("--suite: the list is empty; `none` trains on the pictures as they are")
    by_name = {member.name: member for member in members}  # the last of a name
    for member in members:
        # A result is kept under the name, so a name must stand for one thing only.
        namesake = load(member.name) if family_of(member.name) else by_name[member.name]
        if member != namesake:
            raise UsageError(f"--suite: two countermeasures are called {member.name}; rename yours")
    return list(by_name.values())
