"""Clean and perturbed gradients of one layer, sample by sample, without keeping them.

Of a layer with input a and error e = dloss/doutput the clean gradient is g = e a^T, summed over
positions; h is that of a2, e2. A pair gives the triple of each sample

    n = |g|^2    q = <g, h - g>    m = |h - g|^2                       float64 [B, 3]

in which nothing cancels, and for a cotangent v = qbar g + 2 mbar (h - g) of h those of a2 and e2.
With d = h - g = e2 (a2 - a)^T + (e2 - e) a^T there are two ways, p and d numbers at each of T
positions:

    materialised  g and d are made for some samples at a time          5 T p d multiplications
    ghost         Grams over positions: <g, g> = sum (a^T a) o (e^T e)   5 T^2 (p + d)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.matching.layers import LINEAR, Layer, embedded, is_last, normalised, padded

# Bytes of unfolded input that are worked on at a time: what a CPU's caches hold, what fills a GPU.
CHUNK = {"cpu": 4 << 20}
CHUNK_ELSEWHERE = 256 << 20


def pair(layer: Layer, form: str | None, clean: tuple, perturbed: tuple) -> "Pair":
    """`clean` and `perturbed` are (input, error) of the layer; the errors have a first axis of
    samples."""
    kinds = {nn.Embedding: Tokens}
    if type(layer.module) in LINEAR:
        kind = Linear
    elif isinstance(layer.module, (nn.Conv1d, nn.Conv2d)):
        kind = Convolution
    else:
        kind = kinds.get(type(layer.module), Norm)
    return kind(layer, form, *clean, *perturbed)


class Pair:
    """`triple` float64 [B, 3] and `cotangents(qbar, mbar)`; `a2` is what the first of them is of."""

    triple: Tensor
    a2: Tensor


class Matrices(Pair):
    """Of a layer that multiplies a matrix: unfolded input [N, d, T], error [N, p, T] with N = B
    groups."""

    def __init__(
        self, layer: Layer, form: str | None, a: Tensor, e: Tensor, a2: Tensor, e2: Tensor
    ):
        self.layer = layer
        self.prepare(a, a2)
        self.e, self.e2 = e, e2.detach()
        self.raw2 = self.a2.detach()
        self.form = form
        self.kept = []
        triples = []
        for rows in self._chunks():
            triple, kept = self._forward(rows)
            triples.append(triple)
            self.kept.append((rows, kept))
        self.triple = torch.cat(triples)

    def prepare(self, a: Tensor, a2: Tensor) -> None:
        self.a, self.a2 = a, a2

    def _chunks(self):
        one = self.columns(self.raw2[:1])
        errors = self.errors(self.e2[:1])
        groups, depth, width = one.shape
        outs = errors.shape[1]
        self.sizes = groups, width, outs, depth
        if self.form is None:
            ghost = width * (outs + depth) <= outs * depth
            self.form = "ghost" if ghost else "materialised"
        size = one.numel() + errors.numel()
        if self.form == "ghost":
            size += 6 * groups * width * width
        limit = CHUNK.get(one.device.type, CHUNK_ELSEWHERE)
        step = max(1, limit // (size * one.element_size()))
        samples = len(self.e2)
        return [slice(at, min(at + step, samples)) for at in range(0, samples, step)]

    def _forward(self, rows: slice) -> tuple[Tensor, tuple]:
        a, e, e2 = self.a[rows], self.errors(self.e[rows]), self.errors(self.e2[rows])
        difference = self.raw2[rows] - a
        de = e2 - e
        count, groups = len(a), self.sizes[0]
        total = a.new_zeros(count, 3, dtype=torch.float64)
        kept = None
        if self.layer.weight:
            a, da = self.columns(a), self.columns(difference)
            if self.form == "ghost":
                triple, kept = ghost(a, da, e, de)
            else:
                g = e @ a.mT
                d = torch.baddbmm(de @ a.mT, e2, da.mT)
                triple, kept = _triple(g, d), (g, d)
            total += triple.view(count, groups, 3).sum(1)
        bias = None
        if self.layer.bias:
            bias = e.sum(2), de.sum(2)
            total += _triple(*bias).view(count, groups, 3).sum(1)
        return total, (kept, bias)

    def cotangents(self, qbar: Tensor, mbar: Tensor) -> tuple[Tensor | None, Tensor]:
        """Those of a2, if it is wanted, and of e2; qbar and mbar are float64 [B]."""
        wanted = self.a2.requires_grad and self.layer.weight
        of_a = torch.empty_like(self.raw2) if wanted else None
        of_e = torch.empty_like(self.e2)
        qbar, mbar = qbar.to(of_e.dtype), mbar.to(of_e.dtype)
        groups = self.sizes[0]
        while self.kept:
            rows, (kept, bias) = self.kept.pop()
            al = qbar[rows].repeat_interleave(groups).view(-1, 1, 1)
            be = 2 * mbar[rows].repeat_interleave(groups).view(-1, 1, 1)
            e2 = self.errors(self.e2[rows])
            out = None
            if kept is not None:
                if self.form == "ghost":
                    e = self.errors(self.e[rows])
                    a, da = self.columns(self.a[rows]), self.columns(self.raw2[rows] - self.a[rows])
                    inner, out = ghost_cotangents(kept, a, da, e, e2, al, be, wanted)
                else:
                    g, d = kept
                    v = al * g + be * d
                    inner = v.mT @ e2 if wanted else None
                    out = v @ self.columns(self.raw2[rows])
                if wanted:
                    of_a[rows] = self.fold(inner, self.raw2[rows])
            if bias is not None:
                gb, db = bias
                more = (al[:, 0] * gb + be[:, 0] * db).unsqueeze(2)
                out = more.expand_as(e2) if out is None else out + more
            self.unerrors(out, of_e[rows])
        return of_a, of_e


class Linear(Matrices):
    def columns(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, x.shape[-1]).mT

    errors = columns

    def fold(self, x: Tensor, like: Tensor) -> Tensor:
        return x.mT.reshape(like.shape)

    def unerrors(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x.mT.reshape(out.shape))


class Convolution(Matrices):
    def prepare(self, a: Tensor, a2: Tensor) -> None:
        conv = self.layer.module
        one = isinstance(conv, nn.Conv1d)
        self.groups = conv.groups
        self.a, padding = padded(conv, a)
        self.a2, _ = padded(conv, a2)
        lead = (1,) if one else ()
        self.how = dict(
            kernel_size=(*lead, *conv.kernel_size), dilation=(*lead, *conv.dilation),
            padding=padding, stride=(*lead, *conv.stride),
        )  # fmt: skip
        self.pointwise = self.how["kernel_size"] == (1, 1) and padding == (0, 0)

    def columns(self, x: Tensor) -> Tensor:
        if self.pointwise:
            down, right = self.how["stride"]
            x = x[:, :, ::down, ::right].flatten(2)
        else:
            x = F.unfold(x, **self.how)
        return x.reshape(len(x) * self.groups, -1, x.shape[2])

    def errors(self, x: Tensor) -> Tensor:
        return x.reshape(len(x) * self.groups, x.shape[1] // self.groups, -1)

    def fold(self, x: Tensor, like: Tensor) -> Tensor:
        x = x.reshape(len(like), -1, x.shape[2])
        if not self.pointwise:
            return F.fold(x, like.shape[2:], **self.how)
        whole = torch.zeros_like(like)
        down, right = self.how["stride"]
        part = whole[:, :, ::down, ::right]
        part.copy_(x.view(part.shape))
        return whole

    def unerrors(self, x: Tensor, out: Tensor) -> None:
        out.copy_(x.reshape(out.shape))


class Norm(Pair):
    """Of a norm's weight and bias, whose gradients are vectors [B, C]."""

    def __init__(
        self, layer: Layer, form: str | None, a: Tensor, e: Tensor, a2: Tensor, e2: Tensor
    ):
        module = layer.module
        self.layer, self.form, self.like = layer, "vector", e2
        self.channels = len(module.normalized_shape) if is_last(module) else 1
        self.a2 = normalised(module, a2)
        x, x2 = self._view(normalised(module, a)), self._view(self.a2.detach())
        e, self.e2, self.x2 = self._view(e), self._view(e2.detach()), x2
        de = self.e2 - e
        self.triple, self.parts = 0, []
        self.sizes = 1, x.shape[self.axis], 1, x.shape[3 - self.axis]
        if layer.weight:
            g = (e * x).sum(self.axis)
            d = torch.addcmul(de * x, self.e2, x2 - x).sum(self.axis)
            self.triple = _triple(g, d)
            self.parts.append((g, d))
        if layer.bias:
            g, d = e.sum(self.axis), de.sum(self.axis)
            self.triple = self.triple + _triple(g, d)
            self.parts.append((g, d))

    def _view(self, x: Tensor) -> Tensor:
        """[B, positions, C] or [B, C, positions], whichever copies nothing."""
        if is_last(self.layer.module):
            self.axis = 1
            return x.flatten(x.dim() - self.channels).reshape(
                len(x), -1, x[0].numel() // max(1, self._positions(x))
            )
        self.axis = 2
        return x.reshape(len(x), x.shape[1], -1)

    def _positions(self, x: Tensor) -> int:
        return x.shape[1 : x.dim() - self.channels].numel()

    def cotangents(self, qbar: Tensor, mbar: Tensor) -> tuple[Tensor | None, Tensor]:
        al, be = qbar.to(self.e2.dtype)[:, None], 2 * mbar.to(self.e2.dtype)[:, None]
        vs = [(al * g + be * d).unsqueeze(self.axis) for g, d in self.parts]
        of_a = of_e = None
        if self.layer.weight:
            v = vs.pop(0)
            of_a = (v * self.e2).view(self.like.shape) if self.a2.requires_grad else None
            of_e = v * self.x2
        if self.layer.bias:
            v = vs.pop(0)
            of_e = v.expand_as(self.e2) if of_e is None else of_e + v
        return of_a, of_e.reshape(self.like.shape)


