"""`fastue purify` as a function: protected pictures through a diffusion purifier, written as PNG
files.
"""

import io
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastue.commands.attack import originals_of
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
from fastue.data.layout import MANIFEST, RUN_FILE
from fastue.data.pictures import decode
from fastue.data.preview import difference, one_of_each, picture_grid
from fastue.data.sources import open_dataset
from fastue.data.tensorfile import file_sha256
from fastue.data.verify import open_protected
from fastue.data.writers import encode_png, picture_hashes, picture_names
from fastue.models.training import resolve_device
from fastue.purifiers import dvae
from fastue.purifiers.apply import check_aux
from fastue.purifiers.perceptual import lpips, trained_features
from fastue.purifiers.sampling import BATCH, COMPAT, SAMPLERS, Sampler
from fastue.purifiers.sampling import purify as sample
from fastue.purifiers.training import CONFIGS, PurifierConfig, trained

DONE, BEGUN = "purified.json", "purifying.json"
# Levels, root mean square: noise of 8/255 cannot be further from its original.
NEAR = 8.0
SHOWN = 8  # pictures of the grid
PERCEPTUAL = ("features", "lpips")


@dataclass
class PurifyResult:
    """What a call of `purify` came to."""

    path: Path
    pictures: int
    written: int  # by this call; the others were there already
    grid: Path  # a picture of some of them


