"""Noise as it comes from a file, before it is known which pictures it belongs to."""

from dataclasses import dataclass

import numpy as np

from fastue.core.errors import DataError


@dataclass(frozen=True)
class Noise:
    """levels int8 [M, C, h, w] in 1/255, a value for each square of `grain` x `grain` pixels of
    pictures of `shape` (C, H, W). The file may also say `per` ("sample" or "class"), the `ids` or
    class names the rows belong to, and `change` (fastue.data.budget.CHANGES).
    """

    levels: np.ndarray
    shape: tuple[int, int, int]
    grain: int = 1
    per: str | None = None
    names: list[str] | None = None
    change: str = "additive"


def of_array(path, array: np.ndarray) -> Noise:
    """From numbers as other codes keep them: float in [0,1] pixel units, or int8 in 1/255, [M,C,H,W]
    with one or three channels. Raises DataError for anything else, for NaN and for values above
    127/255.
    """
    if array.ndim != 4 or 0 in array.shape or array.shape[1] not in (1, 3):
        raise DataError(
            f"{path}: noise has shape {list(array.shape)}; expected [N or classes, 1 or 3, H, W]"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(f"{path}: noise holds NaN or infinite values")
        array = np.rint(array.astype(np.float64) * 255)
        if np.abs(array).max() > 127:
            raise DataError(
                f"{path}: noise of {np.abs(array).max():.0f}/255; it must be in [0,1] pixel units, "
                "at most 127/255"
            )
    elif array.dtype != np.int8:
        raise DataError(f"{path}: noise is {array.dtype}; it must be float32 or int8")
    return Noise(np.ascontiguousarray(array.astype(np.int8)), tuple(array.shape[1:]))
