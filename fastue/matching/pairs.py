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

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue import ops
from fastue.matching.forwards import convolution_backward
from fastue.matching.layers import (
    CONVOLUTIONS,
    LINEAR,
    Layer,
    embedded,
    is_last,
    normalised,
    padded,
)

# Bytes of unfolded input that are worked on at a time: what a CPU's caches hold, what fills a GPU.
CHUNK = {"cpu": 4 << 20}
CHUNK_ELSEWHERE = 256 << 20


def pair(layer: Layer, form: str | None, clean: tuple, perturbed: tuple) -> "Pair":
    """`clean` and `perturbed` are (input, error) of the layer; the errors have a first axis of
    samples."""
    kind = type(layer.module)
    if kind in LINEAR:
        made: type = Linear
    elif kind in CONVOLUTIONS:
        made = Convolution
    else:
        made = Tokens if kind is nn.Embedding else Norm
    return made(layer, form, *clean, *perturbed)


class Pair:
    """`triple` float64 [B, 3] and `cotangents(qbar, mbar)`; `a2` is what the first of them is of."""

    triple: Tensor
    a2: Tensor


class Matrices(Pair):
    """Of a layer that multiplies a matrix: by `columns` its input is [N, d, T], by `errors` its
    error [N, p, T], with N = B groups."""

    def __init__(
        self, layer: Layer, form: str | None, a: Tensor, e: Tensor, a2: Tensor, e2: Tensor
    ):
        self.layer, self.form, self.shape = layer, form, e2.shape
        self.a, self.a2, self.e, self.e2 = self.prepared(a, a2, e, e2.detach())
        self.raw2 = self.a2.detach()
        self.kept, triples = [], []
        for rows in self._chunks():
            triple, kept = self._forward(rows)
            triples.append(triple)
            self.kept.append((rows, kept))
        self.triple = torch.cat(triples)

    def _chunks(self) -> list[slice]:
        columns, errors = self.columns(self.raw2[:1]), self.errors(self.e2[:1])
        groups, depth, width = columns.shape
        outs = errors.shape[1]
        self.sizes = groups, width, outs, depth
        if self.form is None:
            ghost = width * (outs + depth) <= outs * depth
            self.form = "ghost" if ghost else "materialised"
        size = 2 * (self.raw2[0].numel() + errors.numel())
        if self.form == "ghost" or not self.direct:
            size += 2 * columns.numel()
        limit = CHUNK.get(columns.device.type, CHUNK_ELSEWHERE)
        step = max(1, limit // (size * columns.element_size()))
        samples = len(self.e2)
        return [slice(at, min(at + step, samples)) for at in range(0, samples, step)]

    def _forward(self, rows: slice) -> tuple[Tensor, tuple]:
        a, e, e2 = self.a[rows], self.e[rows], self.e2[rows]
        da, de = self.raw2[rows] - a, e2 - e
        total, kept, sums = 0, None, None
        if self.layer.weight and self.form == "ghost":
            total = ops.ghost_pair(*self._matrices(rows)).view(len(a), -1, 3).sum(1)
        elif self.layer.weight:
            kept = self.gradients(a, da, e, de, e2)
            total = _triple(*kept)
        if self.layer.bias:
            sums = self.summed(e), self.summed(de)
            total = total + _triple(*sums)
        return total, (kept, sums)

    def cotangents(self, qbar: Tensor, mbar: Tensor) -> tuple[Tensor | None, Tensor]:
        """Those of a2, if it is wanted, and of e2; qbar and mbar are float64 [B]."""
        wanted = self.a2.requires_grad and self.layer.weight
        of_a = torch.empty_like(self.raw2) if wanted else None
        of_e = torch.empty_like(self.e2)
        alphas, betas = (bar.to(of_e.dtype).view(-1, 1, 1) for bar in (qbar, 2 * mbar))
        while self.kept:
            rows, (kept, sums) = self.kept.pop()
            al, be = alphas[rows], betas[rows]
            a2, e2 = self.raw2[rows], self.e2[rows]
            inner = out = None
            if self.layer.weight and self.form == "ghost":
                grad = torch.stack([torch.zeros_like(qbar[rows]), qbar[rows], mbar[rows]], 1)
                grad = grad.repeat_interleave(self.sizes[0], 0)
                inner, out = ops.ghost_pair_backward(grad, *self._matrices(rows))
                inner = self.fold(inner, a2) if wanted else None
                out = self.unerrors(out, e2)
            elif self.layer.weight:
                g, d = kept
                inner, out = self.apply(al * g + be * d, a2, e2, wanted)
            if wanted:
                of_a[rows] = inner
            if self.layer.bias:
                g, d = sums
                more = self.spread(al[:, 0] * g + be[:, 0] * d, e2)
                out = more if out is None else out + more
            of_e[rows] = out
        return of_a, of_e.reshape(self.shape)

    def _matrices(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the op ghost_pair."""
        a, e, a2, e2 = self.a[rows], self.e[rows], self.raw2[rows], self.e2[rows]
        return self.columns(a), self.errors(e), self.columns(a2), self.errors(e2)

    direct = False  # whether gradients and apply work without unfolded inputs

    def gradients(self, a: Tensor, da: Tensor, e: Tensor, de: Tensor, e2: Tensor) -> tuple:
        """g and d, [B, p, d] or the same numbers in another shape of three axes."""
        a, da, e, de, e2 = (
            self.columns(a), self.columns(da), self.errors(e), self.errors(de), self.errors(e2),
        )  # fmt: skip
        g, d = e @ a.mT, torch.baddbmm(de @ a.mT, e2, da.mT)
        return g.view(-1, *self._shape()), d.view(-1, *self._shape())

    def _shape(self) -> tuple[int, int]:
        groups, _, outs, depth = self.sizes
        return groups * outs, depth

    def apply(self, v: Tensor, a2: Tensor, e2: Tensor, wanted: bool) -> tuple:
        """v^T e2, if it is wanted, and v a2, in the shapes of a2 and e2."""
        groups, _, outs, depth = self.sizes
        v = v.view(-1, outs, depth)
        inner = self.fold(v.mT @ self.errors(e2), a2) if wanted else None
        return inner, self.unerrors(v @ self.columns(a2), e2)


class Linear(Matrices):
    def prepared(self, *four: Tensor) -> tuple:
        return four

    def columns(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, x.shape[-1]).mT

    errors = columns

    def fold(self, x: Tensor, like: Tensor) -> Tensor:
        return x.mT.reshape(like.shape)

    unerrors = fold

    def summed(self, e: Tensor) -> Tensor:
        return self.errors(e).sum(2)

    def spread(self, sums: Tensor, like: Tensor) -> Tensor:
        return sums.view(len(sums), *[1] * (like.dim() - 2), -1).expand_as(like)


class Convolution(Matrices):
    def prepared(self, a: Tensor, a2: Tensor, e: Tensor, e2: Tensor) -> tuple:
        """A Conv1d becomes a Conv2d of height 1."""
        conv = self.layer.module
        a, padding = padded(conv, a)
        a2, _ = padded(conv, a2)
        lead = ()
        if isinstance(conv, nn.Conv1d):
            e, e2, lead = e.unsqueeze(2), e2.unsqueeze(2), (1,)
        self.groups = conv.groups
        self.how = dict(
            kernel_size=(*lead, *conv.kernel_size), dilation=(*lead, *conv.dilation),
            padding=padding, stride=(*lead, *conv.stride),
        )  # fmt: skip
        self.pointwise = self.how["kernel_size"] == (1, 1) and padding == (0, 0)
        # A CPU has convolutions that unfold nothing; a call for each sample costs it little.
        self.direct = a.device.type == "cpu" and not self.pointwise
        return a, a2, e, e2

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

    def unerrors(self, x: Tensor, like: Tensor) -> Tensor:
        return x.reshape(like.shape)

    def summed(self, e: Tensor) -> Tensor:
        return e.sum((2, 3))

    def spread(self, sums: Tensor, like: Tensor) -> Tensor:
        return sums[:, :, None, None].expand_as(like)

    def gradients(self, a: Tensor, da: Tensor, e: Tensor, de: Tensor, e2: Tensor) -> tuple:
        if not self.direct:
            return super().gradients(a, da, e, de, e2)
        g, d = (a.new_empty(len(a), *self._shape()) for _ in range(2))
        e = e.contiguous()
        inputs, errors = (x.new_empty(len(x), 2, *x.shape[1:]) for x in (a, e))
        inputs[:, 0], inputs[:, 1], errors[:, 0], errors[:, 1] = da, a, e2, de
        weight = self._weights(g[:1])[0]
        for i in range(len(a)):
            g[i] = self._backward(e[i : i + 1], inputs[i, 1:], weight, 1).view_as(g[i])
            d[i] = self._backward(errors[i], inputs[i], weight, 1).view_as(d[i])
        return g, d

    def apply(self, v: Tensor, a2: Tensor, e2: Tensor, wanted: bool) -> tuple:
        if not self.direct:
            return super().apply(v, a2, e2, wanted)
        a2, e2, weights = a2.contiguous(), e2.contiguous(), self._weights(v)
        of_a = torch.empty_like(a2) if wanted else None
        of_e = torch.empty_like(e2)
        for i in range(len(v)):
            row = slice(i, i + 1)
            if wanted:
                of_a[row] = self._backward(e2[row], a2[row], weights[i], 0)
            of_e[row] = F.conv2d(
                a2[row], weights[i], None, self.how["stride"], self.how["padding"],
                self.how["dilation"], self.groups,
            )  # fmt: skip
        return of_a, of_e

    def _weights(self, v: Tensor) -> Tensor:
        """[B, p, d] -> [B, p, C / groups, height, width]"""
        return v.view(*v.shape[:2], -1, *self.how["kernel_size"])

    def _backward(self, outer: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
        """The gradient of the input (0) or of the weight (1)."""
        settings = self.how["stride"], self.how["padding"], self.how["dilation"], self.groups
        wanted = (which == 0, which == 1, False)
        return convolution_backward(outer, x, weight, settings, wanted)[which]


class Norm(Pair):
    """Of a norm's weight and bias, whose gradients are vectors: [B, C] with axes of length 1."""

    def __init__(
        self, layer: Layer, form: str | None, a: Tensor, e: Tensor, a2: Tensor, e2: Tensor
    ):
        module = layer.module
        self.layer, self.form = layer, "vector"
        self.a2 = normalised(module, a2)
        x, self.x2, self.e2 = normalised(module, a), self.a2.detach(), e2.detach()
        # The axes of positions: those before the channels, or behind them.
        self.axes = list(range(2, e.dim()))
        if is_last(module):
            self.axes = list(range(1, e.dim() - len(module.normalized_shape)))
        positions = math.prod(e.shape[axis] for axis in self.axes)
        self.sizes = 1, positions, 1, e[0].numel() // positions
        de = self.e2 - e
        self.triple, self.parts = 0, []
        if layer.bias:
            self._add(e, de)
        if layer.weight:
            difference = (self.x2 - x).mul_(self.e2).addcmul_(de, x)
            self._add(e * x, difference)

    def _add(self, g: Tensor, d: Tensor) -> None:
        if self.axes:
            g, d = g.sum(self.axes, keepdim=True), d.sum(self.axes, keepdim=True)
        self.triple = self.triple + _triple(g, d)
        self.parts.append((g, d))

    def cotangents(self, qbar: Tensor, mbar: Tensor) -> tuple[Tensor | None, Tensor]:
        shape = (-1, *[1] * (self.e2.dim() - 1))
        al, be = (bar.to(self.e2.dtype).view(shape) for bar in (qbar, 2 * mbar))
        of_a = of_e = None
        if self.layer.weight:
            g, d = self.parts.pop()
            v = al * g + be * d
            of_a = v * self.e2 if self.a2.requires_grad else None
            of_e = v * self.x2
        if self.layer.bias:
            g, d = self.parts.pop()
            v = al * g + be * d
            of_e = v.expand_as(self.e2) if of_e is None else of_e.add_(v)
        return of_a, of_e


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
        of_e = error_cotangent(self.kept, self.e, self.e2, al, be)
        return None, of_e.mT.reshape(self.like.shape)


def _triple(g: Tensor, d: Tensor) -> Tensor:
    """[N, ...] twice -> float64 [N, 3]."""
    g, d = g.flatten(1), d.flatten(1)
    parts = ((x * y).sum(1, dtype=torch.float64) for x, y in ((g, g), (g, d), (d, d)))
    return torch.stack(list(parts), 1)


def error_grams(e: Tensor, de: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return e.mT @ e, e.mT @ de, de.mT @ de


def gram_triple(aa, ad, dd, ee, ed, dede) -> tuple[Tensor, tuple]:
    """From the Grams over positions of (a, da), where d is da, and of (e, de)."""
    both = ee + ed  # e, e2
    n = _sum(aa, ee)
    q = _sum(ad, both) + _sum(aa, ed)
    m = _sum(dd, both + ed.mT + dede) + _sum(aa, dede) + 2 * _sum(ad, (ed + dede).mT)
    return torch.stack([n, q, m], 1), (aa, ad, dd, ee, ed, dede)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1, dtype=torch.float64)


def error_cotangent(grams: tuple, e: Tensor, e2: Tensor, al: Tensor, be: Tensor) -> Tensor:
    """v a2, of v = al g + be d."""
    aa, ad, dd, *_ = grams
    return (al * e + be * (e2 - e)) @ (aa + ad) + e2 @ (be * (ad.mT + dd))
