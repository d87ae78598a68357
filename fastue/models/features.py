"""Feature spaces: what a network sees in a picture, before its last layer or without one."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from fastue.core.errors import UsageError


def head(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the last linear layer. Raises UsageError for a network without one."""
    linear = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UsageError(
            f"--arch: {type(model).__name__} has no linear layer at its end that could be refitted"
        )
    return linear[-1]


def seen_by(model: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """What goes into `layer` of `model` for model input x."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model(x)
    finally:
        hook.remove()
    return seen[0]


def penultimate(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The input of the last linear layer, [B, F], as a function of pictures [B,C,H,W] in [0,1]; the
    network stands still (eval mode, no gradient of weights). Raises UsageError where there is no
    linear layer."""
    _, layer = head(model)
    model.eval().requires_grad_(False)
    return lambda x: seen_by(model, layer, x).flatten(1)


def pretrained(name: str) -> Callable[[Tensor], Tensor]:
    """An image encoder of timm with its published weights, `timm:vit_base_patch32_clip_224.openai`:
    features [B, F] of pictures [B,3,H,W] in [0,1], resized and normalised as it wants them. Raises
    UsageError where it is not known, or its weights are neither on this disk nor to be had."""
    from fastue.core.vision import import_timm

    timm = import_timm()
    library, _, own = name.partition(":")
    if library != "timm" or not timm.is_model(own.partition(".")[0]):
        raise UsageError(f"--features {name}: use self or timm:NAME, a model of timm")
    try:
        model = timm.create_model(own, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the hub's client raises
        raise UsageError(
            f"--features {name}: its weights are not here and cannot be had "
            f"({str(error).splitlines()[0]}); download them first, or use self"
        ) from error
    about = timm.data.resolve_model_data_config(model)
    model.eval().requires_grad_(False)

    def features(x: Tensor) -> Tensor:
        model.to(x.device)
        mean, std = (x.new_tensor(about[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        size = about["input_size"][1:]
        x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        return model((x - mean) / std).flatten(1)

    return features
