"""`fastue protect` as a function: pictures in, noise by a method, then store, written pictures and manifest.

The directory it fills: `run.json` (arguments, source, versions; written first), `work/` (checkpoints while running),
`noise/` (shards), `images/` (the protected pictures), `surrogate.safetensors` (the network the noise was made with, for
`fastue certify`), `manifest.json` (written last: its presence means complete).
Publish `images/` only: the noise undoes the protection.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from fastue import models
from fastue.core import info
from fastue.core.clock import Clock
from fastue.core.errors import UsageError
from fastue.data.atomic import atomic_write_json, free_space_check, make_folder, writing
from fastue.data.dataset import ImageDataset
from fastue.data.layout import MANIFEST, RUN_FILE, SURROGATE_FILE
from fastue.data.store import NoiseStore, tidy
from fastue.data.writers import write_folder
from fastue.methods.base import Checkpointer, Perturbation, budget_levels
from fastue.methods.emn import EMNConfig, emn, published_stop
from fastue.methods.pue import pue
from fastue.models import saved

METHODS = {"emn": emn, "pue": pue}
COMPATS = {
    "none": "signed noise, rounded to nearest",
    "emn2021": "as the public EMN code: stops after one good sweep, and every negative noise value becomes 0",
}


def protect(
    data: ImageDataset,
    out: Path,
    config: EMNConfig,
    *,
    device: torch.device,
    compat: str = "none",
    size: int | None = None,
    checkpoint_seconds: float = 30.0,
    clock: Clock | None = None,
    progress: Callable[[str, int, int, dict], None] = lambda phase, done, total, info: None,
) -> Perturbation | None:
    """Protect `data` into `out`; None if `out` already holds the finished result of the same arguments.

    Killed at any moment and called again with the same arguments, it goes on from the last checkpoint and ends in the
    same bytes. Raises UsageError where `out` holds something else or another process is writing there.
    """
    if compat not in COMPATS:
        raise UsageError(f"--compat {compat}: use one of {', '.join(COMPATS)}")
    if compat == "emn2021":
        config = published_stop(config)
    levels = budget_levels(config.eps)
    models.build(
        config.arch, data.num_classes, data.shape[0]
    )  # a wrong name fails before anything is written
    arguments = {
        "method": config.method, "config": asdict(config), "compat": compat, "size": size, "device": device.type,
        "source_fingerprint": data.fingerprint(),
    }  # fmt: skip
    with _claimed(out):
        tidy(out)
        run = _begin(out, arguments, data.source)
        if (out / MANIFEST).exists():
            shutil.rmtree(out / "work", ignore_errors=True)
            return None
        # Sums of a network's layers may depend on the number of threads: a resumed run keeps what it began with.
        torch.set_num_threads(run["threads"])
        free_space_check(out, _bytes_needed(data, config))
        checkpoint = Checkpointer(out / "work", checkpoint_seconds)
        result = METHODS[config.method](
            data.to(device), config, checkpoint=checkpoint, clock=clock, progress=progress
        )
        noise = result.quantised()

        with (clock or Clock())("store"):
            store = NoiseStore.create(
                out, data, per=result.per, eps=config.eps, levels=levels,
                header={"method": config.method, "config": asdict(config), "compat": compat, "history": result.history},
            )  # fmt: skip
            for shard in store.missing_shards():
                store.write_shard(shard, noise[store.shard_slice(shard)])
            rows = data.labels if config.mode == "class" else torch.arange(len(data))
            files = write_folder(
                out / "images", data, noise, rows, compat_emn2021=compat == "emn2021",
                progress=lambda done, total: progress("write", done, total, {}),
            )  # fmt: skip
            saved.save(
                out / SURROGATE_FILE, result.surrogate, arch=config.arch, classes=data.classes, channels=data.shape[0],
                trained_by=f"fastue protect --method {config.method}", config=asdict(config),
            )  # fmt: skip
            store.finish(files)
            shutil.rmtree(out / "work", ignore_errors=True)
    return result


def _begin(out: Path, arguments: dict, source: str) -> dict:
    """Write run.json, or compare with the one an earlier run left. Returns its content."""
    path = out / RUN_FILE
    if not path.exists():
        if foreign := sorted(entry.name for entry in out.iterdir() if entry.name != ".lock"):
            raise UsageError(
                f"--out {out}: is not empty (holds {', '.join(foreign[:3])}); name a new directory"
            )
        local = "" if ":" in source and not os.path.exists(source) else os.path.abspath(source)
        run = {
            **arguments,
            "source": local or source,
            "threads": torch.get_num_threads(),
            "versions": info.collect(),
        }
        atomic_write_json(path, run)
        return run
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: damaged ({error}); name a new --out") from error
    for name, value in _flat(arguments).items():
        before = _flat(run).get(name)
        if before != value:
            raise UsageError(
                f"--out {out}: holds a run with another {name} ({before!r}, now {value!r}); "
                "repeat its arguments to go on with it, or name a new directory"
            )
    return run


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Hold `out` for this process; the claim ends with the process, however it ends."""
    import fcntl

    make_folder(out)
    with writing(out):
        lock = open(out / ".lock", "w")  # noqa: SIM115 - held open for as long as the claim lasts
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"--out {out}: another fastue is writing there") from error
        yield
        with contextlib.suppress(OSError):
            os.unlink(out / ".lock")


def _bytes_needed(data: ImageDataset, config: EMNConfig) -> int:
    """An upper estimate of the disk a run takes: pictures, noise, and two checkpoints of the working state."""
    rows = len(data) if config.mode == "sample" else data.num_classes
    pixels = data.images[0].numel()
    return len(data) * (pixels + 1024) + rows * pixels * (1 + 2 * 4) + (64 << 20)
