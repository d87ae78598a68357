"""`fastue purify` as a function: protected pictures through a diffusion purifier, written as PNG
files.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import (
    atomic_write_bytes,
    atomic_write_json,
    make_folder,
    remove_stale,
    sync_all,
    writing,
)
from fastue.data.dataset import ImageDataset
from fastue.data.folder import some
from fastue.data.layout import MANIFEST
from fastue.data.sources import open_dataset
from fastue.data.verify import open_protected
from fastue.data.writers import encode_png, picture_hashes, picture_names
from fastue.models.training import resolve_device
from fastue.purifiers import apply
from fastue.purifiers.sampling import BATCH, SAMPLERS
from fastue.purifiers.sampling import purify as sample
from fastue.purifiers.training import trained

DONE, BEGUN = "purified.json", "purifying.json"
# Levels, root mean square: noise of 8/255 cannot be further from its original.
NEAR = 8.0


@dataclass
class PurifyResult:
    """What a call of `purify` came to."""

    path: Path
    pictures: int
    written: int  # by this call; the others were there already


def purify(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: str = "jcdp",
    *,
    aux: str | os.PathLike[str],
    steps: int | None = None,
    seed: int = 0,
    size: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> PurifyResult:
    """Purify the pictures of `source` into out/<class>/<name>.png, labels and names kept.

    source  a directory of `fastue protect`, or pictures as open_dataset takes them
    method  oneshot, avatar or jcdp (docs/PURIFY.md)
    aux     clean pictures that the purifier is trained on, as open_dataset takes them; none of them
            may be in `source`
    steps   of an iteration (default: the method's)
    seed    of the noise
    size    resizes the pictures of `aux`, and of a `source` that is no protected directory
    cache   where the trained purifier is kept (default: `purifiers` beside `out`)

    A call that was killed goes on where it was and ends with the same files; out/purified.json is
    written last. Its `oracle` says whether pictures of `aux` are within 8/255 (root mean square) of
    pictures of `source`, and so probably their originals; `aux_near` says how many. Raises
    UsageError for an `out` that holds something else, and DataError for pictures that do not fit,
    or that are in both sets.
    """
    if method not in SAMPLERS:
        raise UsageError(f"--with {method}: unknown. Use one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[method]
    if steps is not None:
        if not 1 <= steps <= sampler.start:
            raise UsageError(f"--steps {steps}: {method} takes 1 to {sampler.start}")
        sampler = replace(sampler, steps=steps)
    out, target = Path(out), resolve_device(device)
    if (Path(source) / MANIFEST).exists():
        data = open_protected(source)
    else:
        data = open_dataset(source, size=size)
    own = open_dataset(aux, size=size)
    apply.check_aux(data, own)
    _refuse_shared(data, own)
    names, _ = picture_names(data)
    about = {
        "method": method,
        "sampler": asdict(sampler),
        "purifier": asdict(apply.CONFIG),
        "seed": seed,
        "source": data.fingerprint(),
        "aux": own.fingerprint(),
        "aux_pictures": len(own),
        "aux_near": (near := _near(data, own)),
        "oracle": near > 0,  # the purifier has seen originals of these pictures, by their looks
        "pictures": len(data),
    }
    if _begin(out, about):
        return PurifyResult(out, len(data), 0)
    kept = out.absolute().parent / "purifiers" if cache is None else Path(cache)
    net = trained(own.to(target), apply.CONFIG, cache=kept, progress=progress)
    written = 0
    with writing(out):
        for begin in range(0, len(data), BATCH):
            rows = torch.arange(begin, min(begin + BATCH, len(data)))
            files = [out / names[row] for row in rows.tolist()]
            if not all(file.exists() for file in files):  # each is whole or not there
                x = data.take(rows).to(target)
                pictures = sample(net, x, rows.to(target), sampler, seed=seed).cpu()
                for file, picture in zip(files, pictures, strict=True):
                    make_folder(file.parent)
                    png = encode_png(picture.permute(1, 2, 0).contiguous().numpy())
                    atomic_write_bytes(file, png, durable=False)
                written += len(rows)
            progress("pictures", begin + len(rows), len(data))
        sync_all()
    atomic_write_json(out / DONE, about)
    (out / BEGUN).unlink()
    return PurifyResult(out, len(data), written)


def _begin(out: Path, about: dict) -> bool:
    """Whether `out` is finished; otherwise it is there and marked as begun by this call."""
    for name in (DONE, BEGUN):
        if (out / name).exists():
            try:
                there = json.loads((out / name).read_text())
            except ValueError as error:
                raise DataError(f"{out / name}: damaged; remove {out}") from error
            if there != json.loads(json.dumps(about)):
                raise UsageError(f"{out}: holds other pictures or settings; choose another --out")
            if name == BEGUN:
                remove_stale(out)
            return name == DONE
    make_folder(out)
    if any(out.iterdir()):
        raise UsageError(f"{out}: exists and is not empty; choose another --out")
    atomic_write_json(out / BEGUN, about)
    return False


def _refuse_shared(data: ImageDataset, aux: ImageDataset) -> None:
    """An auxiliary picture that is to be purified would make the attack look stronger."""
    ours = set(picture_hashes(data))
    shared = [name for name, own in zip(aux.ids, picture_hashes(aux), strict=True) if own in ours]
    if shared:
        raise DataError(
            f"--aux: {len(shared)} of its pictures are among those to purify: {some(shared)}. "
            "Leave them out"
        )


def _near(data: ImageDataset, aux: ImageDataset) -> int:
    """How many pictures of `aux` are within NEAR of one of `data`."""
    near, most = torch.zeros(len(aux), dtype=torch.bool), NEAR**2 * math.prod(data.shape)
    for begin in range(0, len(data), 1024):
        x = _centred(data, begin, len(data))
        for first in range(0, len(aux), 1024):
            y = _centred(aux, first, len(aux))
            squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
            near[first : first + len(y)] |= (squares <= most).any(0)
    return int(near.sum())


def _centred(data: ImageDataset, begin: int, end: int) -> torch.Tensor:
    """1024 pictures from `begin` on, float32 [B, C*H*W] around 0."""
    rows = torch.arange(begin, min(begin + 1024, end))
    return data.take(rows).cpu().flatten(1).float() - 128
