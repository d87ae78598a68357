"""What `fastue certify` does: make or merge draws, conclude, and attack what was certified.

What is certified (q, eta, alpha, the network, the pictures) is written to `declared.json` before
the first draw. The directory then holds `draws-*.log`, and at the end `certificate.json` and
`certificate.png`; killed at any moment, the same call goes on.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from fastue import distributed
from fastue.certificates import bounds
from fastue.certificates import draws as logs
from fastue.certificates.attack import lower_bounds, press
from fastue.certificates.claim import (
    DRAWS,
    Claim,
    Question,
    Smoothing,
    Training,
    question,
    radii,
)
from fastue.certificates.declaration import (
    DECLARED,
    declaration,
    declare,
    log_header,
    read_declared,
)
from fastue.certificates.document import certificate_document
from fastue.certificates.plot import plot
from fastue.certificates.smoothing import Sampler
from fastue.certificates.text import attack_table, plan_text, table
from fastue.certificates.watch import Watch
from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write_bytes, atomic_write_json, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.layout import MANIFEST, SURROGATE_FILE
from fastue.data.sources import open_dataset
from fastue.data.verify import open_protected
from fastue.models import saved
from fastue.models.training import resolve_device, resolve_precision
from fastue.victims.recovery import RecoveryConfig, random_search, recover, shift_between
from fastue.victims.train import VictimConfig, check_pair, fit

RECOVERIES = {"sgd": recover, "random": random_search}
_ATTACK_ALPHA = 0.01  # of all lower bounds of an attack together
_LOG_SECONDS = 5.0  # a kill loses about so much work, and an answer comes so late

Progress = Callable[[str, int, int, dict], None]  # (phase, done, total, what else to print)


@dataclass
class Subject:
    """What is certified: a network, what it is (see models.saved), and clean test pictures."""

    model: nn.Module
    about: dict
    data: ImageDataset


@dataclass
class Certified:
    table: str
    words: str
    document: dict  # the content of certificate.json
    files: list[Path]
    answer: str = ""  # to `until`
    sampler: Sampler | None = field(default=None, repr=False)  # None: merged from logs alone


def _silent(phase: str, done: int, total: int, info: dict) -> None:
    pass


def certify(
    *,
    surrogate: str | Path | None = None,
    clean: str | Path | ImageDataset,
    out: str | Path,
    train_on: str | Path | None = None,
    sigma: float = Smoothing.sigma,
    scale: str = Smoothing.scale,
    q: Sequence[float] | None = None,
    eta: Sequence[str | float] = (),
    alpha: float = Claim.alpha,
    pointwise: bool = not Claim.simultaneous,
    rule: str = Claim.rule,
    bn: str = Smoothing.bn,
    bn_data: str | Path | ImageDataset | None = None,
    arithmetic: str = Smoothing.arithmetic,
    compat: str = "none",
    N: int = DRAWS,
    until: str | None = None,
    batch: int | None = None,
    seed: int | None = None,
    draws: range | None = None,
    labels: str | Path | None = None,
    size: int | None = None,
    arch: str = Training.arch,
    epochs: int = Training.epochs,
    train_seed: int = Training.seed,
    precision: str = Training.precision,
    device: str | torch.device = "auto",
    compile: bool = False,
    resume: bool = False,
    progress: Progress = _silent,
) -> Certified | None:
    """Bound what noisy copies of a network, and of all networks near it, get right.

    surrogate  the network: a file, or the directory that protect wrote
    clean      clean test pictures: a folder, .npz, NAME:split, or an ImageDataset
    out        a directory for the draws and the certificate; one that a killed run left goes on
    train_on   train a network instead: on what protect wrote, or on any data set
    sigma      standard deviation of the noise on each weight
    scale      what sigma and eta are measured in: "canonical", the root mean square of each filter
               or layer, or "raw"
    q, eta     quantiles of noisy networks (none: 0.9), and l2 radii, numbers or shares of sigma
               such as "0.4s" (none: up to 1.2 sigma)
    alpha      1 - confidence, for all q and eta together; with `pointwise` for each by itself
    rule       "anytime": holds whenever you look, stop or go on; "fixed": of N draws declared first
    bn         BatchNorm statistics: "stored", "frozen-noisy" or "reestimated"
    bn_data    clean pictures for them (none: some of `clean`, which then are not counted)
    arithmetic of the network certified: "fp32" or "bf16-folded"
    compat     "pue2025": as published, rule fixed, raw scale and draws of `seed`
    N          draws
    until      stop as soon as this is decided: "q=0.9,eta=0.4s <= 68%"
    batch      pictures at a time (None: 256 on a CPU, 1000 on a GPU)
    seed       of the draws, with `compat` only: else claim and network are their key
    draws      make only these of the N, for `merge` later
    labels     a CSV table `file,class` for a folder `clean` that is not sorted into classes
    size       resize the pictures as protect did
    arch       network for `train_on` and for a plain state_dict
    epochs, train_seed, precision   of the training of `train_on`
    device     "auto", "cpu", "cuda", "cuda:1" …
    compile    torch.compile the network
    resume     fail unless `out` holds draws to go on with
    progress   called with (phase, done, total, what else to print)

    None where declared draws are missing that were not asked for, and on ranks other than 0.
    Raises UsageError where `out` holds another claim, and DataError for unfitting networks and
    pictures.
    """
    out, device = Path(out), resolve_device(device)
    claim, smoothing, asked = claim_for(
        device,
        sigma=sigma,
        scale=scale,
        q=q,
        eta=eta,
        alpha=alpha,
        pointwise=pointwise,
        rule=rule,
        bn=bn,
        arithmetic=arithmetic,
        compat=compat,
        N=N,
        until=until,
        batch=batch,
        seed=seed,
    )
    if (surrogate is None) == (train_on is None) or clean is None:
        raise UsageError(
            "certify needs --clean TEST and either --surrogate FILE or --train-on DIR (or --merge)"
        )
    if resume and not (out / DECLARED).exists():
        raise UsageError(f"--resume: {out} holds no draws to go on with")
    if draws is not None and (draws.start < 0 or draws.stop > N):
        raise UsageError(f"--draws {draws.start}:{draws.stop}: there are N draws, 0:{N}")
    if asked and (draws is not None or distributed.place()[1] > 1):
        raise UsageError("--until: looks at all draws in order; leave out --draws and torchrun")
    if bn_data is not None and bn == "stored":
        raise UsageError(f"--bn-data {bn_data}: goes with --bn reestimated or frozen-noisy")
    subject = prepare(
        surrogate=surrogate,
        train_on=train_on,
        clean=clean,
        out=out,
        labels=labels,
        size=size,
        training=Training(arch, epochs, train_seed, precision),
        device=device,
        progress=progress,
    )
    statistics = None
    if bn_data is not None:
        statistics = clean_pictures(bn_data, None, size).to(device)
        check_pair(statistics, subject.data)
    sampler = Sampler(
        subject.model,
        subject.data,
        smoothing,
        statistics=statistics,
        claim=json.dumps(claim.content(), sort_keys=True),
        compile=compile,
    )
    return _certify(subject, sampler, out, claim, N, draws, asked, progress)


def claim_for(
    device: torch.device,
    *,
    sigma: float,
    scale: str,
    q: Sequence[float] | None,
    eta: Sequence[str | float],
    alpha: float,
    pointwise: bool,
    rule: str,
    bn: str,
    arithmetic: str,
    compat: str,
    N: int,
    until: str | None,
    batch: int | None,
    seed: int | None,
) -> tuple[Claim, Smoothing, Question | None]:
    """The arguments of `certify` in order, with the batch that suits the device where none is
    named."""
    if batch is None:
        batch = 1000 if device.type == "cuda" else Smoothing.batch
    if compat != "none":
        rule, scale, seed = "fixed", "raw", seed or 0
    elif seed is not None:
        raise UsageError(
            f"--seed {seed}: goes with --compat pue2025; otherwise claim and network are the key of "
            "the draws, so that nobody picks the best of many seeds"
        )
    if N < 1:
        raise UsageError(f"--N {N}: must be at least 1")
    smoothing = Smoothing(
        float(sigma), scale=scale, bn=bn, arithmetic=arithmetic, batch=batch, seed=seed
    )
    asked = question(until, smoothing.sigma) if until else None
    if asked:
        q, eta = q or (asked.q,), eta or (asked.eta,)
    claim = Claim(
        q=Claim.q if q is None else tuple(map(float, q)),
        eta=radii(eta, smoothing.sigma),
        alpha=alpha,
        simultaneous=not pointwise,
        rule=rule,
        n=N if rule == "fixed" else None,
    )
    if asked and (claim.rule == "fixed" or (asked.q, asked.eta) not in claim.points()):
        raise UsageError(
            f"--until: q={asked.q:g}, eta={asked.eta:g} must be among --q and --eta, and --rule "
            "anytime"
        )
    return claim, smoothing, asked


def prepare(
    *,
    surrogate: str | Path | None,
    train_on: str | Path | None = None,
    clean: str | Path | ImageDataset,
    out: Path | None = None,
    labels: str | Path | None = None,
    size: int | None = None,
    training: Training,
    device: torch.device,
    progress: Progress = _silent,
) -> Subject:
    """The network, read from a file or trained and written to `out`, and the clean pictures.

    `train_on` trains it by the victim's recipe on the written pictures of a protected directory, or
    on any data set (`demo:train`), which gives the certificate of the clean originals to compare
    with.
    """
    data = clean_pictures(clean, labels, size).to(device)
    if surrogate is None:
        path = out / SURROGATE_FILE
        if distributed.place()[0] == 0 and not path.exists():
            make_folder(out)
            _train(path, str(train_on), data, training, size, progress)
        distributed.barrier()
    else:
        path = Path(surrogate)
        path = path / SURROGATE_FILE if path.is_dir() else path
    classes, channels = data.num_classes, data.shape[0]
    model, about = saved.load(path, arch=training.arch, classes=classes, channels=channels)
    pictures = data.source if isinstance(clean, ImageDataset) else clean
    if len(about["classes"]) != classes or about["channels"] != channels:
        raise DataError(
            f"{path}: a network for {len(about['classes'])} classes and {about['channels']} "
            f"channels; {pictures} has {classes} and {channels}"
        )
    # A plain state_dict names no classes.
    if path.suffix == ".safetensors" and about["classes"] != data.classes:
        raise DataError(f"{path}: its classes are not those of {pictures}")
    return Subject(model, about, data)


def plan(claim: Claim, smoothing: Smoothing, n: int, subject: Subject | None = None) -> str:
    """What n draws reach, what each eta needs, and with a network how long that takes."""
    if subject is None:
        return plan_text(claim, smoothing.sigma, n)
    sampler = Sampler(subject.model, subject.data, smoothing)
    sampler.counts([0])  # the first one pays for buffers and kernels
    start = time.perf_counter()
    sampler.counts([0]).tolist()
    seconds = time.perf_counter() - start
    text = plan_text(claim, smoothing.sigma, n, bounds.tail_budget(len(sampler.weights.base)))
    return (
        f"{text}\ntime  {seconds:.3g} s a draw of {len(sampler.data)} pictures, "
        f"{n * seconds:.4g} s for N"
    )


def merge(folders: Sequence[str | Path], out: str | Path) -> Certified:
    """The certificate of draws that several runs of one claim made, each in its own directory."""
    folders, out = [Path(folder) for folder in folders], Path(out)
    first, *others = [read_declared(folder) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        if different := [key for key in first if other.get(key) != first[key]]:
            raise DataError(
                f"{folder}: declares another certificate than {folders[0]} "
                f"(differs in {different[0]})"
            )
    correct_of_draw, _ = logs.merge(folders, {"digest": first["digest"]})
    make_folder(out)
    declare(out, first)
    return _conclude(out, first, correct_of_draw)


def attack(
    certified: Certified,
    *,
    aux: str | Path | ImageDataset | None = None,
    compat: str = "none",
    progress: Progress = _silent,
) -> str:
    """Press against a certificate within each eta, and put what comes out beside it.

    The attack climbs the smoothed gradient on the counted pictures themselves; with `aux`, clean
    pictures (or "oracle": the counted ones), weights are recovered from those as well, by projected
    SGD and by random search (compat="pue2025": as published, on the sphere and with BatchNorm
    statistics that move meanwhile). All is judged by the very classifier that was certified: lower
    bounds of the q-quantile of its noisy copies around the shifted weights, with confidence 99 %
    for all rows together. Written to attack.json, and into certificate.png.
    """
    if certified.sampler is None:
        raise UsageError("--attack: merged draws come without a network; attack in a run with one")
    sampler, document = certified.sampler, certified.document
    qs, etas = document["claim"]["q"], document["claim"]["eta"]
    learn_from = sampler.data
    if aux not in (None, "oracle"):
        learn_from = clean_pictures(aux).to(sampler.data.device)
        check_pair(learn_from, sampler.data)
    recoveries = {} if aux is None else RECOVERIES
    alpha = _ATTACK_ALPHA / (1 + len(recoveries))
    rows = press(
        sampler,
        etas,
        qs,
        alpha=alpha,
        counted={} if document["missing"] else dict(enumerate(document["correct"])),
        progress=lambda done, total: progress("attack", done, total, {}),
    )
    rows = [{"attack": "ascent", **row} for row in rows]
    network, published = sampler.network(), compat == "pue2025"
    config = RecoveryConfig(sphere=published, free_statistics=published)
    for number, eta in enumerate(etas):
        for name, recovery in recoveries.items():
            moved = recovery(network, learn_from, eta, config, scale=sampler.scale)
            around = sampler.moved(shift_between(network, moved))
            noiseless = around.noiseless()
            for q, reached in lower_bounds(around, qs, alpha / len(etas)).items():
                row = {"attack": name, "eta": eta, "q": q, "reached": reached}
                rows.append({**row, "noiseless": noiseless})
        progress("recovery", number + 1, len(etas), {})
    certificate = {(c["q"], c["eta"]): c["correct"] for c in document["certificates"]}
    for row in rows:
        row["certified"] = certificate[row["q"], row["eta"]]
    rows.sort(key=lambda row: (etas.index(row["eta"]), qs.index(row["q"])))
    out = certified.files[0].parent
    source = aux.source if isinstance(aux, ImageDataset) else aux and str(aux)
    content = {"aux": source, "alpha": _ATTACK_ALPHA, "total": document["total"], "rows": rows}
    atomic_write_json(out / "attack.json", content)
    if image := plot(document, rows):
        atomic_write_bytes(out / "certificate.png", image)
    return attack_table(rows, document["total"])


def clean_pictures(
    pictures: str | Path | ImageDataset,
    labels: str | Path | None = None,
    size: int | None = None,
) -> ImageDataset:
    """Those in files, or those given."""
    if labels is not None and not Path(labels).exists():
        raise UsageError(f"--labels {labels}: no such file")
    if not isinstance(pictures, ImageDataset):
        return open_dataset(pictures, size=size, labels=labels)
    if labels is not None or size is not None:
        raise UsageError("labels and size go with pictures in files; an ImageDataset has its own")
    return pictures


def _train(
    path: Path,
    train_on: str,
    test: ImageDataset,
    training: Training,
    size: int | None,
    progress: Progress,
) -> None:
    """Train a network by the victim's recipe and write it to `path`."""
    if (Path(train_on) / MANIFEST).exists():
        pictures = open_protected(train_on)
    else:
        pictures = open_dataset(train_on, size=size)
    check_pair(pictures, test)
    precision = resolve_precision(training.precision, test.device)
    config = VictimConfig(arch=training.arch, epochs=training.epochs, precision=precision)
    name = f"training {config.arch}"
    model, curves = fit(
        pictures.to(test.device),
        test,
        config,
        seed=training.seed,
        progress=lambda done, total, info: progress(name, done, total, info),
    )
    saved.save(
        path,
        model,
        arch=config.arch,
        classes=test.classes,
        channels=test.shape[0],
        trained_on=train_on,
        trained_by="fastue certify --train-on",
        config=asdict(config),
        seed=training.seed,
        clean_accuracy=curves["accuracy"][-1],
    )


