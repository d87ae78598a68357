"""Whom an authorization lets in, and whom it keeps out: the victims of `--suite authorization`.

Who is authorized has a file: initial weights (`--method uge`) or a key (`--method keyed`). Beside
plain training, of the same architecture from other initial weights and of others, hackers try what
such a file could be replaced by: other weights or patterns (`wrong-key`), their own run of the
method (`other-run`), the authorized network's answers (`distillation`), a network that knows clean
pictures (`fine-tuning`), and what takes noise away (`class-means`, linear projection, grayscale,
JPEG).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue import methods, models
from fastue.core.errors import DataError, UsageError
from fastue.countermeasures import load as countermeasure
from fastue.countermeasures.base import Countermeasure, Means
from fastue.data.dataset import ImageDataset, batches
from fastue.data.keyed import keyed_generator
from fastue.data.layout import KEY_FILE, SURROGATE_FILE
from fastue.data.tensorfile import read_tensors
from fastue.models import authorized
from fastue.models.projection import KeyProjection
from fastue.models.training import autocast, hits, to_input, train_step
from fastue.ops._grain import spread
from fastue.protocol.summary import AUTHORIZED
from fastue.victims.config import VictimConfig
from fastue.victims.train import (
    TEST_BATCH,
    fit,
    new_curves,
    score,
    torch_seeded,
    train_epochs,
)

NAME = "authorization"
OTHERS = {
    "cpu": ("cnn-w16", "resnet10-w8", "vgg11-w8", "resnet18-w8"),
    "cuda": ("resnet18", "vgg11", "resnet50", "densenet121"),
}
COUNT = 3  # of them, beside the authorized one
Training = Callable[..., tuple[nn.Module, dict]]  # as fastue.victims.train.fit


def file_of(directory: Path, manifest: dict) -> Path:
    """The file of who is authorized, where `fastue protect` wrote it. Raises UsageError where the
    method authorizes nobody."""
    files = {"uge": SURROGATE_FILE, "keyed": KEY_FILE}
    if manifest["method"] not in files:
        raise UsageError(
            f"--suite {NAME}: {directory} was made by --method {manifest['method']}, which "
            "authorizes nobody; pass --authorized FILE, or use another suite"
        )
    return directory / files[manifest["method"]]


def suite(
    path: Path, archs: tuple[str, ...], device: str, aux: bool
) -> tuple[list[Countermeasure], tuple[str, ...]]:
    """The members for the file `path`, and the networks of the attack, that of who is authorized
    first; `archs` empty: by the device, cpu or cuda. Raises DataError where the file is neither
    weights nor a key."""
    kind = read_tensors(path)[1].get("kind")
    if kind not in ("surrogate", "key"):
        raise DataError(f"{path}: neither initial weights nor a key written by fastue")
    # A result is kept under its version: another file, another result.
    version = int(hashlib.sha256(path.read_bytes()).hexdigest()[:12], 16)
    if kind == "key":
        key = KeyProjection.load(path)
        own = archs or OTHERS[device][: COUNT + 1]
        enter: Training = _with_key(key)
        members = [_member("wrong-key", _trained(_with_key(_random_key(key))), version, own[:1])]
        if aux:
            members.append(_other_run(key, own[:1]))
    else:
        model, about = authorized.load(path)
        others = tuple(name for name in OTHERS[device] if name != about["arch"])[:COUNT]
        own = (about["arch"], *(name for name in archs or others if name != about["arch"]))
        enter = _from_weights(path)
        members = []
        if any(not parameter.requires_grad for parameter in model.parameters()):
            members = [_member("wrong-key", _trained(_other_front(path)), version, own[:1])]
    let_in = own if kind == "key" else own[:1]
    members = [
        _member(AUTHORIZED, _trained(enter), version, let_in),
        countermeasure("none"),
        *members,
        _member("distillation", _distilled(enter), version, own[:1]),
        Countermeasure("class-means", train=_class_means, archs=own[:1]),
        *(
            replace(countermeasure(name), archs=own[:1])
            for name in ("orthogonal-projection", "grayscale", "jpeg")
        ),
    ]
    if aux:
        fine = Countermeasure("fine-tuning", train=_fine_tuned, aux=True, cost=2, archs=own[:1])
        members.append(fine)
    return members, own


def _member(name: str, train: Callable, version: int, archs: tuple[str, ...]) -> Countermeasure:
    return Countermeasure(name, train=train, version=version, archs=archs)


def _trained(training: Training) -> Callable[..., dict]:
    """Its curves, as a countermeasure's training."""

    def train(pictures, test, config, *, means, **options) -> dict:
        return training(pictures, test, config, **options)[1]

    return train


def _from_weights(path: Path) -> Training:
    def training(pictures, test, config, **options):
        return fit(pictures, test, config, model=authorized.load(path)[0], **options)

    return training


