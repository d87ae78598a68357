"""declared.json: what will be certified, written before the first draw.

It does not change afterwards: who looks at draws and then chooses q, eta or N has no confidence
left. The noise of the draws is keyed by all of it, and each log names it: a claim that is changed
finds none of the draws that were seen, wherever they were kept.
"""

import json
from dataclasses import asdict
from pathlib import Path

from torch import nn

from fastue.certificates.claim import Claim
from fastue.certificates.smoothing import Sampler, layer_norms
from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write_json
from fastue.models.flat import BLOCK

DECLARED = "declared.json"
_LOG_KEYS = ("digest", "claim", "total", "smoothing", "surrogate", "pictures")


def declaration(claim: Claim, sampler: Sampler, network: nn.Module, about: dict) -> dict:
    """What is certified, of which network and which pictures; `about` says what the network is.

    In the form that JSON gives back: what is compared with a file must have been through the same.
    """
    smoothing, data = sampler.config, sampler.data
    declared = {
        "claim": claim.content(),
        "smoothing": {**asdict(smoothing), "seed": sampler.seed},
        "digest": sampler.digest,
        "total": len(data),
        "held_out": sampler.held_out,  # pictures of the same set that only gave statistics
        "pictures": data.source,
        "classes": data.num_classes,
        "parameters": sampler.weights.count,
        "drawn": len(sampler.weights.base),  # values of noise, padding among them
        "surrogate": about,
        "noiseless_correct": sampler.noiseless(),
        "layers": layer_norms(network, smoothing.sigma),
    }
    return json.loads(json.dumps(declared))


def log_header(declared: dict) -> dict:
    """What the first line of every log of these draws says."""
    return {key: declared[key] for key in _LOG_KEYS}


def declare(out: Path, declared: dict) -> None:
    """Write down what will be certified, or compare it with what was."""
    if not (out / DECLARED).exists():
        atomic_write_json(out / DECLARED, declared)
        return
    before = read_declared(out)
    if before["digest"] == declared["digest"]:
        return
    changes = _changes(before["claim"], declared["claim"]) or _changes(
        _told(before), _told(declared)
    )
    raise UsageError(
        f"--out {out}: its draws were declared for another {', '.join(changes)}. What is certified "
        "must be chosen before the draws are seen: name a new --out"
    )


def read_declared(folder: Path) -> dict:
    try:
        declared = json.loads((folder / DECLARED).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: holds no {DECLARED}, so no draws of fastue certify") from error
    except ValueError as error:
        raise DataError(f"{folder / DECLARED}: damaged ({error})") from error
    # Older ones do not say it:
    declared["claim"].setdefault("rule", "fixed")
    declared["smoothing"].setdefault("scale", "raw")
    declared.setdefault("held_out", 0)
    if "drawn" not in declared:
        declared["drawn"] = sum(-(-row["size"] // BLOCK) * BLOCK for row in declared["layers"])
    return declared


def _told(declared: dict) -> dict:
    """What the counts depend on: the settings by name, all else as its digest."""
    settings = {key: value for key, value in declared["smoothing"].items() if key != "seed"}
    return settings | {"digest": declared["digest"][:8]}


def _changes(before: dict, now: dict) -> list[str]:
    return [key for key in now if before.get(key) != now[key]]
