"""weight_noise in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks, _keyed


def weight_noise(base, table, draws, out, sigma, seed, purpose):
    """out[k] = base + sigma * z(draws[k]); see fastue.ops.weight_noise."""
    block, parameter = table & 0xFFFFFFFF, table >> 32 & 0xFFFFFFFF
    _checks.rows("weight_noise", "draws", draws, 2**32)
    _checks.rows("weight_noise", "block of table", block, 2**28)
    counter = 16 * block[:, None] + torch.arange(16, device=base.device)  # [blocks, 16]
    for k in range(len(draws)):
        words = _keyed.philox((counter, parameter[:, None], draws[k], purpose), seed)
        # [blocks, 4, 16]: element i of a block is z[i // 16] of i % 16
        z = torch.stack(_keyed.normals(words), dim=1)
        out[k] = base + sigma * z.view(-1).to(base.dtype)
