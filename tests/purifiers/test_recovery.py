"""JCDP against a protection that is all high frequencies."""

from dataclasses import replace

import pytest

from fastue import methods
from fastue.countermeasures import load
from fastue.countermeasures.base import Means
from fastue.data.dataset import epoch_order
from fastue.purifiers.training import CONFIGS
from fastue.victims.train import VictimConfig, train_victim


@pytest.mark.slow
def test_jcdp_gives_a_victim_back_what_lsp_took(pictures, tmp_path, monkeypatch):
    """LSP by class in blocks of 2x2, on a victim without augmentation, which learns it best."""
    monkeypatch.setitem(CONFIGS, "small", replace(CONFIGS["small"], steps=650))
    order = epoch_order(len(pictures), 0, 0)
    own, aux, test = (
        pictures.subset(order[part]) for part in (slice(3000), slice(3000, 8000), slice(8000, None))
    )
    noise = methods.get("lsp").make(own, methods.configure("lsp", {"mode": "class", "patch": 2}))
    protected = replace(own, images=noise.apply(own.images, own.labels))
    purified = load("jcdp-4").training_set(protected, 0, Means(aux, tmp_path))
    config = VictimConfig("cnn-w16", epochs=10, batch=64, lr=0.05, augment=False)
    before, after = (
        max(train_victim(data, test, config, seed=0)["accuracy"]) for data in (protected, purified)
    )
    print(f"protected {before:.1f} %, purified {after:.1f} %, at the best epoch")
    assert after >= before + 10
