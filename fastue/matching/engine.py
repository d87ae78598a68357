"""Passes through the network, and the distance of the two gradients."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from fastue import ops
from fastue.core.errors import UsageError
from fastue.matching.forwards import linear
from fastue.matching.layers import Layer, check_uses, constant, layers_of
from fastue.matching.pairs import Pair, pair

Loss = Callable[[Tensor, Any], Tensor]
DISTANCES = ("cosine", "l2")


def gradient_match(
    model: nn.Module,
    loss: Loss,
    x: Tensor,
    x_perturbed: Tensor,
    y: Tensor,
    per_sample: bool = True,
    *,
    distance: str = "cosine",
    layers: bool = False,
    norm_weight: float = 0.0,
    form: str | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """How far a perturbation turns the gradients of the parameters: 1 - cos(g, h), float64 [B].

    g is the gradient of loss(model(x), y) for one sample and h that for x_perturbed, both over the
    parameters that require a gradient; x and x_perturbed are [B, ...]. The result can be
    differentiated once, with respect to x_perturbed only: g is a constant, and no parameter gets a
    gradient. If g or h is zero the distance is 1 and its gradient 0.

    per_sample=False compares the gradients of the mean loss instead and gives a scalar [].
    distance="l2" is |h - g|^2. layers=True gives the mean over layers of the distances of each
    layer's own parameters. norm_weight adds norm_weight * log(|h| / |g|)^2. form="ghost" or
    "materialised" is for all layers what is otherwise chosen for each by the number of
    multiplications. max_bytes takes as many samples at a time as fit in about that much memory; the
    result is the same up to rounding.

    loss(logits, y) gives the losses of the samples, [B] (reduction="none"); with per_sample=False a
    mean will do. Raises UsageError where a sample has no gradient of its own (BatchNorm in training
    mode, active dropout, a mean loss), for a parameter that is tied or used twice, and for a layer
    whose gradients it does not know.
    """
    settings = dict(distance=distance, layers=layers, norm_weight=norm_weight, form=form)
    if not per_sample or max_bytes is None:
        target = GradientTarget(model, loss, x, y, per_sample, max_bytes=max_bytes, **settings)
        return target(x_perturbed)
    values = []  # of a few samples at a time, clean passes too
    for part in _slices(len(x), _rows_within(max_bytes, model, x)):
        target = GradientTarget(model, loss, x[part], y[part], **settings)
        values.append(target(x_perturbed[part]))
    return torch.cat(values)


class GradientTarget:
    """The gradients at clean samples, to be compared with those at many perturbations of them.

    GradientTarget(model, loss, x, y, ...)(x_perturbed) is gradient_match(model, loss, x,
    x_perturbed, y, ...); the clean passes are made once. The weights must not change in between
    (UsageError). It keeps the inputs and errors of the layers, not gradients; max_bytes is for what
    comes on top. After a call per sample `plan` says for each layer in which form it was compared.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        x: Tensor,
        y: Tensor,
        per_sample: bool = True,
        *,
        distance: str = "cosine",
        layers: bool = False,
        norm_weight: float = 0.0,
        form: str | None = None,
        max_bytes: int | None = None,
    ):
        if distance not in DISTANCES:
            raise UsageError(f"distance={distance!r}: use one of {', '.join(DISTANCES)}")
        if form not in (None, "ghost", "materialised"):
            raise UsageError(f"form={form!r}: use 'ghost', 'materialised' or None")
        if norm_weight and distance == "l2":
            raise UsageError("norm_weight: distance='l2' compares the norms already")
        if not len(x):
            raise UsageError("x: has no sample")
        self.model, self.loss, self.per_sample = model, loss, per_sample
        self.distance, self.by_layer, self.norm_weight = distance, layers, norm_weight
        self.form, self.shape = form, x.shape
        rows = _rows_within(max_bytes, model, x)
        self.parts = [(part, y[part]) for part in _slices(len(x), rows)]
        self.layers = layers_of(model, by_sample=per_sample or len(self.parts) > 1)
        self.versions = self._versions()
        self.plan: list[Planned] = []  # of the last call, per sample
        with torch.enable_grad():
            if per_sample:
                self.clean = [self._clean(x[part].detach(), y) for part, y in self.parts]
            else:
                self.g = self._batch_gradients(x.detach())

    def __call__(self, x_perturbed: Tensor) -> Tensor:
        if x_perturbed.shape != self.shape:
            raise UsageError(
                f"x_perturbed: shape {tuple(x_perturbed.shape)}, but x has {tuple(self.shape)}"
            )
        if self.versions != self._versions():
            raise UsageError("model: its weights have changed since the clean gradients were taken")
        wanted = x_perturbed.requires_grad and torch.is_grad_enabled()
        return _Distance.apply(x_perturbed, self, wanted)

    def _versions(self) -> list[tuple[int, int]]:
        return [(id(p), p._version) for p in self.model.parameters()]

    def evaluate(self, x: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """The distances at x and, if wanted, their gradients."""
        if not self.per_sample:
            return self._evaluate_batch(x, wanted)
        values, gradients = [], []
        for (part, y), clean in zip(self.parts, self.clean, strict=True):
            value, gradient = self._evaluate(x[part].requires_grad_(wanted), y, clean, wanted)
            values.append(value)
            gradients.append(gradient)
        return torch.cat(values), torch.cat(gradients) if wanted else None

    # --- one sample at a time

    def _clean(self, x: Tensor, y: Tensor) -> "_Clean":
        passing = _Pass(self.layers, self.model, x)
        check_uses(passing.logits, self.layers, [edge is not None for edge in passing.edges])
        slope = self._slope(passing.logits, y, False)
        size = _largest(slope)
        scale = _power(size)
        errors = passing.errors(slope * _rows(scale, slope), False)
        return _Clean(passing.inputs, errors, size, scale)

    def _slope(self, logits: Tensor, y: Tensor, twice: bool) -> Tensor:
        """dloss_i / dlogits_i."""
        losses = self.loss(logits, y)
        if losses.shape != logits.shape[:1]:
            raise UsageError(
                f"loss: gives shape {tuple(losses.shape)} for {len(logits)} samples; per_sample "
                'needs one number a sample, so build it with reduction="none"'
            )
        return torch.autograd.grad(losses.sum(), logits, create_graph=twice)[0]

    def _evaluate(
        self, x: Tensor, y: Tensor, clean: "_Clean", wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        with constant(self.model):
            passing = _Pass(self.layers, self.model, x)
            slope = self._slope(passing.logits, y, wanted)
            size = _largest(slope.detach())
            scale = self._matching_scale(clean, size)
            errors = passing.errors(slope * _rows(scale, slope), wanted)
        pairs: list[tuple[Pair, Tensor]] = []
        for i, layer in enumerate(self.layers):
            if (clean.errors[i] is None) != (errors[i] is None):
                raise UsageError(f"model: layer {layer.name} takes part in one of two passes only")
            if errors[i] is not None:
                before = clean.inputs[i], clean.errors[i]
                made = pair(layer, self.form, before, (passing.inputs[i], errors[i]))
                pairs.append((made, errors[i]))
        del passing, errors
        self.plan = [Planned(made.layer.name, made.form, *made.sizes) for made, _ in pairs]
        alive = size > 0
        if self.by_layer:
            alive = torch.stack([e2.detach().flatten(1).any(1) for _, e2 in pairs])
        triples = torch.stack([made.triple for made, _ in pairs]).requires_grad_(wanted)
        value = self._value(triples, alive, clean.scale, scale)
        if not wanted:
            return value, None
        (bars,) = torch.autograd.grad(value.sum(), triples)
        outputs, cotangents = [], []
        while pairs:
            made, e2 = pairs.pop()
            bar = bars[len(pairs)]
            for output, cotangent in zip(
                (made.a2, e2), made.cotangents(bar[:, 1], bar[:, 2]), strict=True
            ):
                if cotangent is not None and output.requires_grad:
                    outputs.append(output)
                    cotangents.append(cotangent)
        return value.detach(), _back(outputs, x, cotangents)

    def _matching_scale(self, clean: "_Clean", size: Tensor) -> Tensor:
        """That of the clean gradient, unless the other is of another size altogether."""
        if self.distance == "l2":
            return clean.scale
        near = (size <= 2 * clean.size) & (size >= 0.5 * clean.size)
        ratio = torch.where(clean.size > 0, clean.size * clean.scale, 1.0)
        return torch.where(near, clean.scale, _power(size / ratio))

    def _value(self, triples: Tensor, alive: Tensor, scale: Tensor, scale2: Tensor) -> Tensor:
        """float64 [L, B, 3] -> [B]; not alive: the perturbed gradient is zero."""
        if not self.by_layer:
            triples = triples.sum(0, keepdim=True)
        scale, scale2 = scale.double(), scale2.double()
        settings = self.distance, self.norm_weight
        return _distance(triples, alive, *settings, scale, scale2).mean(0)

    # --- a whole batch

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _gradients(self, x: Tensor, y: Tensor, twice: bool) -> list[Tensor]:
        """What these samples add to the gradients of the mean loss."""
        losses = self.loss(self.model(x), y)
        if len(self.parts) > 1 and losses.shape != x.shape[:1]:
            raise UsageError(
                f"loss: gives shape {tuple(losses.shape)} for {len(x)} samples; max_bytes needs one "
                'number a sample, so build it with reduction="none"'
            )
        parameters = self._parameters()
        found = torch.autograd.grad(
            losses.mean() * (len(x) / self.shape[0]), parameters, create_graph=twice,
            materialize_grads=True,
        )  # fmt: skip
        return list(found)

    def _batch_gradients(self, x: Tensor) -> list[Tensor]:
        total = None
        for part, y in self.parts:
            found = self._gradients(x[part], y, False)
            total = found if total is None else torch._foreach_add(total, found)
        return total

    def _evaluate_batch(self, x: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        alone = len(self.parts) == 1  # else the graphs would not fit, and are made again
        if alone:
            x.requires_grad_(wanted)
            live = self._gradients(x, self.parts[0][1], wanted)
            h = [one.detach() for one in live]
        else:
            h = self._batch_gradients(x)
        groups = self._groups() if self.by_layer else [range(len(h))]
        triples = torch.stack([ops.grad_cosine(*self._of(group, h)) for group in groups])
        triples = triples[:, None].requires_grad_(wanted)
        one = triples.new_ones(1)
        value = self._value(triples, one > 0, one, one)[0]
        if not wanted:
            return value, None
        (bars,) = torch.autograd.grad(value, triples)
        cotangents = list(h)
        for bar, group in zip(bars[:, 0], groups, strict=True):
            found = ops.grad_cosine_backward(*self._of(group, h), bar, targets=False)
            for i, cotangent in zip(group, found, strict=True):
                cotangents[i] = cotangent
        if alone:
            return value.detach(), _back(live, x, cotangents)
        gradients = []
        for part, y in self.parts:
            rows = x[part].requires_grad_()
            gradients.append(_back(self._gradients(rows, y, True), rows, cotangents))
        return value.detach(), torch.cat(gradients)

    def _of(self, group, h: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The clean gradients of these parameters, and theirs among `h`."""
        return [self.g[i] for i in group], [h[i] for i in group]

    def _groups(self) -> list[list[int]]:
        """Which parameters make a layer."""
        place = {parameter: i for i, parameter in enumerate(self._parameters())}
        own = [list(layer.module.parameters(recurse=False)) for layer in self.layers]
        return [[place.pop(p) for p in ps if p in place] for ps in own]


class Planned(NamedTuple):
    """How a layer is worked on: T positions, p outs and d numbers deep, of each of its groups."""

    layer: str
    form: str  # ghost, materialised, or vector (a norm)
    groups: int
    positions: int
    outs: int
    depth: int


@dataclass
class _Clean:
    """Of clean samples: inputs and errors of the layers, the errors times a power of two a sample."""

    inputs: list[Tensor]
    errors: list[Tensor | None]
    size: Tensor
    scale: Tensor

    def __post_init__(self):
        self.inputs = [a.detach() for a in self.inputs]


def _back(outputs: list[Tensor], x: Tensor, cotangents: list[Tensor]) -> Tensor:
    """The gradient with respect to x; outputs that are constants have none."""
    live = [(out, v) for out, v in zip(outputs, cotangents, strict=True) if out.requires_grad]
    if not live:
        return torch.zeros_like(x)
    return torch.autograd.grad(
        [out for out, _ in live], x, [v for _, v in live], materialize_grads=True
    )[0]


def _slices(count: int, rows: int) -> list[slice]:
    return [slice(at, min(at + rows, count)) for at in range(0, count, rows)]


def _rows_within(max_bytes: int | None, model: nn.Module, x: Tensor) -> int:
    """How many samples at a time, from the sizes of what the modules give for one."""
    if max_bytes is None:
        return len(x)
    total = 0

    def count(module, given, output):
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    handles = [part.register_forward_hook(count) for part in model.modules()]
    try:
        with torch.no_grad():
            model(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return min(len(x), max(1, max_bytes // (8 * total)))


class _Distance(torch.autograd.Function):
    """The gradient is made with the value: so no graph is kept, and no parameter is in it."""

    @staticmethod
    def forward(ctx, x: Tensor, target: GradientTarget, wanted: bool) -> Tensor:
        with torch.enable_grad():
            value, gradient = target.evaluate(x.detach(), wanted)
        ctx.save_for_backward(gradient)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        if outer.dim():
            outer = _rows(outer, gradient)
        return outer.to(gradient.dtype) * gradient, None, None


class _Pass:
    """The inputs of the layers and where their outputs stand in the graph, of model(x).

    Not the outputs: an activation in place may have written over them.
    """

    def __init__(self, layers: list[Layer], model: nn.Module, x: Tensor):
        self.layers, self.samples = layers, len(x)
        self.inputs: list[Tensor] = [x.new_zeros(0)] * len(layers)
        self.edges: list = [None] * len(layers)
        if x.dim() == 4 and x.device.type == "cpu":  # the faster convolutions
            x = x.contiguous(memory_format=torch.channels_last)
        with linear(model), self._hooks():
            self.logits = model(x)
        if not isinstance(self.logits, Tensor) or len(self.logits) != len(x):
            raise UsageError("model: must give one tensor with a row for each sample")
        if not self.logits.requires_grad:
            raise UsageError("model: its logits depend on no parameter and no input by autograd")

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = [
            layer.module.register_forward_hook(self._hook(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, i: int):
        def hook(module, given, named, output):
            if self.edges[i] is not None:
                raise UsageError(f"model: layer {self.layers[i].name} is called more than once")
            if len(output) != self.samples:
                raise UsageError(
                    f"model: the output of layer {self.layers[i].name} has no row for each sample"
                )
            self.inputs[i] = given[0] if given else next(iter(named.values()))
            if not output.requires_grad:  # nothing before it needs a gradient
                output = output.detach().requires_grad_()
                self.edges[i] = get_gradient_edge(output)
                return output.clone()  # a leaf may not be written over
            self.edges[i] = get_gradient_edge(output)
            return None

        return hook

    def errors(self, slope: Tensor, twice: bool) -> list[Tensor | None]:
        """d(sum of slope * logits) / d(output of each layer); None where it plays no part."""
        called = [edge for edge in self.edges if edge is not None]
        found = iter(
            torch.autograd.grad(self.logits, called, slope, create_graph=twice, allow_unused=True)
        )
        return [None if edge is None else next(found) for edge in self.edges]


def _distance(
    triples: Tensor, alive: Tensor, kind: str, norm_weight: float, scale: Tensor, scale2: Tensor
) -> Tensor:
    """[..., B, 3] -> [..., B]; the gradients were multiplied by scale and scale2."""
    n, q, m = triples.unbind(-1)
    if kind == "l2":
        return m / scale**2
    n2 = n + 2 * q + m
    zero = (n <= 0) | (n2 <= 0) | ~alive
    n, n2 = torch.where(zero, 1.0, n), torch.where(zero, 1.0, n2)
    g, h = n.sqrt(), n2.sqrt()
    value = (m - ((2 * q + m) / (g + h)) ** 2) / (2 * g * h)
    if norm_weight:
        value = value + norm_weight * ((h / scale2) / (g / scale)).log() ** 2
    return torch.where(zero, 1.0, value)


def _largest(slope: Tensor) -> Tensor:
    """[B, ...] -> [B]"""
    return slope.flatten(1).abs().amax(1)


def _power(size: Tensor) -> Tensor:
    """The power of two that makes it about 1: an exact factor."""
    exponent = torch.frexp(size).exponent
    return torch.where(size > 0, torch.ldexp(torch.ones_like(size), -exponent), 1.0)


def _rows(factors: Tensor, like: Tensor) -> Tensor:
    return factors.view(-1, *[1] * (like.dim() - 1))
