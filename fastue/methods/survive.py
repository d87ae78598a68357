"""What an adversary may do to pictures, inside the search: noise made under these transforms is
there after them.

In every batch, of the surrogate's training and of the noise steps, half of the pictures are left
as they are and each of the others goes through one of the transforms, by a draw for each (use,
number, picture). The gradient goes back through the same transform; rounding lets it pass
unchanged (straight through).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastue.data.keyed import keyed_generator
from fastue.ops import _keyed

# ITU-R 601-2, as Pillow's convert("L") and JPEG have it.
_LUMA = (0.299, 0.587, 0.114)
_CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_BACK = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# The tables of ITU-T T.81, annex K.
_LUMA_TABLE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113,
    92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA_TABLE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32,
)  # fmt: skip


def gray(x: Tensor) -> Tensor:
    """Luma in all channels; x float [B,C,H,W] in [0,1], as everywhere here. One channel stays."""
    if x.shape[1] == 1:
        return x
    weights = x.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def blur(x: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian, 3 x 3; the border is repeated."""
    ring = torch.exp(torch.tensor([-0.5, 0.0, -0.5], dtype=x.dtype) / sigma**2)
    ring = (ring / ring.sum()).to(x.device)
    kernel = (ring[:, None] * ring).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])


def jpeg(x: Tensor, quality: int = 30) -> Tensor:
    """Through the quantisation of a JPEG file, 4:2:0."""
    h, w = x.shape[2:]
    size = 16 if x.shape[1] == 3 else 8
    full = F.pad(x * 255, (0, -w % size, 0, -h % size), mode="replicate")
    if x.shape[1] == 1:
        planes = _quantised(full - 128, _LUMA_TABLE, quality) + 128
    else:
        luma = (full * full.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        colour = torch.einsum("kc,bchw->bkhw", full.new_tensor(_CHROMA), full)
        luma = _quantised(luma - 128, _LUMA_TABLE, quality) + 128
        colour = _quantised(F.avg_pool2d(colour, 2), _CHROMA_TABLE, quality)
        colour = F.interpolate(colour, scale_factor=2, mode="bilinear")
        planes = torch.einsum("kc,bchw->bkhw", full.new_tensor(_BACK), torch.cat([luma, colour], 1))
    return _rounded(planes[..., :h, :w].clamp(0, 255)) / 255


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"gray": gray, "jpeg": jpeg, "blur": blur}


def transformed(
    noisy: Tensor, chosen: Sequence[str], index: Tensor, *, seed: int, use: str, number: int
) -> Tensor:
    """Pictures float [B,C,H,W] as the search sees them, differentiable in `noisy`.

    index int64 [B] is the row of each, by which the draw is keyed.
    """
    key = int(keyed_generator(seed, f"survive {use}").integers(2**63))
    words = _keyed.philox((index & 0xFFFFFFFF, index >> 32, number & 0xFFFFFFFF, 0), key)
    kind = words[1] * len(chosen) >> 32
    kind = torch.where(words[0] >> 31 == 1, kind, -1)
    seen = noisy
    for k, name in enumerate(chosen):
        seen = torch.where(
            (kind == k).view(-1, 1, 1, 1), TRANSFORMS[name](noisy.float()).to(noisy.dtype), seen
        )
    return seen.contiguous(memory_format=torch.channels_last)


def pulled_back(
    noisy: Tensor,
    see: Callable[[Tensor], Tensor],
    gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """What `gradient` gives for see(noisy), with the gradient taken back to `noisy`."""
    leaf = noisy.detach().requires_grad_()
    with torch.enable_grad():
        seen = see(leaf)
    of_seen, right = gradient(seen.detach())
    (back,) = torch.autograd.grad(seen, leaf, of_seen.to(seen.dtype))
    return back.contiguous(memory_format=torch.channels_last), right


def _quantised(plane: Tensor, table: Sequence[int], quality: int) -> Tensor:
    """8 x 8 blocks of plane [B,K,H,W] to steps of the table's in their cosine transform, and back."""
    b, k, h, w = plane.shape
    place = torch.arange(8, dtype=plane.dtype, device=plane.device)
    basis = torch.cos((2 * place + 1) * place[:, None] * (torch.pi / 16)) / 2
    basis[0] /= 2**0.5
    blocks = plane.view(b, k, h // 8, 8, w // 8, 8)
    steps = _steps(table, quality).to(plane).view(8, 1, 8)
    waves = torch.einsum("ui,vj,bkyixj->bkyuxv", basis, basis, blocks)
    waves = _rounded(waves / steps) * steps
    return torch.einsum("ui,vj,bkyuxv->bkyixj", basis, basis, waves).reshape(b, k, h, w)


def _steps(table: Sequence[int], quality: int) -> Tensor:
    """Of the IJG code: the table scaled by the quality, 1 to 100."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table) * percent + 50) // 100).clamp(1, 255).float()


def _rounded(t: Tensor) -> Tensor:
    return t + (t.round() - t).detach()