class Tokens(Pair):
    """Of an embedding: the Gram of two inputs says where they are the same token."""

    def __init__(
        self, layer: Layer, form: str | None, a: Tensor, e: Tensor, a2: Tensor, e2: Tensor
    ):
        self.layer, self.form, self.like = layer, "ghost", e2
        self.a2 = e2.new_zeros(0)  # a token has no gradient
        a, a2 = a.reshape(len(e), -1), a2.reshape(len(e), -1)
        e = self._view(e)
        self.e, self.e2 = e, self._view(e2.detach())
        self.sizes = 1, a.shape[1], e.shape[1], layer.module.num_embeddings
        aa, ab, bb = (
            embedded(layer.module, one, two).to(e.dtype) for one, two in ((a, a), (a, a2), (a2, a2))
        )
        ad = ab - aa
        self.triple, self.kept = gram_triple(aa, ad, bb - ab - ad.mT, *error_grams(e, self.e2 - e))

    def _view(self, e: Tensor) -> Tensor:
        return e.reshape(len(e), -1, e.shape[-1]).mT

    def cotangents(self, qbar: Tensor, mbar: Tensor) -> tuple[None, Tensor]:
        al, be = (x.to(self.e.dtype).view(-1, 1, 1) for x in (qbar, 2 * mbar))
        _, of_e = ghost_cotangents(self.kept, None, None, self.e, self.e2, al, be, False)
        return None, of_e.mT.reshape(self.like.shape)


