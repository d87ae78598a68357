"""The survival card: exact answers where the arithmetic is known, and the order of the others."""

import numpy as np
import pytest
import torch

from fastue.data.dataset import ImageDataset
from fastue.protocol import survival as module
from fastue.protocol.survival import HANDLINGS, survival


def dataset(images: torch.Tensor) -> ImageDataset:
    n = len(images)
    return ImageDataset(
        images, torch.zeros(n, dtype=torch.int64), [str(i) for i in range(n)], ["a"]
    )


def card_of(noise: np.ndarray, channels: int = 3) -> dict[str, dict]:
    """Smooth pictures [12,C,16,16] with this noise [16,16] in all channels."""
    ramp = np.linspace(60, 180, 16)
    picture = np.broadcast_to(ramp[:, None] * 0.5 + ramp * 0.5, (12, channels, 16, 16))
    clean = torch.from_numpy(picture.round().astype(np.uint8))
    written = torch.from_numpy((picture.round() + noise).astype(np.uint8))
    return {line["handling"]: line for line in survival(dataset(clean), dataset(written))}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_lossless_file_keeps_all_and_coarse_noise_outlives_fine_noise(channels):
    sign = np.indices((16, 16)).sum(0) % 2 * 2 - 1
    fine, coarse = card_of(8 * sign, channels), card_of(8 * np.kron(sign[:4, :4], np.ones((4, 4))))
    assert set(fine) == set(HANDLINGS)
    for card in (fine, coarse):
        assert card["PNG"] == {"handling": "PNG", "energy": 1.0, "correlation": 1.0}
    assert fine["half the size and back"]["energy"] < 0.05
    assert coarse["half the size and back"]["energy"] > 0.4


def test_strong_jpeg_leaves_less_than_weak():
    card = card_of(np.random.default_rng(0).choice((-8, 8), (16, 16)))
    for chroma in ("4:4:4", "4:2:0"):
        energies = [card[f"JPEG {quality}, {chroma}"]["energy"] for quality in (95, 75, 50)]
        assert sorted(energies, reverse=True) == energies and energies[0] > 0.8 > energies[2]


def test_chroma_subsampling_takes_coloured_noise():
    sign = np.indices((16, 16)).sum(0) % 2 * 2 - 1
    coloured = np.stack([sign, 0 * sign, -sign]) * 8
    card = card_of(coloured)
    assert card["JPEG 95, 4:2:0"]["energy"] < 0.3 < card["JPEG 95, 4:4:4"]["energy"]


def test_energy_and_correlation_are_those_of_the_difference(monkeypatch):
    """Half of the noise is a quarter of its energy and the noise's own direction; what the
    handling does to the picture itself cancels."""

    def halved(picture):
        return np.asarray(picture).astype(np.float64) / 2 + 7

    monkeypatch.setattr(
        module, "HANDLINGS", {"half": halved, "white": lambda p: 255 + 0 * halved(p)}
    )
    card = card_of(8 * np.eye(16))
    assert card["half"] == {"handling": "half", "energy": 0.25, "correlation": 1.0}
    assert card["white"] == {"handling": "white", "energy": 0.0, "correlation": None}


def test_nothing_is_said_where_nothing_differs():
    same = dataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert survival(same, same) == []
