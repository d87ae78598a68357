"""Published weights: DDPM's network against a plain form of it, and files of both layouts."""

import math

import pytest
import torch
from torch.nn import functional as F

from fastue.core.errors import DataError
from fastue.purifiers.published import Ddpm, published_weights

pytest.importorskip("diffusers")
WIDTHS = (32, 64, 64, 64)


def names_and_shapes(widths=WIDTHS):
    """Those of the DDIM code's network: attention at level 1 and in the middle."""
    first, time = widths[0], 4 * widths[0]
    shapes = {"temb.dense.0": (time, first), "temb.dense.1": (time, time)}
    shapes |= {"conv_in": (first, 3, 3, 3), "norm_out": (first,), "conv_out": (3, first, 3, 3)}

    def block(name, inner, outer):
        shapes.update({f"{name}.norm1": (inner,), f"{name}.conv1": (outer, inner, 3, 3)})
        shapes.update({f"{name}.temb_proj": (outer, time), f"{name}.norm2": (outer,)})
        shapes[f"{name}.conv2"] = (outer, outer, 3, 3)
        if inner != outer:
            shapes[f"{name}.nin_shortcut"] = (outer, inner, 1, 1)

    def attention(name, c):
        shapes.update({f"{name}.{part}": (c, c, 1, 1) for part in ("q", "k", "v", "proj_out")})
        shapes[f"{name}.norm"] = (c,)

    skips, inner = [first], first
    for level, outer in enumerate(widths):
        for number in range(2):
            block(f"down.{level}.block.{number}", inner, outer)
            if level == 1:
                attention(f"down.{level}.attn.{number}", outer)
            inner = outer
            skips.append(inner)
        if level < 3:
            shapes[f"down.{level}.downsample.conv"] = (inner, inner, 3, 3)
            skips.append(inner)
    block("mid.block_1", inner, inner), attention("mid.attn_1", inner)
    block("mid.block_2", inner, inner)
    for level in (3, 2, 1, 0):
        for number in range(3):
            block(f"up.{level}.block.{number}", inner + skips.pop(), widths[level])
            inner = widths[level]
            if level == 1:
                attention(f"up.{level}.attn.{number}", inner)
        if level:
            shapes[f"up.{level}.upsample.conv"] = (inner, inner, 3, 3)
    return shapes


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in names_and_shapes().items():
        scale = 1 / math.sqrt(math.prod(shape[1:]) or 1)
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return state


def plain(w, x, t):
    """What the network of that code computes."""

    def conv(x, name, **options):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **options)

    def dense(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name):
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def block(x, name):
        h = conv(F.silu(norm(x, f"{name}.norm1")), f"{name}.conv1", padding=1)
        h = h + dense(F.silu(time), f"{name}.temb_proj")[:, :, None, None]
        h = conv(F.silu(norm(h, f"{name}.norm2")), f"{name}.conv2", padding=1)
        short = f"{name}.nin_shortcut"
        return h + (conv(x, short) if f"{short}.weight" in w else x)

    def attention(x, name):
        h = norm(x, f"{name}.norm")
        q, k, v = (conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        share = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(2)
        return x + conv((v @ share.transpose(1, 2)).view_as(x), f"{name}.proj_out")

    half = WIDTHS[0] // 2
    angles = t[:, None] * torch.exp(torch.arange(half) * (-math.log(10_000) / (half - 1)))
    time = torch.cat([angles.sin(), angles.cos()], 1)
    time = dense(F.silu(dense(time, "temb.dense.0")), "temb.dense.1")
    x = conv(x, "conv_in", padding=1)
    skips = [x]
    for level in range(4):
        for number in range(2):
            x = block(x, f"down.{level}.block.{number}")
            x = attention(x, f"down.{level}.attn.{number}") if level == 1 else x
            skips.append(x)
        if level < 3:
            x = conv(F.pad(x, (0, 1, 0, 1)), f"down.{level}.downsample.conv", stride=2)
            skips.append(x)
    x = block(attention(block(x, "mid.block_1"), "mid.attn_1"), "mid.block_2")
    for level in (3, 2, 1, 0):
        for number in range(3):
            x = block(torch.cat([x, skips.pop()], 1), f"up.{level}.block.{number}")
            x = attention(x, f"up.{level}.attn.{number}") if level == 1 else x
        if level:
            x = F.interpolate(x, scale_factor=2.0)
            x = conv(x, f"up.{level}.upsample.conv", padding=1)
    return conv(F.silu(norm(x, "norm_out")), "conv_out", padding=1)


def layouts(folder):
    """The same average in both layouts, the states being another network's."""
    average, state = weights(), weights(1)
    several = {f"module.{name}": weight for name, weight in state.items()}
    torch.save([several, {"step": 3}, 7, 5, average], folder / "ddim.pth")
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": list(average.values())}
    model = {"module.sigmas": torch.ones(9), **several}
    torch.save({"optimizer": {}, "model": model, "ema": ema, "step": 7}, folder / "sde.pth")
    return folder / "ddim.pth", folder / "sde.pth"


def test_the_average_is_read_from_both_layouts(tmp_path):
    for path in layouts(tmp_path):
        found = published_weights(path)
        assert found.keys() == weights().keys()
        assert all(torch.equal(found[name], weight) for name, weight in weights().items())


def test_published_weights_compute_what_their_code_computes(tmp_path):
    net, t = Ddpm(3, WIDTHS), torch.tensor([0, 19, 700])
    net.load(layouts(tmp_path)[0])
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x, t), plain(weights(), x, t), rtol=1e-4, atol=1e-4)


def test_the_network_has_as_many_weights_as_published():
    with torch.device("meta"):
        assert round(sum(w.numel() for w in Ddpm().parameters()) / 1e6, 2) == 35.75


class Other:
    """What no file of weights should hold."""


def test_other_files_and_sizes_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    for content in (b"no checkpoint", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match="torch can read"):
            published_weights(path)
    torch.save([Other()], path)
    with pytest.raises(DataError, match="torch can read"):
        published_weights(path)
    for file in ([], {"model": {}}, [{"a": torch.ones(2)}, {"a": torch.ones(3)}], 3):
        torch.save(file, path)
        with pytest.raises(DataError, match="layout"):
            published_weights(path)
    missing = {name: w for name, w in weights().items() if name != "up.2.block.1.norm1.bias"}
    torch.save([missing, missing], path)
    with pytest.raises(DataError, match="not the weights"):
        Ddpm(3, WIDTHS).load(path)
    with pytest.raises(DataError, match="multiples of 8"):
        Ddpm(3, WIDTHS)(torch.zeros(1, 3, 12, 12), torch.tensor([1]))
