"""Random crop and flip of whole batches, keyed by row: no matter how the batches are split."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fastue.data.keyed import keyed_generator


def crop_flip(
    x: Tensor, index: Tensor, *, seed: int, epoch: int, pad: int = 4, rows: int | None = None
) -> Tensor:
    """Zero-pad by `pad`, cut a random window of the old size, flip half of the pictures.

    x any dtype [B,C,H,W], index int64 [B] (row in the data set) -> same dtype and shape,
    channels_last, new memory. The draw for a row depends on (seed, epoch, row) only. `rows` is the
    length of the data set; without it the largest index is read, which makes an accelerator wait.
    """
    if rows is None:
        rows = int(index.max()) + 1 if len(index) else 0
    b, c, h, w = x.shape
    padded = x.new_zeros(b, h + 2 * pad, w + 2 * pad, c)
    padded[:, pad : pad + h, pad : pad + w] = x.permute(0, 2, 3, 1)
    if not x.numel():
        return padded[:, pad : pad + h, pad : pad + w].permute(0, 3, 1, 2)
    # The table is made once an epoch, in sizes that grow by doubling so that it serves batches of
    # rising index too.
    table = _draws(seed, epoch, pad, 1 << max(rows - 1, 1).bit_length(), x.device)
    down, right, flip = table.index_select(1, index.to(x.device)).unbind()

    # Each output row is one contiguous run of w*c values in the padded batch, so the crop is a
    # gather of runs.
    width = w + 2 * pad
    runs = padded.view(-1).as_strided(((padded.numel() - w * c) // c + 1, w * c), (c, 1))
    top = torch.arange(b, device=x.device) * (h + 2 * pad) + down
    row = top[:, None] + torch.arange(h, device=x.device)
    out = runs.index_select(0, (row * width + right[:, None]).view(-1)).view(b, h, w, c)
    if x.device.type == "cpu":
        flipped = flip.nonzero()[:, 0]
        out.index_copy_(0, flipped, out.index_select(0, flipped).flip(2))
    else:  # counting the flipped pictures would make the host wait
        out = torch.where(flip.bool()[:, None, None, None], out.flip(2), out)
    return out.permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def _draws(seed: int, epoch: int, pad: int, rows: int, device: torch.device) -> Tensor:
    """int64 [3, rows]: offset down and right in [0, 2*pad], flip in {0, 1}.

    Longer tables begin like shorter ones.
    """
    # One 64-bit word a row, taken raw, so that a row's draw does not depend on how many rows are
    # drawn.
    words = keyed_generator(seed, "crop_flip", epoch).bit_generator.random_raw(rows)
    sides = np.uint64(2 * pad + 1)
    part = np.uint64(0xFFFFFF)
    down = (words & part) * sides >> np.uint64(24)
    right = (words >> np.uint64(24) & part) * sides >> np.uint64(24)
    flip = words >> np.uint64(63)
    return torch.from_numpy(np.stack((down, right, flip)).astype(np.int64)).to(device)
