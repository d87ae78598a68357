"""`fastue protect` as a function: pictures in, noise by a method, then store, written pictures and
manifest.

The directory it fills: `run.json` (arguments, source, versions; written first), `work/` (while
running: checkpoints, and of a large set its decoded pictures and its noise), `noise/` (shards),
`images/` (the protected pictures), `surrogate.safetensors` (the network the noise was made with,
for `fastue certify`; some methods have none), what the method adds (`key.safetensors`),
`manifest.json` (written last: its presence means complete), `preview.png`. Publish `images/` only:
the noise undoes the protection, and so does a key.
"""

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastue import distributed, methods
from fastue.commands.plan import Plan, disk_needed
from fastue.commands.plan import plan as plan_of
from fastue.commands.search import Attempt, search
from fastue.core import info, memory, stop
from fastue.core.clock import Clock
from fastue.core.errors import UsageError
from fastue.data import visibility
from fastue.data.atomic import atomic_write_json, free_space_check, make_folder, writing
from fastue.data.dataset import ImageDataset
from fastue.data.fullsize import files_of, mean_pixels, policy
from fastue.data.layout import MANIFEST, RUN_FILE, SURROGATE_FILE
from fastue.data.preview import preview_of
from fastue.data.sources import open_dataset, survey
from fastue.data.store import NoiseStore, tidy
from fastue.data.writers import write_folder
from fastue.methods.base import Config, Perturbation, silent
from fastue.models import saved
from fastue.models.training import resolve_device
from fastue.protocol.check import CheckResult

_LEAST_MEMORY = 64 << 20  # of pictures and of noise that a run keeps in memory, each


@dataclass
class ProtectResult:
    """What a call of `protect` came to."""

    directory: Path
    perturbation: Perturbation | None = None  # None: it was all there already, or only a plan
    seconds: float = 0.0
    plan: Plan | None = None  # where only that was asked for
    check: CheckResult | None = None  # None: not checked

    @property
    def converged(self) -> bool | None:
        """Whether the method's stop rule was met; None where this call made no noise."""
        return None if self.perturbation is None else self.perturbation.converged


