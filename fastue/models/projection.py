"""The frozen layer that takes keyed noise out of pictures: see fastue.methods.keyed."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from fastue.core.errors import DataError
from fastue.data.tensorfile import read_tensors, write_tensors
from fastue.ops._grain import spread

_KIND = "key"
_BLOCK = 1024  # pictures whose float32 copy is in memory at a time


class KeyProjection(nn.Module):
    """Takes the noise of `fastue protect --method keyed` out of pictures, for who has its key.

        key = fastue.KeyProjection.load("protected/key.safetensors")
        logits = network(augment(key(pictures)))

    It belongs in front of every augmentation, in training and in use: a crop moves the noise away
    from where the key says it is. It holds no parameters, so no training changes it; `.to(device)`
    moves it.

    patterns  the noise, one pattern a row, [K,C,H,W], of any scale: what lies in their span is
              removed, x - QQ'(x - mean) with Q an orthonormal base of it
    mean      a picture float32 [C,H,W] in [0,1] that passes as it is: without one the projection
              would take out of every picture what all of them share
    about     what the key file says: method, classes, source_fingerprint
    """

    def __init__(self, patterns: Tensor, mean: Tensor, about: dict | None = None):
        super().__init__()
        rows = patterns.detach().flatten(1).double()
        # From the Gram matrix, which is small. Patterns may be zero, or each other's copies.
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        kept = values > 1e-9 * values.amax().clamp_min(1e-300)
        base = (vectors[:, kept] / values[kept].sqrt()).T @ rows
        self.register_buffer("base", base.float())
        self.register_buffer("mean", mean.detach().float().clone())
        self.about = about or {}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeyProjection:
        """The layer of a key file. Raises DataError where it is none, or damaged."""
        tensors, about = read_tensors(path)
        if about.get("kind") != _KIND:
            raise DataError(f"{path}: no key; fastue protect --method keyed writes key.safetensors")
        mean = tensors["mean"]
        return cls(spread(tensors["patterns"], about["grain"], *mean.shape[1:]), mean, about)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures uint8 [B,C,H,W], or float in [0,1], without what the noise may have put there:
        in [0,1] pixel units (a little may lie outside of it), in the dtype of a float x, else
        float32; the memory format stays. Raises DataError for pictures of another size.
        """
        if x.shape[1:] != self.mean.shape:
            raise DataError(
                f"pictures of {list(x.shape[1:])} do not fit a key of {list(self.mean.shape)}: it "
                "belongs in front of cropping and resizing"
            )
        pixels = x.float() if x.is_floating_point() else x.float() / 255
        with torch.autocast(x.device.type, enabled=False):  # noise is small beside the pictures
            seen = (pixels - self.mean).flatten(1) @ self.base.T
            cleared = pixels - (seen @ self.base).view(x.shape)
        return cleared.to(x.dtype) if x.is_floating_point() else cleared

    @torch.no_grad()
    def pictures(self, images: Tensor) -> Tensor:
        """The same for pictures uint8 [N,C,H,W] that are to be kept: rounded and cut to uint8."""
        out = torch.empty_like(images)
        for start in range(0, len(images), _BLOCK):
            part = slice(start, start + _BLOCK)
            out[part] = self(images[part]).mul_(255).round_().clamp_(0, 255)
        return out


def save_key(path: Path, patterns: Tensor, mean: Tensor, *, grain: int, **about) -> None:
    """Write a key: patterns int8 [K,C,h,w] shown on squares of `grain` x `grain` pixels, mean
    float32 [C,H,W] in [0,1]; `about` (JSON) says whose it is."""
    state = {"kind": _KIND, "grain": grain, **about}
    write_tensors(path, {"patterns": patterns, "mean": mean}, state)
