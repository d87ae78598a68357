"""What the kernels share: where an element lies in each layout, exact arithmetic, keyed draws,
launching.

A program works on BLOCK elements of one picture. They are counted in the interleaved order where
any tensor has it, else in the planar order, so that neighbouring threads have neighbouring elements
of every tensor; a planar tensor beside interleaved ones is `CROSSED`. The sizes of pictures are
constants: a data set has one, and Triton sees what it is divisible by and makes vector accesses.
Half precision becomes float32 right after the load: the interpreter's bf16 is garbage.
"""

import contextlib

import torch
import triton
import triton.language as tl

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
PURPOSE_CROP_FLIP = tl.constexpr(1)  # of a keyed draw; the table is in fastue/ops/_keyed.py


@triton.jit
def channel_and_pixel(e, area, C: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Of element e [BLOCK] of a picture in the order that elements are counted in."""
    if INTERLEAVED:
        return e % C, e // C
    return e // area, e % area


@triton.jit
def place(e, channel, pixel, area, CROSSED: tl.constexpr):
    """Offset of the same element in a tensor; `e` where it can be: Triton then sees neighbours."""
    if CROSSED:
        return channel * area + pixel
    return e


@triton.jit
def of_channel(channel, v0, v1, v2):
    return tl.where(channel == 0, v0, tl.where(channel == 1, v1, v2))


@triton.jit
def unit_pixel(x):
    """uint8 -> x/255 to the last bit, for all 256 values: the two parts of 1/255 as in
    csrc/common/tile.h."""
    v = x.to(tl.float32)
    return v * 0.0039215087890625 + v * 5.983839201917363e-08


@triton.jit
def limit(v, low, high):
    """Clamp by comparisons: the same for NaN and signed zeros on every version."""
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)


@triton.jit
def moved(g, step):
    """step * sign(g); a NaN moves nothing."""
    return tl.where(g > 0, step, 0.0) - tl.where(g < 0, step, 0.0)


@triton.jit
def nearest(v):
    """Round |v| < 2^22 to the nearest whole number, ties to even."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def narrow(v, dtype: tl.constexpr):
    """float32 -> dtype, to nearest, ties to even. Spelt out for bf16, which the interpreter
    truncates."""
    if dtype == tl.bfloat16:
        bits = v.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        v = tl.where(v == v, bits.to(tl.float32, bitcast=True), v)
    return v.to(dtype)


@triton.jit
def _times(a, b):
    """High and low words of a*b, both uint32."""
    wide = a.to(tl.uint64) * b.to(tl.uint64)
    return (wide >> 32).to(tl.uint32), wide.to(tl.uint32)


@triton.jit
def philox(c0, c1, c2, c3, seed_low, seed_high):
    """Philox-4x32-10 on uint32; the twin of csrc/common/philox.h."""
    k0, k1 = seed_low, seed_high
    m0 = tl.full((), 0xD2511F53, tl.uint32)
    m1 = tl.full((), 0xCD9E8D57, tl.uint32)
    w0 = tl.full((), 0x9E3779B9, tl.uint32)
    w1 = tl.full((), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _times(m0, c0)
        high1, low1 = _times(m1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0.to(tl.uint64) + w0.to(tl.uint64)).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + w1.to(tl.uint64)).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _radius(a, b):
    """sqrt(-2 ln u) of the 40 bits in a and the low byte of b; csrc/common/normal.h says how."""
    turned = (a.to(tl.int32, bitcast=True) >> 31).to(tl.uint32, bitcast=True)
    high = (a ^ turned).to(tl.int32, bitcast=True).to(tl.float32)
    low = ((b ^ turned) & 255).to(tl.int32, bitcast=True).to(tl.float32)
    t = high * 4.656612873077393e-10 + (low + 0.5) * 1.8189894035458565e-12
    bits = t.to(tl.uint32, bitcast=True)
    y = tl.where(
        turned != 0, t, 2.0 - ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    )
    e = ((bits >> 23).to(tl.int32, bitcast=True) - 127).to(tl.float32)
    whole = tl.where(turned != 0, 0.0, e * -1.3862943649291992)
    y2 = y * y
    q01 = 0.24999761581420898 + 0.08340787887573242 * y
    q23 = 0.03046148084104061 + 0.0164763443171978 * y
    q45 = -0.0056458450853824615 + 0.018875950947403908 * y
    q67 = -0.012803182005882263 + 0.005524084437638521 * y
    q = (q01 + q23 * y2) + (q45 + q67 * y2) * (y2 * y2)
    return tl.sqrt_rn(whole + (y + y2 * q))


@triton.jit
def _turn(b):
    """cos and sin of the angle (b >> 8) / 2^24 of a full turn."""
    quarter = b + 0x20000000
    x = (((quarter >> 7) & 0x7FFFFE) | 0x3F800000).to(tl.float32, bitcast=True) - 1.5
    g = x * x
    s = (
        (-0.004628783091902733 * g + 0.07969201356172562) * g - 0.6459649801254272
    ) * g + 1.5707963705062866
    s = x * s
    c = (
        (0.0008943388820625842 * g - 0.02085557021200657) * g + 0.25366854667663574
    ) * g - 1.2337005138397217
    c = c * g + 1.0
    odd = (quarter & 0x40000000) != 0
    cosine = tl.where(odd, s, c).to(tl.uint32, bitcast=True) ^ ((quarter + 0x40000000) & 0x80000000)
    sine = tl.where(odd, c, s).to(tl.uint32, bitcast=True) ^ (quarter & 0x80000000)
    return cosine.to(tl.float32, bitcast=True), sine.to(tl.float32, bitcast=True)


@triton.jit
def normals(w0, w1, w2, w3):
    """Four standard normal numbers from four uint32 words; the twin of csrc/common/normal.h, bit
    for bit."""
    cosine0, sine0 = _turn(w1)
    cosine1, sine1 = _turn(w3)
    r0, r1 = _radius(w0, w1), _radius(w2, w3)
    return r0 * cosine0, r0 * sine0, r1 * cosine1, r1 * sine1


def layout_flags(**tensors: torch.Tensor | None) -> dict[str, bool | int]:
    """C, AREA, INTERLEAVED: how elements are counted, and NAME_CROSSED for each tensor."""
    _, c, h, w = tensors["x"].shape
    flat = c == 1 or h * w == 1  # both layouts are one
    interleaved = {
        k: t is not None and not flat and not t.is_contiguous() for k, t in tensors.items()
    }
    order = any(interleaved.values())
    other = {
        f"{k.upper()}_CROSSED": order and t is not None and not interleaved[k]
        for k, t in tensors.items()
    }
    return {"C": c, "AREA": h * w, "INTERLEAVED": order, **other}


def crossed(flags: dict[str, bool | int]) -> bool:
    return any(v for k, v in flags.items() if k.endswith("_CROSSED"))


def blocking(
    flags: dict[str, bool | int], *tensors: torch.Tensor | None, scattered: bool = False
) -> dict[str, int]:
    """BLOCK and num_warps for elementwise work on these tensors.

    Eight elements a thread are 16 bytes of half precision, four are float32's 16 bytes; with more
    of them Triton takes the stores through shared memory. Four, too, where a tensor is read element
    by element: a warp stays close together.
    """
    few = (
        scattered or crossed(flags) or any(t is not None and t.element_size() > 2 for t in tensors)
    )
    largest = 8192 if interpreted() else 1024
    block = min(largest, max(256, triton.next_power_of_2(flags["C"] * flags["AREA"])))
    return {"BLOCK": block, "num_warps": block // (128 if few else 256)}


def interpreted() -> bool:
    """The interpreter pays by the program, so that blocks are large there."""
    return triton.knobs.runtime.interpret


def normalisation(mean: list[float], std: list[float]) -> list[float]:
    """The three means and the three 1/std; channels that are not there get numbers that change
    nothing."""
    return [*mean, 0.0, 0.0, 0.0][:3] + [*(1 / s for s in std), 1.0, 1.0, 1.0][:3]


def check_rows(name: str, index: torch.Tensor, n: int) -> None:
    """On the CPU a wrong row is an IndexError. On a GPU the kernel skips it: looking would stop the
    device."""
    if not index.is_cuda and index.numel():
        low, high = (int(v) for v in index.aminmax())
        if low < 0 or high >= n:
            raise IndexError(f"{name} holds {low if low < 0 else high}, outside of [0, {n})")


def on_device_of(t: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device."""
    return torch.cuda.device_of(t)


def example(dtype: torch.dtype, interleaved: bool, side: int = 32) -> torch.Tensor:
    """[2, 3, side, side] for the kernels' `launches`, which are compiled without a GPU."""
    layout = torch.channels_last if interleaved else torch.contiguous_format
    return torch.zeros((2, 3, side, side), dtype=dtype).contiguous(memory_format=layout)
