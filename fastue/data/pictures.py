"""One picture file to uint8 pixels, with a policy for all that is not plain 8-bit RGB or gray."""

import io
from pathlib import Path

import numpy as np

# Pillow loads its decoders late, and not all of them safely from threads: they are loaded here.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib"})
# Named, so that no other decoder is tried on a file that only pretends to be a picture.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB")
MAX_PIXELS = 64 * 1024 * 1024
_ORIENTATION = 0x0112


class PictureError(Exception):
    """A file that is not a readable picture; the text is the reason, without the file's name."""


def decode(path: Path | io.BytesIO, size: int | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pixels uint8 [H,W,C] (C = 1 for gray, else 3) of a file, or of its bytes, and in short phrases
    what had to be converted.

    With `size`, the shorter side is resized to it (bicubic) and the centre size x size is cut out.
    Raises PictureError for anything unreadable, damaged or larger than MAX_PIXELS.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise PictureError(
                    f"{picture.width}x{picture.height} is more than {MAX_PIXELS:,} pixels; "
                    "make it smaller first"
                )
            return _convert(picture, size)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"more than {MAX_PIXELS:,} pixels; make it smaller first") from error
    except PermissionError as error:
        raise PictureError("no permission to read it") from error
    except FileNotFoundError as error:
        raise PictureError("no such file (a dangling link?)") from error
    except Image.UnidentifiedImageError as error:
        size_of = path.stat().st_size if isinstance(path, Path) else len(path.getbuffer())
        empty = size_of == 0
        reason = "empty file" if empty else "not a PNG, JPEG, WebP or BMP picture"
        raise PictureError(reason) from error
    except MemoryError as error:
        raise PictureError("not enough memory to decode it") from error
    # Pillow's decoders report damage as OSError, SyntaxError, ValueError, struct.error and others.
    except Exception as error:
        raise PictureError(f"damaged: {error}") from error


def _convert(file: ImageFile.ImageFile, size: int | None) -> tuple[np.ndarray, tuple[str, ...]]:
    conversions: list[str] = []
    if getattr(file, "n_frames", 1) > 1:
        conversions.append("animated, first frame taken")
        file.seek(0)
    # Pillow reads 16-bit RGB as 8-bit by itself; only the raw mode of its tiles tells.
    wide = any("16" in str(part) for tile in file.tile for part in _flat(tile[3]))
    orientation = file.getexif().get(_ORIENTATION, 1)
    file.load()
    picture: Image.Image = file
    if wide or picture.mode.startswith("I"):
        conversions.append("16-bit reduced to 8-bit")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
        picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        conversions.append(f"{picture.mode} converted to RGB")
        picture = picture.convert("RGB")
    if picture.mode == "1":
        picture = picture.convert("L")
    if picture.mode in ("P", "PA"):
        conversions.append("palette converted to RGB")
    if picture.has_transparency_data:
        conversions.append("transparency laid over white")
        gray = picture.mode in ("L", "LA", "La")
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if gray else "RGB")
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    if orientation not in (0, 1):
        conversions.append("turned upright by its EXIF orientation")
        picture.getexif()[_ORIENTATION] = orientation
        picture = ImageOps.exif_transpose(picture)
    if size is not None and picture.size != (size, size):
        picture = fit(picture, size)
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1), tuple(conversions)


def _flat(part: object) -> tuple:
    return part if isinstance(part, tuple) else (part,)


def fit(picture: Image.Image, size: int) -> Image.Image:
    """The shorter side resized to `size` (bicubic), then the centre size x size."""
    width, height, left, top = placed(*picture.size, size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return picture.crop((left, top, left + size, top + size))


def placed(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """What `fit` resizes a picture to (width, height), and where in it the centre begins (left,
    top).
    """
    short = min(width, height)
    width, height = max(size, round(width * size / short)), max(size, round(height * size / short))
    return width, height, (width - size) // 2, (height - size) // 2


def dimensions(path: Path) -> tuple[int, int]:
    """Width and height as a file says, before it is turned upright; (0, 0) where it does not."""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            return picture.size
    except Exception:  # decode will say why
        return 0, 0