def protect(
    source: str | os.PathLike[str] | ImageDataset,
    out: str | os.PathLike[str],
    method: str = "emn",
    *,
    device: str | torch.device = "auto",
    check: bool = True,
    plan: bool = False,
    size: int | None = None,
    full_size: bool = False,
    labels: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    cache: str | os.PathLike[str] | None = None,
    max_memory: int | None = None,
    checkpoint_seconds: float = 30.0,
    clock: Clock | None = None,
    progress: Callable[[str, int, int, dict], None] = silent,
    tell: Callable[[str], None] = lambda line: None,
    **settings,
) -> ProtectResult:
    """Write a protected copy of the pictures in `source` to the directory `out`.

    source    a folder of class sub-folders, a .npz with x and y, torchvision:NAME:PATH, demo:train,
              or a data set
    method    emn, pue, keyed or lsp; `settings` are its flags, with underscores for hyphens:
              mode="class", eps=8/255, seed=1
    device    auto, cpu, cuda, cuda:1
    check     train a small victim on a part of the protected pictures, and on its originals; where
              it learns more than half of what those teach, the search goes on with more sweeps,
              then with stronger settings. `.check` of the result says what came of it in the end
    plan      only say what it will take, in `.plan` of the result
    size      resize the shorter side to this and cut out the centre
    full_size  make the noise at `size`, but write each picture at its own size, the noise enlarged
    labels    a CSV table of `file,class` lines for a folder that is not sorted into classes
    skip_bad  leave out pictures that cannot be read
    cache     a folder where decoded pictures are kept for the next run on the same source
    max_memory  bytes; what does not fit beside the network in a part of it, pictures or noise, is
              kept in files while the run lasts (default: half of what the machine has free)
    progress  called as progress(phase, done, total, info); `tell` with lines for people

    Killed at any moment and called again with the same arguments, it goes on from the last
    checkpoint (one every `checkpoint_seconds`) and ends in the same bytes. SIGTERM and Ctrl-C end
    it with Interrupted at the next such point. Under torchrun all ranks work on one `out`, on a
    disk that all of them see. Raises UsageError for
    wrong arguments, and where `out` holds something else or another process is writing there;
    DataError for pictures that cannot be used.
    """
    start = time.perf_counter()
    out, where = Path(out), resolve_device(str(device))
    if not distributed.first():
        progress, tell = silent, lambda line: None
    kind = methods.get(method)
    config = methods.configure(method, settings).on(where)
    limit = (memory.available() // 2 if max_memory is None else max_memory) // 4
    if max_memory is not None and limit < _LEAST_MEMORY:
        raise UsageError(
            f"--max-memory {max_memory}: at least {4 * _LEAST_MEMORY >> 20} MiB are needed"
        )
    if full_size:
        _check_full_size(source, size, config)

    def about(data: ImageDataset, count: int) -> None:
        for note in data.notes:
            tell(f"note: {note}")
        tell(
            f"{count} pictures of {data.shape[1]}x{data.shape[2]}, {data.num_classes} classes; "
            f"{method}, {config.text()}, on {where}"
        )
        kind.check(data, config)

    def written(data: ImageDataset) -> int:
        """Values of a written picture, on average."""
        return data.shape[0] * mean_pixels(data) if full_size else math.prod(data.shape)

    if plan:
        some = survey(source, size=size, labels=labels)
        about(some.data, len(some))
        made = plan_of(
            some,
            kind,
            config,
            out,
            device=where,
            check=check,
            limit=limit,
            cache=cache is not None,
            larger=written(some.data) / math.prod(some.data.shape),
        )
        return ProtectResult(out, plan=made)
    keep = out / "work" / "pictures" if cache is None else Path(cache)
    data = _opened(source, size, labels, skip_bad, keep, 0 if cache is not None else limit)
    about(data, len(data))
    for warning in config.warnings():
        tell(f"warning: {warning}")
    arguments = {
        "method": method,
        "config": config.record(),
        "compat": config.compat,
        "size": size,
        "full_size": full_size,
        "device": where.type,
        "source_fingerprint": data.fingerprint(),
        "check": check,
    }
    perturbation = None
    with _claimed(out), stop.gracefully():
        run = _begin(out, arguments, data.source, limit)
        if not (out / MANIFEST).exists():
            # Sums of a network's layers may depend on the number of threads: a resumed run keeps
            # what it began with.
            torch.set_num_threads(run["threads"])
            free_space_check(out, _bytes_needed(data, config, check, written(data)))
            clock = clock or Clock()
            best, attempts = search(
                data.to(where),
                kind,
                config,
                out / "work",
                check=run.get("check", False),
                every=checkpoint_seconds,
                limit=run.get("limit", math.inf),
                clock=clock,
                progress=progress,
                tell=tell,
            )
            perturbation = best.noise
            with clock("store"):
                _write(out, data, best, attempts, full_size, progress)
        distributed.barrier()
        manifest = NoiseStore.open(out, shards=False).manifest
        checked = CheckResult.of(manifest["check"]) if "check" in manifest else None
        if distributed.first():
            if perturbation or not (out / "preview.png").exists():
                preview_of(out, data, caption=[checked.text()] if checked else [])
            shutil.rmtree(out / "work", ignore_errors=True)
    if "visibility" in manifest:
        tell(visibility.text(manifest["visibility"]))
    return ProtectResult(out, perturbation, time.perf_counter() - start, check=checked)


def _opened(
    source, size: int | None, labels, skip_bad: bool, cache: Path, limit: int
) -> ImageDataset:
    if isinstance(source, ImageDataset):
        if labels is not None or size is not None:
            raise UsageError("--size and --labels go with files; this data set is open already")
        return source
    if labels is not None and not Path(labels).exists():
        raise UsageError(f"--labels {labels}: no such file")
    return open_dataset(
        source,
        size=size,
        labels=labels,
        on_error="skip" if skip_bad else "stop",
        cache=cache,
        limit=limit,
    )


def _check_full_size(source, size: int | None, config: Config) -> None:
    """Before anything is decoded."""
    if isinstance(source, ImageDataset):
        files_of(source)
        if source.shape[1] != source.shape[2]:
            raise UsageError("--full-size: open the pictures with a size, to square views of them")
    elif size is None or not Path(source).is_dir():
        raise UsageError(
            "--full-size goes with --size S, where the noise is made, and a folder of picture "
            f"files; the source is {source}, the size {size or 'not given'}"
        )
    if config.budget.norm != "linf":
        raise UsageError(
            "--full-size goes with --norm linf: enlarged noise has a larger 2-norm than its budget"
        )


def _write(
    out: Path,
    data: ImageDataset,
    best: Attempt,
    attempts: list[dict],
    full_size: bool,
    progress: Callable,
) -> None:
    """Everything but the checkpoints; the manifest comes last. Each rank writes a part of the noise
    and of the pictures.
    """
    config, result = best.config, best.noise
    some = visibility.sample(len(data), config.seed)
    clean = data.take(some)
    protected = result.change_pictures(clean, result.rows(data.labels)[some])
    header = {
        "method": config.method,
        "config": config.record(),
        "compat": config.compat,
        "history": result.history,
        "visibility": visibility.measure(clean, protected),
    }
    if full_size:
        header |= policy(data.shape[1])
    if best.check:
        header["check"] = {**best.check.record(), "attempts": attempts}

    def create() -> NoiseStore:
        return NoiseStore.create(
            out,
            data,
            per=result.per,
            eps=result.eps,
            norm=result.norm,
            change=result.change,
            grain=result.grain,
            header=header,
        )

    rank, ranks = distributed.place()
    store = create() if rank == 0 else None
    distributed.barrier()
    store = store or create()  # those behind find it begun, and remove what a kill has left
    distributed.barrier()
    for shard in store.missing_shards():
        if shard % ranks == rank:
            rows = store.shard_slice(shard)
            store.write_shard(shard, result.coarse(torch.arange(rows.start, rows.stop)))
            progress("write noise", shard + 1, store.shard_count, {})
    distributed.barrier()
    files = write_folder(
        out / "images",
        data,
        store.rows,
        change=result.change,
        full_size=full_size,
        part=(rank, ranks),
        progress=lambda done, total: progress("write", done, total, {}),
    )
    hashes = distributed.total(torch.from_numpy(files.sha256)).numpy()
    files = replace(files, sha256=hashes)
    if rank != 0:
        return
    if result.surrogate is not None:
        saved.save(
            out / SURROGATE_FILE,
            result.surrogate,
            arch=result.arch,
            classes=data.classes,
            channels=data.shape[0],
            trained_by=f"fastue protect --method {config.method}",
            config=config.record(),
        )
    methods.get(config.method).files(out, data, result, config)
    store.finish(files)


def _begin(out: Path, arguments: dict, source: str, limit: int) -> dict:
    """Write run.json, or compare with the one an earlier run left. Returns its content."""
    if distributed.first():
        tidy(out)
        _write_run(out, arguments, source, limit)
    distributed.barrier()
    return _read_run(out, arguments)


def _write_run(out: Path, arguments: dict, source: str, limit: int) -> None:
    path = out / RUN_FILE
    if not path.exists():
        own = {".lock"}
        if os.path.isdir(out / "work") and os.listdir(out / "work") == ["pictures"]:
            own.add("work")  # decoded before this
        if foreign := sorted(entry.name for entry in out.iterdir() if entry.name not in own):
            raise UsageError(
                f"--out {out}: is not empty (holds {', '.join(foreign[:3])}); name a new directory"
            )
        local = "" if ":" in source and not os.path.exists(source) else os.path.abspath(source)
        run = {
            **arguments,
            "source": local or source,
            "threads": torch.get_num_threads(),
            # Of noise in memory; a resumed run keeps it where it was.
            "limit": limit,
            "versions": info.collect(),
        }
        atomic_write_json(path, run)


def _read_run(out: Path, arguments: dict) -> dict:
    path = out / RUN_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: damaged ({error}); name a new --out") from error
    before = {"full_size": False, **_flat(run)}  # earlier versions do not say
    if "check" not in before:  # of an earlier version: it goes on as it began, unchecked
        arguments = {name: value for name, value in arguments.items() if name != "check"}
    for name, value in _flat(arguments).items():
        if before.get(name) != value:
            raise UsageError(
                f"--out {out}: holds a run with another {name} "
                f"({before.get(name)!r}, now {value!r}); repeat its arguments "
                "to go on with it, or name a new directory"
            )
    return run


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in tree.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Hold `out` for this process (of several ranks: for the first); the claim ends with the
    process, however it ends.
    """
    import fcntl

    make_folder(out)
    if not distributed.first():
        yield
        return
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


def _bytes_needed(data: ImageDataset, config: Config, check: bool, written: int) -> int:
    """An upper estimate of the disk a run takes from here on: with noise in memory, whose
    checkpoints are more, and pictures (of `written` values each) that do not compress.
    """
    in_files = dict.fromkeys(("pictures", "noise"), False)
    needs = disk_needed(len(data), data, config, in_files, png=written + 1024, check=check)
    return sum(needs.values()) + (64 << 20)
