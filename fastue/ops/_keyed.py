"""Keyed draws in plain PyTorch: Philox-4x32-10, and the crop and flip and the normal numbers made
from it.

csrc/common/philox.h and normal.h are its twins. A draw is a pure function of (seed, purpose, epoch,
id), (seed, purpose, draw, parameter, element) or (seed, purpose, iteration, t, id, pixel): not of
batch, order, layout, thread, device or rank. The four words of a counter, by purpose:

    CROP_FLIP       id low, id high, epoch, purpose
    WEIGHTS_*       16 * block of 64 elements + lane, parameter, draw, purpose
    DIFFUSION_*     channel * ceil(H*W/4) + pixel // 4, id low, id high, purpose + 2^8 iteration
                    + 2^16 t; makes four neighbouring pixels of a channel
"""

import math

import torch

# Purposes keep the draws of different uses apart. They are part of what a recorded seed means:
# never renumber, and take the next number for a new one. Where C++ (csrc/common/philox.h) or Triton
# (kernels/_common.py) name one, a test compares.
CROP_FLIP = 1
WEIGHTS_CERTIFY = 2
WEIGHTS_TRAIN = 3
WEIGHTS_NOISE_STEP = 4
WEIGHTS_STATISTICS = 5
WEIGHTS_ATTACK = 6
DIFFUSION_START = 7  # pictures that an iteration begins with
DIFFUSION_STEP = 8  # one reverse step
DIFFUSION_COPY = 9  # the noisy copy of the protected pictures that a step is guided by


def _mul(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a*b, unsigned; 16-bit halves, so that no int64 product overflows."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF


def philox(counter: tuple[torch.Tensor | int, ...], seed: int) -> list[torch.Tensor]:
    """Philox-4x32-10 (Salmon et al. 2011). counter: four int64 tensors or ints of 32-bit words;
    four words out."""
    device = next(c.device for c in counter if isinstance(c, torch.Tensor))
    c = list(
        torch.broadcast_tensors(
            *(torch.as_tensor(v, dtype=torch.int64, device=device) for v in counter)
        )
    )
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        high0, low0 = _mul(0xD2511F53, c[0])
        high1, low1 = _mul(0xCD9E8D57, c[2])
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = k0 + 0x9E3779B9 & 0xFFFFFFFF, k1 + 0xBB67AE85 & 0xFFFFFFFF
    return c


def normals(words: list[torch.Tensor]) -> list[torch.Tensor]:
    """Four float64 tensors of standard normal numbers from four words, a pair from each two, by Box
    and Muller.

    40 bits make the radius, so that |z| can reach 7.5, and 24 the angle.
    """

    def pair(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
        u = a.double() * 2.0**-32 + ((b & 255).double() + 0.5) * 2.0**-40
        radius = (-2 * u.log()).sqrt()
        angle = (b >> 8).double() * (2 * math.pi * 2.0**-24)
        return [radius * angle.cos(), radius * angle.sin()]

    return pair(words[0], words[1]) + pair(words[2], words[3])


def picture_normals(
    like: torch.Tensor, ids: torch.Tensor, seed: int, purpose: int, iteration: int, t: int
) -> torch.Tensor:
    """Standard normal numbers for pictures like [B, C, H, W] of these ids, in its dtype."""
    b, c, h, w = like.shape
    quads = -(-h * w // 4)
    words = philox(
        (
            torch.arange(c * quads, device=like.device),
            (ids & 0xFFFFFFFF)[:, None],
            (ids >> 32 & 0xFFFFFFFF)[:, None],
            purpose | iteration << 8 | t << 16,
        ),
        seed,
    )
    z = torch.stack(normals(words), dim=-1)  # [B, C * quads, 4]
    return z.view(b, c, 4 * quads)[..., : h * w].reshape(b, c, h, w).to(like.dtype)


def crop_flip(
    picture: torch.Tensor, ids: torch.Tensor, seed: int, epoch: int, pad: int, flip: bool
) -> torch.Tensor:
    """Crop to the same size from a border of `pad` zeros, and mirror half of the pictures, keyed by
    id.

    picture [B, C, H, W], ids int64 [B]. Zero is black: this comes before mean and std are applied.
    """
    b, _, h, w = picture.shape
    down, right, mirrored = _windows(ids, seed, epoch, pad, flip)
    column = torch.arange(w, device=ids.device).expand(b, w)
    column = torch.where(mirrored[:, None], w - 1 - column, column) + right[:, None]
    row = torch.arange(h, device=ids.device) + down[:, None]
    return _gathered(picture, row, column)


def uncrop_unflip(
    shown: torch.Tensor, ids: torch.Tensor, seed: int, epoch: int, pad: int, flip: bool
) -> torch.Tensor:
    """The way back: what `crop_flip` showed of each pixel, 0 where the pixel was cut away.

    shown [B, C, H, W], a gradient with respect to cropped pictures, say -> the same with respect to
    the pictures.
    """
    b, _, h, w = shown.shape
    down, right, mirrored = _windows(ids, seed, epoch, pad, flip)
    column = torch.arange(w, device=ids.device) - right[:, None]
    column = torch.where(mirrored[:, None], w - 1 - column, column)
    row = torch.arange(h, device=ids.device) - down[:, None]
    return _gathered(shown, row, column)


def cropped(picture, ids, seed, epoch, pad, flip):
    """`crop_flip` where there are ids, else the picture as it is; `uncropped` is the way back."""
    return picture if ids is None else crop_flip(picture, ids, seed, epoch, pad, flip)


def uncropped(shown, ids, seed, epoch, pad, flip):
    return shown if ids is None else uncrop_unflip(shown, ids, seed, epoch, pad, flip)


def _windows(ids: torch.Tensor, seed: int, epoch: int, pad: int, flip: bool):
    """Where each picture's window starts, down and right in [-pad, pad], and whether it is
    mirrored."""
    words = philox((ids & 0xFFFFFFFF, ids >> 32 & 0xFFFFFFFF, epoch & 0xFFFFFFFF, CROP_FLIP), seed)
    down, right = ((word * (2 * pad + 1) >> 32) - pad for word in words[:2])
    mirrored = (words[2] >> 31).bool() if flip else torch.zeros_like(ids, dtype=torch.bool)
    return down, right, mirrored


def _gathered(t: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """t[i, :, row[i, y], column[i, x]], 0 where there is no such pixel; t [B, C, H, W], row [B, H],
    column [B, W]."""
    h, w = t.shape[2:]
    batch = torch.arange(len(t), device=t.device)[:, None, None]
    seen = t[batch, :, row.clamp(0, h - 1)[:, :, None], column.clamp(0, w - 1)[:, None, :]]
    inside = ((row >= 0) & (row < h))[:, :, None] & ((column >= 0) & (column < w))[:, None, :]
    return torch.where(inside[..., None], seen, 0).permute(0, 3, 1, 2)
