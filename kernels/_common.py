"""What the kernels share: where an element lies in each layout, exact arithmetic, keyed draws,
launching.

A program works on BLOCK elements of one picture. They are counted in the interleaved order where
any tensor has it, else in the planar order, so that neighbouring threads have neighbouring elements
of every tensor; a planar tensor beside interleaved ones is `CROSSED`. The sizes of pictures are
constants: a data set has one, and Triton sees what it is divisible by and makes vector accesses.
Half precision becomes float32 right after the load: the interpreter's bf16 is garbage.

Where pictures are seen cropped, or a value of the bank is shown on a block of pixels, a second
kernel of an op counts the elements of the bank, and a thread goes through the pixels of its block.
"""

import contextlib

import torch
import triton
import triton.language as tl

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Of keyed draws; the table is in fastue/ops/_keyed.py.
PURPOSE_CROP_FLIP = tl.constexpr(1)
PURPOSE_DIFFUSION_START = tl.constexpr(7)
PURPOSE_DIFFUSION_STEP = tl.constexpr(8)
PURPOSE_DIFFUSION_COPY = tl.constexpr(9)


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
def element(channel, pixel, area, C: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The way back from `channel_and_pixel`, and the offset in a tensor of that layout."""
    if INTERLEAVED:
        return pixel * C + channel
    return channel * area + pixel


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
def window(ids_ptr, i, seed_low, seed_high, epoch, pad, CROP: tl.constexpr):
    """Where the window on picture i starts, down and right in [-pad, pad], and whether it is
    mirrored; without CROP it is the picture itself."""
    if not CROP:
        return 0, 0, False
    word = tl.load(ids_ptr + i)
    purpose = tl.full((), PURPOSE_CROP_FLIP, tl.uint32)
    down, right, mirror, _ = philox(
        word.to(tl.uint32), (word >> 32).to(tl.uint32), epoch.to(tl.uint32), purpose,
        seed_low.to(tl.uint32), seed_high.to(tl.uint32),
    )  # fmt: skip
    choices = (2 * pad + 1).to(tl.uint64)
    down = ((down.to(tl.uint64) * choices) >> 32).to(tl.int32) - pad
    right = ((right.to(tl.uint64) * choices) >> 32).to(tl.int32) - pad
    return down, right, (mirror >> 31) != 0


@triton.jit
def inside(row, column, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)


@triton.jit
def source(row, column, down, right, mirrored, WIDTH: tl.constexpr, FLIP: tl.constexpr):
    """Row and column of the picture that the window shows at (row, column); they may lie outside
    of it."""
    if FLIP:
        column = tl.where(mirrored, WIDTH - 1 - column, column)
    return row + down, column + right


@triton.jit
def shown(row, column, down, right, mirrored, WIDTH: tl.constexpr, FLIP: tl.constexpr):
    """The way back: where the window shows (row, column) of the picture; maybe outside of it."""
    row, column = row - down, column - right
    if FLIP:
        column = tl.where(mirrored, WIDTH - 1 - column, column)
    return row, column


@triton.jit
def corner(pixel, WIDTH: tl.constexpr, GRAIN: tl.constexpr):
    """Of pixel [BLOCK] of the bank: row and column of the first pixel of the picture that shows
    it."""
    wide: tl.constexpr = (WIDTH + GRAIN - 1) // GRAIN
    return pixel // wide * GRAIN, pixel % wide * GRAIN


@triton.jit
def pixels(top, left, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, GRAIN: tl.constexpr):
    """How many pixels the block at (top, left) has: fewer at the edge of the picture."""
    high, wide = tl.minimum(HEIGHT - top, GRAIN), tl.minimum(WIDTH - left, GRAIN)
    return (high * wide).to(tl.float32)


@triton.jit
def block_gradient(
    grad_ptr,  # of the picture, as it was shown
    channel, top, left, known,
    down, right, mirrored,
    C: tl.constexpr,
    AREA: tl.constexpr,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
    FLIP: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Sum over the pixels of a block, line by line; what the window does not show counts 0."""
    height: tl.constexpr = AREA // WIDTH
    total = tl.zeros_like(known.to(tl.float32))
    for t in range(GRAIN * GRAIN):
        row, column = top + t // GRAIN, left + t % GRAIN
        visible = known & inside(row, column, height, WIDTH)
        row, column = shown(row, column, down, right, mirrored, WIDTH, FLIP)
        visible = visible & inside(row, column, height, WIDTH)
        at = element(channel, row * WIDTH + column, AREA, C, INTERLEAVED)
        total += tl.load(grad_ptr + at, mask=visible, other=0).to(tl.float32)
    return total


@triton.jit
def block_room(
    x_ptr,  # of the picture
    channel, top, left, known,
    C: tl.constexpr,
    AREA: tl.constexpr,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """How much darker and how much brighter the pixel of a block with the most room can become."""
    height: tl.constexpr = AREA // WIDTH
    darker = tl.zeros_like(known.to(tl.float32))
    brighter = darker
    for t in range(GRAIN * GRAIN):
        row, column = top + t // GRAIN, left + t % GRAIN
        visible = known & inside(row, column, height, WIDTH)
        at = element(channel, row * WIDTH + column, AREA, C, INTERLEAVED)
        p = unit_pixel(tl.load(x_ptr + at, mask=visible, other=0))
        darker = tl.maximum(darker, p)
        brighter = tl.maximum(brighter, tl.where(visible, 1.0 - p, 0.0))
    return darker, brighter


@triton.jit
def show_block(
    out_ptr,  # of the picture
    x_ptr,
    n,  # the noise of a block
    channel, top, left, known,
    down, right, mirrored,
    mean, inverse,  # of the channel
    C: tl.constexpr,
    AREA: tl.constexpr,
    WIDTH: tl.constexpr,
    GRAIN: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    X_INTERLEAVED: tl.constexpr,
    OUT_INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Write the block's pixels of the next input where the window shows them; and at the places
    that the block has in the picture, what the window has there of the black border."""
    height: tl.constexpr = AREA // WIDTH
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    for t in range(GRAIN * GRAIN):
        row, column = top + t // GRAIN, left + t % GRAIN
        real = known & inside(row, column, height, WIDTH)
        if CROP:
            above, beside = source(row, column, down, right, mirrored, WIDTH, FLIP)
            black = tl.zeros_like(n) - mean
            at = element(channel, row * WIDTH + column, AREA, C, OUT_INTERLEAVED)
            border = real & (inside(above, beside, height, WIDTH) == 0)
            tl.store(out_ptr + at, narrow(black * inverse, dtype), mask=border)
        at = element(channel, row * WIDTH + column, AREA, C, X_INTERLEAVED)
        p = unit_pixel(tl.load(x_ptr + at, mask=real, other=0))
        v = (limit(p + n, 0.0, 1.0) - mean) * inverse
        row, column = shown(row, column, down, right, mirrored, WIDTH, FLIP)
        at = element(channel, row * WIDTH + column, AREA, C, OUT_INTERLEAVED)
        tl.store(out_ptr + at, narrow(v, dtype), mask=real & inside(row, column, height, WIDTH))


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


def view(x, ids, seed, epoch, pad, flip, grain, unused: torch.Tensor) -> dict:
    """The arguments of a kernel that say how pictures are seen; `unused` stands for ids that are
    not there."""
    crop = ids is not None
    return dict(
        ids_ptr=ids if crop else unused, seed_low=seed & 0xFFFFFFFF,
        seed_high=seed >> 32 & 0xFFFFFFFF, epoch=epoch & 0xFFFFFFFF, pad=pad,
        WIDTH=x.shape[3], GRAIN=grain, CROP=crop, FLIP=crop and flip,
    )  # fmt: skip


def block_elements(noise: torch.Tensor, most: int = 256) -> dict[str, int]:
    """BLOCK and num_warps of a kernel that goes through blocks: two elements a thread, each of many
    pixels."""
    most = 8192 if interpreted() else most
    block = min(most, max(64, triton.next_power_of_2(noise[0].numel())))
    return {"BLOCK": block, "num_warps": block // 64}


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


SINGLY = ("noise", "grad", "x", "mask", "out")  # in the kernels that go through blocks


def views(dtype: torch.dtype, interleaved: bool, ids: torch.Tensor, side: int = 32):
    """For `launches`: banks for `example`, whether the next input is written, and the last
    arguments of the ops."""
    for grain, crop in ((1, True), (4, True), (16 if interleaved else 4, False)):
        bank = example(dtype, interleaved, side // grain)
        yield bank, crop, (ids if crop else None, 7, 1, 4, interleaved, grain)
