"""The network of DDPM for CIFAR-10 (diffusers' UNet2DModel), and files of weights that others
published for it."""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from fastue.core.errors import DataError, UsageError
from fastue.core.vision import prepare

WIDTHS = (128, 256, 256, 256)


class Ddpm(nn.Module):
    """x float32 [B,C,H,W], t int64 [B] -> noise: 35.7 M weights, attention at half the size.

    H and W must be multiples of 8; another size raises DataError. No dropout, so that a training
    that was cut off ends the same. Raises UsageError where diffusers is not installed.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        prepare()  # diffusers imports torchvision
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise UsageError("--net ddpm-cifar: pip install 'fastue[purify]'") from error
        self.unet = UNet2DModel(
            in_channels=channels, out_channels=channels, layers_per_block=2,
            block_out_channels=widths, norm_num_groups=32, norm_eps=1e-6, dropout=0.0,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=None, downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
        )  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if x.shape[2] % 8 or x.shape[3] % 8:
            raise DataError(
                f"ddpm-cifar takes sides that are multiples of 8, not {list(x.shape[2:])}; --size S"
            )
        return self.unet(x, t).sample.float()

    def load(self, path: Path) -> None:
        """Take the averaged weights of a published file; DataError where they do not fit."""
        found = {}
        for theirs, weight in published_weights(path).items():
            name = _renamed(theirs)  # attention by 1x1 convolutions there, by linear layers here
            found[name] = weight.flatten(1) if "attentions" in name and weight.ndim > 1 else weight
        try:
            self.unet.load_state_dict(found)
        except RuntimeError as error:
            raise DataError(f"{path}: not the weights of DDPM for CIFAR-10") from error


def published_weights(path: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint by name, from one of two layouts:

    DDIM       a list: [0] the network's state, [-1] the average by name (LE_JCDP)
    score_sde  a dict: `model`, the state, and `ema`, the average as a list in the same order

    Names come without the `module.` of several GPUs. Only tensors and plain containers are read
    (weights_only). Raises DataError for anything else.
    """
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: no checkpoint of tensors that torch can read") from error
    try:
        if isinstance(file, list):
            states, average = file[0], file[-1]
        else:
            states, average = file["model"], file["ema"]["shadow_params"]
            names = [name for name in states if not name.endswith("sigmas")]  # a buffer
            average = dict(zip(names, average, strict=True))
        plain = {name.removeprefix("module."): weight for name, weight in average.items()}
        state = {name.removeprefix("module."): weight for name, weight in states.items()}
        if any(weight.shape != state[name].shape for name, weight in plain.items()):
            raise ValueError("shapes differ")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: neither DDIM's layout of a checkpoint nor score_sde's") from error
    return plain


_NAMES = (
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^down\.(\d)", r"down_blocks.\1"),
    (r"^up\.(\d)", lambda level: f"up_blocks.{3 - int(level[1])}"),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"temb_proj", "time_emb_proj"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"(attentions\.\d)\.norm", r"\1.group_norm"),
    (r"(attentions\.\d)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d)\.proj_out", r"\1.to_out.0"),
)


def _renamed(name: str) -> str:
    """DDIM's name of a weight in diffusers' words."""
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name