def _certify(
    subject: Subject,
    sampler: Sampler,
    out: Path,
    claim: Claim,
    n: int,
    asked_draws: range | None,
    asked: Question | None,
    progress: Progress,
) -> Certified | None:
    """Make the draws that are missing and conclude, each rank its share of the draws."""
    make_folder(out)
    declared = declaration(claim, sampler, subject.model, subject.about)
    header = log_header(declared)
    rank, ranks = distributed.place()
    if rank == 0:
        declare(out, declared)
    distributed.barrier()
    logged, _ = logs.read(out, header)
    distributed.barrier()  # all have read before any writes
    watch = Watch(declared, logged, asked)
    draws = range(n) if asked_draws is None else asked_draws
    missing_draws = [draw for draw in draws if draw not in logged]
    if (share := missing_draws[rank::ranks]) and not watch.answer:
        with logs.DrawLog(out, f"r{rank}", header) as log:
            _make_draws(sampler, share, log, watch, progress)
    distributed.barrier()
    if rank:
        return None
    logged, _ = logs.read(out, header)
    if len(logged) < n and asked_draws is not None:
        return None  # the rest is made elsewhere, and merged
    return _conclude(out, declared, logged, watch.words(), sampler)


def _make_draws(
    sampler: Sampler, draws: Sequence[int], log: logs.DrawLog, watch: Watch, progress: Progress
) -> None:
    """Logged in groups: reading a count back from a GPU waits for it, once a group. On a CPU a core
    takes whole draws, so that a group suits their number."""
    cores = torch.get_num_threads() if sampler.data.device.type == "cpu" else 1
    done, size = 0, cores
    while done < len(draws) and not watch.answer:
        start = time.monotonic()
        group = draws[done : done + size]
        counts = sampler.counts(group).tolist()
        log.append(dict(zip(group, counts, strict=True)))
        done += len(group)
        seconds_a_draw = max((time.monotonic() - start) / len(group), 1e-9)
        size = min(2 * size, int(_LOG_SECONDS / seconds_a_draw))
        size = max(1, size // cores) * cores
        progress("draws", done, len(draws), watch.look(counts))


def _conclude(
    out: Path,
    declared: dict,
    correct_of_draw: dict[int, int],
    answer: str = "",
    sampler: Sampler | None = None,
) -> Certified:
    """Write what follows from the counts: certificate.json, and the plot where it can be drawn."""
    n = declared["claim"]["n"]
    if n and (foreign := [draw for draw in correct_of_draw if not 0 <= draw < n]):
        raise DataError(f"{out}: draw {foreign[0]} is not among the {n} declared ones")
    document = certificate_document(declared, correct_of_draw)
    files = [out / "certificate.json"]
    atomic_write_json(files[0], document)
    if image := plot(document):
        files.append(out / "certificate.png")
        atomic_write_bytes(files[1], image)
    return Certified(table(document), document["statement"], document, files, answer, sampler)
