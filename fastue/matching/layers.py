"""What the engine needs to know of a network: its layers with parameters, and what forbids it."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fastue.core.errors import UsageError
from fastue.models.conv import Conv

# Exact types: a subclass may change its weight before it uses it.
LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, Conv)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
SUPPORTED = (*LINEAR, *CONVOLUTIONS, *NORMS, nn.Embedding)


@dataclass(frozen=True)
class Layer:
    """A module whose parameters take part; `weight` and `bias` say which of them."""

    name: str
    module: nn.Module
    weight: bool
    bias: bool


def layers_of(model: nn.Module, by_sample: bool) -> list[Layer]:
    """The layers with parameters that require a gradient, in the order of registration.

    Raises UsageError for what makes a gradient random and, by_sample, for what has no gradient for
    each sample or none that this engine knows.
    """
    found, owners = [], {}
    for name, module in model.named_modules():
        label = f"layer {name or 'model'} ({type(module).__name__})"
        _check_dropout(module, label)
        if by_sample:
            _check_statistics(module, label)
        own = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
            if parameter.requires_grad
        }
        if not own:
            continue
        found.append(Layer(name, module, "weight" in own, "bias" in own))
        if not by_sample:
            continue
        if type(module) not in SUPPORTED:
            known = ", ".join(dict.fromkeys(kind.__name__ for kind in SUPPORTED))
            raise UsageError(
                f"model: {label} has parameters of its own ({', '.join(own)}), and their "
                f"gradients are known for {known} only. Freeze them (requires_grad=False)"
            )
        if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq):
            raise UsageError(f"model: {label}: max_norm and scale_grad_by_freq are not supported")
        for key, parameter in own.items():
            other = owners.setdefault(parameter, f"{name}.{key}")
            if other != f"{name}.{key}":
                raise UsageError(f"model: {other} and {name}.{key} are one parameter (tied)")
    if not found:
        raise UsageError("model: no parameter requires a gradient, so there is nothing to match")
    return found


def _check_statistics(module: nn.Module, label: str) -> None:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        # Without running statistics an InstanceNorm takes each sample's own, a BatchNorm not.
        tracked = module.running_mean is not None
        if isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if tracked and module.training:
                raise UsageError(f"model: {label} is in training mode; call model.eval()")
        elif module.training or not tracked:
            raise UsageError(
                f"model: {label} takes the statistics of the batch, so a sample has no gradient of "
                "its own; call model.eval() (with running statistics)"
            )


def _check_dropout(module: nn.Module, label: str) -> None:
    dropped = getattr(module, "drop_prob", getattr(module, "dropout", None))
    if isinstance(module, nn.modules.dropout._DropoutNd):
        dropped = module.p
    if isinstance(dropped, float) and dropped and module.training:
        raise UsageError(f"model: {label} is active; call model.eval()")


def check_uses(logits: Tensor, layers: Iterable[Layer], called: Iterable[bool]) -> None:
    """Every parameter reaches the logits through one call of its own layer, or not at all."""
    names, most, uses = {}, {}, {}
    for layer, once in zip(layers, called, strict=True):
        for key in ("weight", "bias"):
            if getattr(layer, key):
                parameter = getattr(layer.module, key)
                names[parameter] = f"{layer.name}.{key}"
                most[parameter], uses[parameter] = int(once), 0
    seen, todo = set(), [logits.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            variable = getattr(following, "variable", None)
            if variable is not None and variable in uses:
                uses[variable] += 1
            todo.append(following)
    for parameter, count in uses.items():
        if count > most[parameter]:
            raise UsageError(
                f"model: {names[parameter]} is used {count} times in one pass, and its layer is "
                f"called {('never', 'once')[most[parameter]]}; a parameter may be used once, by "
                "its layer"
            )


def padded(conv: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """x [B, C, H, W] and the zeros that are still to be put around it.

    A Conv1d's input [B, C, T] becomes [B, C, 1, T].
    """
    one = isinstance(conv, nn.Conv1d)
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), (0, 0)
    else:
        padding = (0, *conv.padding) if one else conv.padding
    return (x.unsqueeze(2) if one else x), padding


def normalised(module: nn.Module, x: Tensor) -> Tensor:
    """What a norm multiplies by its weight, of x; as a function that can be differentiated."""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        norm = F.layer_norm if isinstance(module, nn.LayerNorm) else F.rms_norm
        return norm(x, module.normalized_shape, eps=module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    if module.running_mean is None:
        return F.instance_norm(x, eps=module.eps)
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = (module.running_var + module.eps).rsqrt()
    return (x - module.running_mean.view(shape)).mul_(scale.view(shape))


def is_last(module: nn.Module) -> bool:
    """Whether a norm's channels are the last dimensions."""
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm))


def embedded(module: nn.Embedding, tokens: Tensor, other: Tensor) -> Tensor:
    """1 where two tokens are the same row of the weight: [B, T], [B, S] -> bool [B, T, S]."""
    same = tokens.unsqueeze(2) == other.unsqueeze(1)
    if module.padding_idx is not None:
        same &= (tokens != module.padding_idx).unsqueeze(2)
    return same


@contextlib.contextmanager
def constant(model: nn.Module) -> Iterator[None]:
    """Its parameters require no gradient meanwhile."""
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in live:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in live:
            parameter.requires_grad_(True)