def _triple(g: Tensor, d: Tensor) -> Tensor:
    """[N, ...] twice -> float64 [N, 3]."""
    g, d = g.flatten(1), d.flatten(1)
    parts = ((x * y).sum(1, dtype=torch.float64) for x, y in ((g, g), (g, d), (d, d)))
    return torch.stack(list(parts), 1)


def error_grams(e: Tensor, de: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return e.mT @ e, e.mT @ de, de.mT @ de


def ghost(a: Tensor, da: Tensor, e: Tensor, de: Tensor) -> tuple[Tensor, tuple]:
    """Triple and Grams, for [N, d, T] twice and [N, p, T] twice."""
    return gram_triple(*error_grams(a, da), *error_grams(e, de))


def gram_triple(aa, ad, dd, ee, ed, dede) -> tuple[Tensor, tuple]:
    """From the Grams over positions of (a, da), where d is da, and of (e, de)."""
    both = ee + ed  # e, e2
    n = _sum(aa, ee)
    q = _sum(ad, both) + _sum(aa, ed)
    m = _sum(dd, both + ed.mT + dede) + _sum(aa, dede) + 2 * _sum(ad, (ed + dede).mT)
    return torch.stack([n, q, m], 1), (aa, ad, dd, ee, ed, dede)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1, dtype=torch.float64)


def ghost_cotangents(
    grams: tuple, a: Tensor, da: Tensor, e: Tensor, e2: Tensor, al: Tensor, be: Tensor, wanted: bool
) -> tuple[Tensor | None, Tensor]:
    """v^T e2 if it is wanted, and v a2, of v = al g + be d."""
    aa, ad, dd, ee, ed, dede = grams
    of_a = None
    if wanted:
        both = ee + ed
        of_a = a @ (al * both + be * (ed.mT + dede)) + da @ (be * (both + ed.mT + dede))
    of_e = (al * e + be * (e2 - e)) @ (aa + ad) + e2 @ (be * (ad.mT + dd))
    return of_a, of_e
