"""ghost_pair in plain PyTorch: the definition."""

import torch


def ghost_pair(a, e, a2, e2):
    """(|G|^2, <G, D>, |D|^2) of G = e a^T and D = e2 a2^T - G; see fastue.ops.ghost_pair."""
    a, e, a2, e2 = a.double(), e.double(), a2.double(), e2.double()
    da, de = a2 - a, e2 - e

    def pair(x, y, u, v):  # <u x^T, v y^T>
        return ((x.mT @ y) * (u.mT @ v)).sum((1, 2))

    # D = e2 da^T + de a^T
    n = pair(a, a, e, e)
    q = pair(a, da, e, e2) + pair(a, a, e, de)
    m = pair(da, da, e2, e2) + 2 * pair(da, a, e2, de) + pair(a, a, de, de)
    return torch.stack([n, q, m], 1)
