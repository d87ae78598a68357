"""`fastue certify` as a function: draws made or merged, then certificate.json, certificate.png and words.

What is certified (N, q, eta, alpha, the network, the pictures) is written to `declared.json` before the first draw and
does not change: who looks at draws and then chooses N or q has no confidence left.
"""

import io
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from fastue import distributed
from fastue.certificates import bounds, draws
from fastue.certificates.smoothing import BN_POLICIES, Sampler, Smoothing, layer_norms
from fastue.core import info
from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write_bytes, atomic_write_json, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.layout import MANIFEST, SURROGATE_FILE
from fastue.data.sources import open_dataset
from fastue.data.verify import open_protected
from fastue.models import saved
from fastue.models.training import resolve_precision
from fastue.ops import WEIGHTS_ATTACK
from fastue.victims.recovery import RecoveryConfig, random_search
from fastue.victims.recovery import recover as sgd_recover
from fastue.victims.train import VictimConfig, check_pair, fit

DECLARED = "declared.json"


@dataclass(frozen=True)
class Claim:
    """What is to be certified: for each q and eta, at confidence 1 - alpha for all of them together."""

    n: int = 1000
    q: tuple[float, ...] = (0.9,)
    eta: tuple[float, ...] = ()  # empty: shares of sigma that n draws can reach
    alpha: float = 0.01
    simultaneous: bool = True
    delta: float = 0.01  # of the step from these pictures to all pictures of their kind

    def __post_init__(self) -> None:
        if not self.q or not all(0 < q < 1 for q in self.q):
            raise UsageError(f"--q {_listed(self.q)}: each must be between 0 and 1")
        if not all(0 <= eta < float("inf") for eta in self.eta):
            raise UsageError(f"--eta {_listed(self.eta)}: each must be at least 0")
        if not 0 < self.alpha < 1 or not 0 < self.delta < 1:
            raise UsageError(f"--alpha {self.alpha:g}: must be between 0 and 1")

    def grid(self, sigma: float) -> tuple[float, ...]:
        return self.eta or tuple(
            round(sigma * share, 6) for share in (0.04, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
        )


@dataclass
class Certified:
    table: str
    words: str
    document: dict
    files: list[Path]


def certify(
    model: nn.Module,
    known: dict,
    data: ImageDataset,
    out: Path,
    smoothing: Smoothing,
    claim: Claim,
    *,
    part: range | None = None,
    compile: bool = False,
    seconds: float = 10.0,
    progress: Callable[[str, int, int, dict], None] = lambda phase, done, total, info: None,
) -> Certified | None:
    """Make the draws that are still missing (of `part`, default all) and conclude.

    `known` says what the network is (see models.saved). None where draws are missing that were not asked for, and on
    ranks other than 0. Killed at any moment and called again it goes on; draws are a function of (seed, number) alone.
    Raises UsageError where `out` holds another claim.
    """
    if part is not None and (part.start < 0 or part.stop > claim.n):
        raise UsageError(f"--draws {part.start}:{part.stop}: the declared draws are 0:{claim.n}")
    sampler = Sampler(model, data, smoothing, compile=compile)
    rank, ranks = distributed.place()
    make_folder(out)
    declared = {
        "claim": {**asdict(claim), "q": list(claim.q), "eta": list(claim.grid(smoothing.sigma))},
        "smoothing": asdict(smoothing), "digest": sampler.digest, "total": len(data), "pictures": data.source,
        "classes": data.num_classes, "parameters": sampler.weights.count, "surrogate": known,
        "noiseless_correct": sampler.noiseless(), "layers": layer_norms(model, smoothing.sigma),
    }  # fmt: skip
    # From here on as JSON has it: what is compared with a file must have been through the same.
    declared = json.loads(json.dumps(declared))
    if rank == 0:
        _declare(out, declared)
    distributed.barrier()
    header = {
        key: declared[key] for key in ("digest", "total", "smoothing", "surrogate", "pictures")
    }
    made, _ = draws.read(out, header)
    distributed.barrier()  # all have read before any writes
    wanted = [i for i in (part or range(claim.n)) if i not in made]
    mine = wanted[rank::ranks]
    _make(sampler, mine, out, f"r{rank}", header, seconds, progress)
    distributed.barrier()
    if rank:
        return None
    made, _ = draws.read(out, header)
    if len(made) < claim.n and part is not None:
        return None
    return conclude(out, declared, made)


def prepare(
    *,
    surrogate: Path | None,
    train_on: Path | None,
    clean: str,
    out: Path | None,
    arch: str,
    epochs: int,
    seed: int,
    size: int | None,
    precision: str,
    device: torch.device,
    progress: Callable[[str, int, int, dict], None] = lambda phase, done, total, info: None,
) -> tuple[nn.Module, dict, ImageDataset]:
    """(network, what is known about it, clean test pictures); the network is read from a file, or trained and kept.

    `train_on` trains it by the victim's recipe on the written pictures of a protected directory, or on any data set
    (`demo:train`), which gives the certificate of the clean originals to compare with.
    """
    data = open_dataset(clean, size=size).to(device)
    if surrogate is None:
        kept = (out or Path()) / SURROGATE_FILE
        rank, _ = distributed.place()
        if out is not None and rank == 0 and not kept.exists():
            make_folder(out)
            written = (train_on / MANIFEST).exists()
            train = open_protected(train_on) if written else open_dataset(str(train_on), size=size)
            config = VictimConfig(
                arch=arch, epochs=epochs, precision=resolve_precision(precision, device)
            )
            check_pair(train, data)
            model, curves = fit(
                train.to(device), data, config, seed=seed,
                progress=lambda done, total, info: progress(f"training {arch}", done, total, info),
            )  # fmt: skip
            saved.save(
                kept, model, arch=arch, classes=data.classes, channels=data.shape[0], trained_on=str(train_on),
                trained_by="fastue certify --train-on", config=asdict(config), seed=seed,
                clean_accuracy=curves["accuracy"][-1],
            )  # fmt: skip
        distributed.barrier()
        surrogate = kept
    elif surrogate.is_dir():
        surrogate = surrogate / SURROGATE_FILE
    model, known = saved.load(
        surrogate, arch=arch, classes=data.num_classes, channels=data.shape[0]
    )
    if len(known["classes"]) != data.num_classes or known["channels"] != data.shape[0]:
        raise DataError(
            f"{surrogate}: a network for {len(known['classes'])} classes and {known['channels']} channels; {clean} has "
            f"{data.num_classes} and {data.shape[0]}"
        )
    if surrogate.suffix == ".safetensors" and known["classes"] != data.classes:
        raise DataError(f"{surrogate}: its classes are not those of {clean}")
    return model, known, data


def plan(
    claim: Claim,
    smoothing: Smoothing,
    model: nn.Module | None = None,
    data: ImageDataset | None = None,
) -> str:
    """What N draws reach, what each eta needs, and with a network and pictures how long that takes."""
    sigma, alpha = smoothing.sigma, claim.alpha
    etas = claim.grid(sigma)
    if claim.simultaneous:
        levels = [float(bounds.shifted_level(q, eta, sigma)) for q in claim.q for eta in etas]
        alpha = bounds.local_level(claim.n, tuple(levels), alpha)
    lines = [
        f"sigma {sigma:g}, N {claim.n}, alpha {claim.alpha:g} ({alpha:.3g} for each of the grid)"
    ]
    for q in claim.q:
        lines.append(
            f"q {q:g}: {claim.n} draws reach eta {bounds.largest_eta(claim.n, q, sigma, alpha):.4g}"
        )
        lines += [
            f"  eta {eta:<8g} needs {bounds.needed_draws(q, eta, sigma, alpha):.4g} draws"
            for eta in etas
            if eta > 0
        ]
    if model is not None and data is not None:
        sampler = Sampler(model, data, smoothing)
        sampler.counts([0])
        start = time.perf_counter()
        sampler.counts([0]).tolist()
        one = time.perf_counter() - start
        lines.append(
            f"time  {one:.3g} s a draw of {len(data)} pictures, {claim.n * one:.4g} s for N"
        )
    return "\n".join(lines)


def recover(
    model: nn.Module,
    data: ImageDataset,
    aux: str,
    found: "Certified",
    out: Path,
    *,
    compat: str = "none",
    size: int | None = None,
    config: RecoveryConfig | None = None,
    fresh: int = 100,
    progress: Callable[[str, int, int, dict], None] = lambda phase, done, total, info: None,
) -> str:
    """Attack the network within each eta and put what comes out beside the certificate; recovery.json in `out`.

    Two accuracies of the attacked network on the test pictures: without noise, of which no certificate speaks, and the
    lower bound (confidence 99 %) of the q-quantile of its noisy copies, `fresh` new ones: that one stays below the
    certificate but for one time in fifty at most.
    """
    claim, smoothing = found.document["claim"], Smoothing(**found.document["smoothing"])
    config = config or RecoveryConfig(
        sphere=compat == "pue2025", free_statistics=compat == "pue2025"
    )
    learn_from = data if aux == "oracle" else open_dataset(aux, size=size).to(data.device)
    check_pair(learn_from, data)
    certified = {(c["q"], c["eta"]): c["accuracy"] for c in found.document["certificates"]}
    rows = []
    lines = [
        f"{'eta':>8} {'attack':<8} {'without noise':>13} {'q':>5} {'noisy, at least':>15} {'certified':>9}"
    ]
    for number, eta in enumerate(claim["eta"]):
        for name, attack in (("sgd", sgd_recover), ("random", random_search)):
            moved = attack(model, learn_from, eta, config)
            sampler = Sampler(moved, data, replace(smoothing, seed=smoothing.seed + 1))
            plain = 100 * sampler.noiseless() / len(data)
            counts = sampler.counts(range(fresh), purpose=WEIGHTS_ATTACK).tolist()
            for q in claim["q"]:
                low = bounds.quantile_lower(counts, q, 0.01)
                low = None if low is None else 100 * low / len(data)
                rows.append({"eta": eta, "attack": name, "noiseless": plain, "q": q, "noisy_lower": low,
                             "certified": certified[q, eta]})  # fmt: skip
                shown = ["-" if v is None else f"{v:.2f}" for v in (low, certified[q, eta])]
                lines.append(
                    f"{eta:8g} {name:<8} {plain:13.2f} {q:5g} {shown[0]:>15} {shown[1]:>9}"
                )
        progress("recovery", number + 1, len(claim["eta"]), {})
    atomic_write_json(
        out / "recovery.json",
        {"aux": aux, "compat": compat, "config": asdict(config), "fresh": fresh, "rows": rows},
    )
    return "\n".join(lines)


def merged(folders: list[Path], out: Path) -> Certified:
    """The certificate of draws that several runs of one claim made, each in its own directory."""
    declared = [_declared(folder) for folder in folders]
    for folder, other in zip(folders[1:], declared[1:], strict=True):
        if different := [key for key in declared[0] if other.get(key) != declared[0][key]]:
            raise DataError(
                f"{folder}: declares another certificate than {folders[0]} (differs in {different[0]})"
            )
    made, _ = draws.merge(folders, {"digest": declared[0]["digest"]})
    make_folder(out)
    _declare(out, declared[0])
    return conclude(out, declared[0], made)


def _make(sampler, mine, out, name, header, seconds, progress) -> None:
    """The draws in `mine`, logged in groups of about `seconds`: one read-back from the device a group."""
    if not mine:
        return
    with draws.DrawLog(out, name, header) as log:
        done, size = 0, 1
        while done < len(mine):
            start = time.monotonic()
            group = mine[done : done + size]
            log.append(dict(zip(group, sampler.counts(group).tolist(), strict=True)))
            done += len(group)
            took = time.monotonic() - start
            size = max(1, min(2 * size, int(seconds / max(took / len(group), 1e-9))))
            progress("draws", done, len(mine), {})


def conclude(out: Path, declared: dict, made: dict[int, int]) -> Certified:
    """Certificates, statement and plot from the counts; a declared draw that is missing counts as all right."""
    claim, sigma, total = declared["claim"], declared["smoothing"]["sigma"], declared["total"]
    n, alpha = claim["n"], claim["alpha"]
    if foreign := [draw for draw in made if not 0 <= draw < n]:
        raise DataError(f"{out}: draw {foreign[0]} is not among the {n} declared ones")
    correct = [made[i] for i in sorted(made)]
    budget = bounds.tail_budget(declared["parameters"])
    keywords = {
        "sigma": sigma,
        "alpha": alpha,
        "n": n,
        "budget": budget,
        "simultaneous": claim["simultaneous"],
    }
    found = bounds.certify(correct, total, q=claim["q"], eta=claim["eta"], **keywords)
    share = sorted(100 * c / total for c in correct) or [100.0]
    document = {
        **declared, "missing": n - len(made), "tail_budget": budget,
        "noisy_accuracy": {"min": share[0], "median": statistics.median(share), "max": share[-1]},
        "noiseless_accuracy": 100 * declared["noiseless_correct"] / total,
        "certificates": [
            {
                "q": c.q, "eta": c.eta, "level": c.level, "alpha": c.alpha_local, "k": c.k, "correct": c.correct,
                "accuracy": None if c.abstains else 100 * c.accuracy,
            }
            for c in found
        ],
        "correct": correct, "versions": info.collect(),
    }  # fmt: skip
    document["statement"] = words(document)
    atomic_write_json(out / "certificate.json", document)
    files = [out / "certificate.json"]
    if image := plot(document):
        atomic_write_bytes(out / "certificate.png", image)
        files.append(out / "certificate.png")
    return Certified(table(document), document["statement"], document, files)


def table(document: dict) -> str:
    """Certificates in percent, a line an eta and a column a q; `-` where the draws are too few to say anything."""
    qs, etas = document["claim"]["q"], document["claim"]["eta"]
    cells = {(c["q"], c["eta"]): c["accuracy"] for c in document["certificates"]}
    lines = [f"{'eta':>8} {'eta/sigma':>9} " + " ".join(f"q={q:<5g}" for q in qs)]
    for eta in etas:
        values = [cells[q, eta] for q in qs]
        shown = " ".join(f"{'-' if v is None else f'{v:.2f}':>7}" for v in values)
        lines.append(f"{eta:8g} {eta / document['smoothing']['sigma']:9.3g} {shown}")
    return "\n".join(lines)


def words(document: dict) -> str:
    """What is certified, and what is not."""
    d, claim, s = document, document["claim"], document["smoothing"]
    noisy, chance = d["noisy_accuracy"], 100 / d["classes"]
    said = [c for c in d["certificates"] if c["accuracy"] is not None]
    best = max(said, key=lambda c: (c["q"], c["eta"]), default=None)
    joint = (
        "for all lines of the table together"
        if claim["simultaneous"]
        else "for each line of the table by itself"
    )
    if best is None:
        text = f"Nothing is certified: {claim['n']} draws are too few for any of these (q, eta); see --plan."
    else:
        text = (
            f"Certified with confidence {100 * (1 - claim['alpha']):g} %, {joint}; the last one reads: however the "
            f"weights are shifted by an l2 distance of at most {best['eta']:g}, at least {100 * best['q']:g} % of the "
            f"noisy networks around the shifted weights (standard deviation {s['sigma']:g} on each of "
            f"{d['parameters']} weights) get at most {best['accuracy']:.2f} % of these {d['total']} pictures right."
        )
    text += (
        f"\nNot certified: the networks without noise. This one gets {d['noiseless_accuracy']:.2f} % without noise, "
        f"{noisy['median']:.2f} % in the median with it. The noise has length "
        f"{s['sigma'] * d['parameters'] ** 0.5:.4g}, the shift at most {max(claim['eta']):g}."
        f"\nIt holds for this parameterisation, for {s['arithmetic']} arithmetic, and for BatchNorm statistics "
        f"{s['bn']} ({BN_POLICIES[s['bn']]})."
    )
    if d["missing"]:
        text += f"\n{d['missing']} of {claim['n']} draws are missing and count as 100 % right."
    if noisy["median"] < 1.5 * chance:
        text += (
            f"\nCareful: in the median the noisy networks are near chance ({chance:.3g} %), as networks ruined by "
            "noise are whatever they were trained on. Compare with a network trained on the clean pictures at this "
            "sigma; if that is near chance too, the certificate says nothing about the data: take a smaller --sigma."
        )
    for q in claim["q"]:
        t, _, level = bounds.generalisation(
            q, max(claim["eta"]), s["sigma"], d["total"], claim["delta"], d["tail_budget"]
        )
        k = bounds.order_index(claim["n"], level, claim["alpha"])
        if k is not None and k <= len(d["correct"]):
            value = 100 * sorted(d["correct"])[k - 1] / d["total"] + 100 * t
            text += (
                f"\nBeyond these pictures (others drawn like them), q = {q:g}, eta = {max(claim['eta']):g}: at most "
                f"{value:.2f} %, confidence {100 * (1 - claim['alpha'] - claim['delta']):g} % for this line by itself."
            )
    return text


def plot(document: dict) -> bytes | None:
    """PNG: certificate over eta, noisy accuracies, noise beside each layer; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    d, claim = document, document["claim"]
    figure = Figure(figsize=(14, 4), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for q in claim["q"]:
        points = [
            (c["eta"], c["accuracy"])
            for c in d["certificates"]
            if c["q"] == q and c["accuracy"] is not None
        ]
        if points:
            left.plot(*zip(*points, strict=True), marker="o", ms=4, label=f"q = {q:g}")
    left.axhline(
        d["noiseless_accuracy"],
        color="#c1121f",
        lw=1,
        ls="--",
        label="without noise (not certified)",
    )
    left.axhline(100 / d["classes"], color="black", lw=0.8, ls=":", label="chance")
    left.set(
        xlabel="eta (l2 shift of the weights)",
        ylabel="certified accuracy (%)",
        xlim=(0, 1.05 * max(claim["eta"])),
    )
    left.locator_params(axis="x", nbins=5)
    left.legend(fontsize=8)
    share = [100 * c / d["total"] for c in d["correct"]]
    middle.hist(share, bins=min(60, max(10, len(set(share)))), color="#1d6fa5")
    middle.axvline(d["noiseless_accuracy"], color="#c1121f", lw=1, ls="--", label="without noise")
    middle.axvline(100 / d["classes"], color="black", lw=0.8, ls=":", label="chance")
    middle.set(xlabel="accuracy of a noisy copy (%)", ylabel="draws")
    middle.legend(fontsize=8)
    layers = [row for row in d["layers"] if row["size"] > 1]
    right.bar(range(len(layers)), [row["relative"] for row in layers], color="#6c757d")
    right.axhline(1, color="black", lw=0.8, ls=":")
    right.set(xlabel="parameter, first to last", ylabel="rms weight / sigma", yscale="log")
    for axis in (left, middle, right):
        axis.grid(alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _listed(values: tuple[float, ...]) -> str:
    return ",".join(f"{v:g}" for v in values)


def _declared(folder: Path) -> dict:
    try:
        return json.loads((folder / DECLARED).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: holds no {DECLARED}, so no draws of fastue certify") from error
    except ValueError as error:
        raise DataError(f"{folder / DECLARED}: damaged ({error})") from error


def _declare(out: Path, declared: dict) -> None:
    """Write down what will be certified, or compare with what was."""
    if not (out / DECLARED).exists():
        atomic_write_json(out / DECLARED, declared)
        return
    before = _declared(out)
    for key in ("digest", "claim"):
        if before[key] != declared[key]:
            old, new = (d["claim"] if key == "claim" else d["smoothing"] | {"digest": d["digest"][:8]}
                        for d in (before, declared))  # fmt: skip
            different = [k for k in new if old.get(k) != new[k]]
            raise UsageError(
                f"--out {out}: its draws were declared for another {', '.join(different)}. What is certified must be "
                "chosen before the draws are seen: name a new --out, and another --seed"
            )
