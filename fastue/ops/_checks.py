"""Checks the rooms share. They run before any backend and on tensors without data, so they never
read values."""

from collections.abc import Sequence

import torch

from fastue.ops import _grain

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def is_dense(t: torch.Tensor) -> bool:
    """Contiguous or channels_last: the two layouts every backend reads without a copy."""
    return t.is_contiguous() or (
        t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last)
    )


def tensor(
    op: str,
    name: str,
    t: torch.Tensor,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Raise unless t has the dtype, device, layout and shape; a letter in `shape` stands for any
    size."""
    if t.dim() != len(shape) or any(
        not isinstance(s, str) and s != n for s, n in zip(shape, t.shape, strict=True)
    ):
        wanted = ", ".join(str(s) for s in shape)
        raise ValueError(f"{op}: {name} must be [{wanted}], got {list(t.shape)}")
    if t.dtype not in dtypes:
        raise TypeError(
            f"{op}: {name} must be {' or '.join(str(d) for d in dtypes)}, got {t.dtype}"
        )
    if t.device != device:
        raise ValueError(f"{op}: {name} is on {t.device}, x is on {device}")
    if not is_dense(t):
        raise ValueError(
            f"{op}: {name} must be contiguous or channels_last, got strides {t.stride()}"
        )


def interleaved(op: str, name: str, t: torch.Tensor) -> None:
    if not t.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"{op}: {name} must be channels_last, got strides {t.stride()}")


def conv_size(
    op: str, size: Sequence[int], kernel: Sequence[int], stride: int, padding: int
) -> list[int]:
    """Height and width of a convolution's output. Raises where there is no such convolution."""
    if stride < 1 or padding < 0 or 0 in kernel:
        raise ValueError(f"{op}: needs stride >= 1, padding >= 0 and a kernel that is not empty")
    if any(n + 2 * padding < k for n, k in zip(size, kernel, strict=True)):
        raise ValueError(f"{op}: the kernel {list(kernel)} is larger than the padded picture")
    return [(n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel, strict=True)]


def convolution(
    op, dtypes, x, weight, bias, gate, residual, out, stride, padding, transposed
) -> None:
    """The arguments of fastue.ops.conv, of one of `dtypes`."""
    for name, t, shape in (("x", x, "BCHW"), ("weight", weight, "OIhw"), ("out", out, "BOHW")):
        tensor(op, name, t, tuple(shape), (x.dtype,) if name != "x" else dtypes, x.device)
    if 0 in weight.shape:
        raise ValueError(f"{op}: weight is empty, {list(weight.shape)}")
    wide, deep = (out, x) if transposed else (x, out)
    tensor(
        op,
        "out" if transposed else "x",
        wide,
        ("B", weight.shape[1], "H", "W"),
        (x.dtype,),
        x.device,
    )
    size = conv_size(op, wide.shape[2:], weight.shape[2:], stride, padding)
    tensor(
        op,
        "x" if transposed else "out",
        deep,
        (len(wide), weight.shape[0], *size),
        (x.dtype,),
        x.device,
    )
    for name, t, like in (("gate", gate, x), ("residual", residual, out)):
        if t is not None:
            tensor(op, name, t, like.shape, (x.dtype,), x.device)
    for name, t in (("x", x), ("gate", gate), ("residual", residual), ("out", out)):
        if t is not None:
            interleaved(op, name, t)
    if bias is not None:
        wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
        tensor(op, "bias", bias, (out.shape[1],), (wanted,), x.device)


def channels(op: str, c: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if c not in (1, 3):
        raise ValueError(f"{op}: pictures have 1 or 3 channels, got {c}")
    if len(mean) != len(std) or len(mean) not in (0, c):
        raise ValueError(
            f"{op}: mean and std need one number for each of {c} channels, got {mean} and {std}"
        )
    if any(s <= 0 for s in std):
        raise ValueError(f"{op}: std must be positive, got {std}")


def bank(
    op: str,
    rows: str,
    noise: torch.Tensor,
    x: torch.Tensor,
    grain: int,
    dtypes: Sequence[torch.dtype],
) -> tuple[int, int]:
    """The bank has a value for each block of grain x grain pixels of x; its height and width.
    `rows` is how the docs call its length."""
    if grain < 1:
        raise ValueError(f"{op}: grain is the side of a block in pixels, at least 1, got {grain}")
    _, c, h, w = x.shape
    size = _grain.size(h, grain), _grain.size(w, grain)
    tensor(op, "noise", noise, (rows, c, *size), dtypes, x.device)
    return size


def crop(op: str, ids: torch.Tensor | None, x: torch.Tensor, pad: int) -> None:
    """The keyed crop and flip of fastue.ops.apply_noise."""
    if ids is not None:
        tensor(op, "ids", ids, (len(x),), (torch.int64,), x.device)
    if not 0 <= pad < 2**15:
        raise ValueError(f"{op}: pad must be between 0 and 32767 pixels, got {pad}")


def budget(op: str, step: float, eps: float) -> None:
    if not (step >= 0 and 0 <= eps <= 1):
        raise ValueError(
            f"{op}: needs step >= 0 and 0 <= eps <= 1 in pixel units (8/255), got {step} and {eps}"
        )


def scale(op: str, noise: torch.Tensor, value: float) -> None:
    if noise.dtype == torch.int8 and not value > 0:
        raise ValueError(
            f"{op}: an int8 bank needs scale > 0, the noise of one integer (eps/127), got {value}"
        )
    if noise.dtype != torch.int8 and value != 1:
        raise ValueError(f"{op}: scale is for int8 banks, this one is {noise.dtype}")


def rows(op: str, name: str, index: torch.Tensor, n: int) -> None:
    """Raise IndexError unless 0 <= index < n. Reads values, so only the reference and Triton on the
    CPU call it."""
    if index.numel():
        low, high = (int(v) for v in index.aminmax())
        if low < 0 or high >= n:
            raise IndexError(f"{op}: {name} holds {low if low < 0 else high}, outside of [0, {n})")


def mask(op: str, t: torch.Tensor, b: int, h: int, w: int, device: torch.device) -> None:
    """A mask is bool [B, 1, h, w], of the bank's height and width, or [1, 1, h, w] for all
    pictures."""
    first = b if t.dim() != 4 or t.shape[0] != 1 else 1
    tensor(op, "mask", t, (first, 1, h, w), (torch.bool,), device)