def purify(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    method: str = "jcdp",
    *,
    aux: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    net: str = "small",
    train_steps: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    perceptual: str = "features",
    compat: str | None = None,
    seed: int = 0,
    size: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> PurifyResult:
    """Purify the pictures of `source` into out/<class>/<name>.png, labels and names kept.

    source  a directory of `fastue protect`, or pictures as open_dataset takes them
    method  oneshot, avatar, jcdp, or dvae, which takes none of what follows but seed, size, cache
            and device (docs/PURIFY.md)
    aux     clean pictures that the purifier is trained on, as open_dataset takes them; none of them
            may be in `source`, or among its originals where these still are where protect read
            them. "oracle": those originals themselves, as some papers have it
    steps   of an iteration (default: the method's)
    net     small, or ddpm-cifar, the network of the literature (needs diffusers)
    train_steps  of the network (default: its own number, but none with `weights`)
    weights  a published file that ddpm-cifar begins with, of DDIM's layout or score_sde's
    perceptual  how jcdp compares looks: features of a small classifier of `aux`, or lpips, with the
            package and its weights on disk
    compat  jcdp2023: the sampler released with JCDP to the letter, its guidance averaged over 500
            pictures
    seed    of the noise
    size    resizes the pictures of `aux`, and of a `source` that is no protected directory
    cache   where the trained purifier is kept (default: `purifiers` beside `out`)

    A call that was killed goes on where it was and ends with the same files; out/purified.json is
    written last, and beside `out` <its name>-grid.png, some pictures before and after. `oracle` says
    whether pictures of `aux` are within 8/255 (root mean square) of pictures of `source`, and so
    probably their originals; `aux_near` says how many. Raises UsageError for an `out` that holds
    something else, and DataError for pictures that do not fit, or that are in both sets.
    """
    out, target = Path(out), resolve_device(device)
    if (Path(source) / MANIFEST).exists():
        data, originals = open_protected(source), _originals(Path(source))
    else:
        data, originals = open_dataset(source, size=size), None
    kept = out.absolute().parent / "purifiers" if cache is None else Path(cache)
    if method == "dvae":
        if (aux, steps, train_steps, weights, compat) != (None,) * 5:
            raise UsageError("--with dvae: takes no --aux, and nothing of the diffusion purifiers")
        about, start = _dvae(data, seed, kept, target, progress)
    else:
        sampler = _sampler(method, steps, compat)
        config = _config(net, train_steps, weights)
        if perceptual not in PERCEPTUAL:
            raise UsageError(f"--perceptual {perceptual}: use one of {', '.join(PERCEPTUAL)}")
        own, near = _auxiliary(data, originals, aux, size)
        about, start = _diffusion(
            data, own.to(target), sampler, config, weights, perceptual, seed, kept, progress
        )
        about |= {"aux": own.fingerprint(), "aux_pictures": len(own), "aux_near": near}
        about |= {"oracle": near > 0}  # the purifier has seen originals, by their looks
    about = {"method": method, "seed": seed, "source": data.fingerprint(), **about}
    about["pictures"] = len(data)
    names, _ = picture_names(data)
    grid = out.absolute().with_name(f"{out.absolute().name}-grid.png")
    if _begin(out, about):
        return PurifyResult(out, len(data), 0, grid)
    together, purified = start()
    written = 0
    with writing(out):
        for begin in range(0, len(data), together):
            rows = torch.arange(begin, min(begin + together, len(data)))
            files = [out / names[row] for row in rows.tolist()]
            if not all(file.exists() for file in files):  # each is whole or not there
                for file, picture in zip(files, purified(rows).cpu(), strict=True):
                    make_folder(file.parent)
                    png = encode_png(picture.permute(1, 2, 0).contiguous().numpy())
                    atomic_write_bytes(file, png, durable=False)
                written += len(rows)
            progress("pictures", begin + len(rows), len(data))
        sync_all()
    _draw(grid, data, originals, [out / name for name in names])
    atomic_write_json(out / DONE, about)
    (out / BEGUN).unlink()
    return PurifyResult(out, len(data), written, grid)


# How many pictures are done together, and rows -> these, purified
Started = tuple[int, Callable[[torch.Tensor], torch.Tensor]]


def _dvae(
    data: ImageDataset, seed: int, cache: Path, target: torch.device, progress: Callable
) -> tuple[dict, Callable[[], Started]]:
    """What purified.json says of it, and what begins it."""

    def start() -> Started:
        images = dvae.dvae(data.to(target), dvae.CONFIG, seed=seed, cache=cache, progress=progress)
        return BATCH, lambda rows: images[rows.to(target)]

    return {"dvae": asdict(dvae.CONFIG)}, start


def _diffusion(
    data: ImageDataset,
    aux: ImageDataset,
    sampler: Sampler,
    config: PurifierConfig,
    weights: str | os.PathLike[str] | None,
    perceptual: str,
    seed: int,
    cache: Path,
    progress: Callable,
) -> tuple[dict, Callable[[], Started]]:
    """The same of a sampler."""
    about = {"sampler": asdict(sampler), "purifier": asdict(config)}
    if sampler.looks:
        about["perceptual"] = perceptual

    def start() -> Started:
        path, distance = None if weights is None else Path(weights), None
        if sampler.looks:  # before the training: what is missing is told at once
            lpips_asked = perceptual == "lpips"
            distance = lpips(aux.device) if lpips_asked else trained_features(aux, cache=cache)
        model = trained(aux, config, weights=path, cache=cache, progress=progress)

        def purified(rows: torch.Tensor) -> torch.Tensor:
            x, rows = data.take(rows).to(aux.device), rows.to(aux.device)
            return sample(model, x, rows, sampler, seed=seed, distance=distance)

        return sampler.batch, purified

    return about, start


def _auxiliary(
    data: ImageDataset,
    originals: ImageDataset | None,
    aux: str | os.PathLike[str] | None,
    size: int | None,
) -> tuple[ImageDataset, int]:
    """The auxiliary pictures, and how many of them are near the pictures to purify."""
    if aux is None:
        raise UsageError(
            "--aux: a diffusion model is trained on clean pictures; --with dvae is not"
        )
    if str(aux) == "oracle":
        if originals is None:
            raise UsageError("--aux oracle: the originals are not where protect read them")
        return originals, len(originals)
    own = open_dataset(aux, size=size)
    check_aux(data, own)
    _refuse_shared(data, own, "those to purify")
    if originals is not None:
        _refuse_shared(originals, own, "the originals of those to purify")
    return own, _near(data, own)


def _sampler(method: str, steps: int | None, compat: str | None) -> Sampler:
    if method not in SAMPLERS:
        raise UsageError(f"--with {method}: unknown. Use one of {', '.join(SAMPLERS)}, dvae")
    if compat is not None:
        if compat not in COMPAT or method != "jcdp" or steps is not None:
            raise UsageError(f"--compat {compat}: jcdp2023 is a form of --with jcdp, of 20 steps")
        return COMPAT[compat]
    sampler = SAMPLERS[method]
    if steps is None:
        return sampler
    if not 1 <= steps <= sampler.start:
        raise UsageError(f"--steps {steps}: {method} takes 1 to {sampler.start}")
    return replace(sampler, steps=steps)


def _config(net: str, steps: int | None, weights: str | os.PathLike[str] | None) -> PurifierConfig:
    if net not in CONFIGS:
        raise UsageError(f"--net {net}: unknown. Use one of {', '.join(CONFIGS)}")
    config = CONFIGS[net]
    if weights is not None:
        if net != "ddpm-cifar":
            raise UsageError("--weights: only --net ddpm-cifar takes published weights")
        config = replace(config, weights=file_sha256(weights), steps=0)
    return config if steps is None else replace(config, steps=steps)


def _originals(directory: Path) -> ImageDataset | None:
    """Those of a protected directory, if they still are where protect read them."""
    manifest = json.loads((directory / MANIFEST).read_text())
    run = directory / RUN_FILE
    run = json.loads(run.read_text()) if run.exists() else {}
    size = run.get("size") or manifest.get("size")
    return originals_of(None, run.get("source"), size, manifest)


def _draw(
    path: Path, data: ImageDataset, originals: ImageDataset | None, files: list[Path]
) -> None:
    """The first picture of some classes: before, after, and the difference to the original, or
    where that is not known to the picture before."""
    rows = torch.tensor(one_of_each(data.labels, SHOWN))
    before = data.take(rows).cpu()
    after = np.stack([decode(files[row])[0] for row in rows.tolist()])
    after = torch.from_numpy(after).permute(0, 3, 1, 2)
    columns = {"protected": before, "purified": after}
    if originals is None:
        columns["to protected x10"] = difference(before, after)
    else:
        clean = originals.take(rows).cpu()
        columns = {"clean": clean, **columns, "to clean x10": difference(clean, after)}
    buffer = io.BytesIO()
    picture_grid(columns).save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())


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


def _refuse_shared(data: ImageDataset, aux: ImageDataset, what: str) -> None:
    """An auxiliary picture that is to be purified would make the attack look stronger."""
    theirs = set(picture_hashes(data))
    shared = [name for name, own in zip(aux.ids, picture_hashes(aux), strict=True) if own in theirs]
    if shared:
        raise DataError(
            f"--aux: {len(shared)} of its pictures are among {what}: {some(shared)}. Leave them "
            "out, or ask for --aux oracle"
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