def _other_front(path: Path) -> Training:
    """The authorized architecture, its frozen part drawn by another seed."""

    def training(pictures, test, config, *, seed, **options):
        _, about = authorized.load(path)
        model = authorized.authorized(
            config.arch,
            pictures.num_classes,
            pictures.shape[0],
            1000 + seed,
            authorized.frozen_of(about),
        )
        return fit(pictures, test, config, seed=seed, model=model, **options)

    return training


def _with_key(key: KeyProjection) -> Training:
    def training(pictures, test, config, **options):
        return fit(_without(key, pictures), _without(key, test), config, **options)

    return training


def _without(key: KeyProjection, data: ImageDataset) -> ImageDataset:
    return replace(data, images=key.to(data.device).pictures(data.images))


def _random_key(key: KeyProjection) -> KeyProjection:
    """As many random patterns, on squares as large."""
    grain = key.about["grain"]
    c, h, w = key.mean.shape
    shape = (len(key.base), c, -(-h // grain), -(-w // grain))
    drawn = keyed_generator(0, "wrong-key").standard_normal(shape)
    return KeyProjection(spread(torch.from_numpy(drawn).float(), grain, h, w), key.mean)


def _other_run(key: KeyProjection, archs: tuple[str, ...]) -> Countermeasure:
    """The key of a run of the hacker's own, on the pictures he has."""

    def train(pictures, test, config, *, seed, means: Means, **options) -> dict:
        keyed = methods.get("keyed")
        settings = methods.configure("keyed", {"seed": 1000 + seed, "grain": key.about["grain"]})
        noise = keyed.make(means.aux, settings.on(means.aux.device))
        from fastue.methods.keyed import mean_picture, patterns

        c, h, w = pictures.shape
        shown = spread(patterns(means.aux, noise), noise.grain, h, w).float()
        own = KeyProjection(shown, mean_picture(pictures))
        return _with_key(own)(pictures, test, config, seed=seed, **options)[1]

    return Countermeasure("other-run", train=train, aux=True, cost=4, archs=archs)


def _class_means(pictures, test, config, *, means, **options) -> dict:
    """Without the span of what the classes of the protected pictures are on average."""
    count = torch.bincount(pictures.labels, minlength=pictures.num_classes).clamp_min(1)
    sums = torch.zeros(pictures.num_classes, *pictures.shape, device=pictures.device)
    for x, y, _ in batches(pictures, TEST_BATCH):
        sums.index_add_(0, y, x.float())
    found = sums / count.view(-1, 1, 1, 1)
    mean = sums.sum(0) / len(pictures)
    return _with_key(KeyProjection(found - mean, mean / 255))(pictures, test, config, **options)[1]


def _distilled(enter: Training) -> Callable[..., dict]:
    """A network of other initial weights learns the answers of the authorized one, trained, to the
    protected pictures."""

    def train(pictures, test, config, *, seed, step, means, progress) -> dict:
        teacher, _ = enter(pictures, test, config, seed=seed, step=step, progress=progress)
        answers = _answers(teacher, pictures, config)
        rows = torch.arange(len(pictures), device=pictures.device)
        indexed = replace(pictures, labels=rows, classes=list(pictures.ids))

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            return F.cross_entropy(logits, answers[rows])

        def learn(model, optimizer, x, rows, **settings) -> Tensor:
            return train_step(model, optimizer, x, rows, loss=loss, **settings)

        model = models.build(config.arch, pictures.num_classes, pictures.shape[0], seed=seed)
        model = model.to(pictures.device, memory_format=torch.channels_last)
        curves = new_curves()
        with torch_seeded(seed, pictures.device):
            for value in train_epochs(model, indexed, config, seed=seed, step=learn):
                curves["loss"].append(round(value, 4))
                score(curves, hits(model, batches(test, TEST_BATCH), precision=config.precision))
        right = hits(model, batches(pictures, TEST_BATCH), precision=config.precision)
        curves["train_accuracy"].append(round(100 * float(right.float().mean()), 3))
        return curves

    return train


@torch.no_grad()
def _answers(teacher: nn.Module, pictures: ImageDataset, config: VictimConfig) -> Tensor:
    """Probabilities float32 [N, K]."""
    teacher.eval()
    found = []
    for x, _, _ in batches(pictures, TEST_BATCH):
        with autocast(x.device, config.precision):
            found.append(teacher(to_input(x)).float().softmax(1))
    return torch.cat(found)


def _fine_tuned(pictures, test, config, *, seed, step, means: Means, progress) -> dict:
    """From weights that have learnt the auxiliary pictures, at a tenth of the rate."""
    options = {"seed": seed, "step": step, "progress": progress}
    model, _ = fit(means.aux, test, config, **options)
    return fit(pictures, test, replace(config, lr=config.lr / 10), model=model, **options)[1]
