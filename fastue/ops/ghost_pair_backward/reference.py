"""ghost_pair_backward in plain PyTorch: the definition."""


def ghost_pair_backward(grad, a, e, a2, e2):
    """V^T e2 and V a2 of V = q G + 2 m D, where grad has the columns (., q, m); see
    fastue.ops.ghost_pair_backward."""
    q, m2 = grad[:, 1, None, None].to(a.dtype), 2 * grad[:, 2, None, None].to(a.dtype)

    def side(x, x2, y, y2):
        dx, dy = x2 - x, y2 - y
        return x @ (q * (y.mT @ y2) + m2 * (dy.mT @ y2)) + dx @ (m2 * (y2.mT @ y2))

    return side(a, a2, e, e2), side(e, e2, a, a2)
