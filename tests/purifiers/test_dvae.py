"""D-VAE: the loss by hand, each picture on its own, and the noise of a class found."""

import threading
from dataclasses import replace

import torch

from fastue.purifiers.dvae import Dvae, DvaeConfig, dvae, objective

SMALL = DvaeConfig(epochs=1, width=8, code=8, batch=16)


def test_the_loss_by_hand():
    x, rec, p = (torch.full((2, 3, 4, 4), level) for level in (0.5, 0.4, 0.7))
    parts = [0.1**2, 0.5**2]  # rec + p is clipped at 1
    low, high = torch.tensor(0.2), torch.tensor(3.0)
    for kl, late, rest in ((low, False, 0.01), (high, False, 0.03), (high, True, 0.03 + 0.49)):
        value = objective(x, rec, p, kl, 1.0, late)
        torch.testing.assert_close(value, torch.tensor(sum(parts) + rest))
    least = objective(x, rec, torch.full_like(p, 0.01), low, 1.0, True)
    torch.testing.assert_close(least, torch.tensor(0.1**2 + 0.09**2 + 0.01 + 0.002))


def test_kl_is_nats_a_place():
    net = Dvae(3, 2, SMALL)
    torch.nn.init.zeros_(net.encode[-1].weight)
    net.encode[-1].bias.data = torch.tensor([1.0] * 8 + [0.0] * 8)  # mean 1, variance 1
    rec, p, kl = net(torch.rand(2, 3, 7, 6), torch.tensor([0, 1]), None)
    assert rec.shape == p.shape == (2, 3, 7, 6) and kl.item() == 4  # 8 channels of 1/2


def test_a_seed_gives_the_same_pictures_and_another_others(tiny):
    data = tiny(8)
    one, same, other = (dvae(data, SMALL, seed=seed) for seed in (0, 0, 1))
    assert one.dtype == torch.uint8 and one.shape == data.images.shape
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_two_at_once_train_each_network_once(tiny, tmp_path):
    data, epochs = tiny(8), []

    def train():
        dvae(data, SMALL, seed=0, cache=tmp_path, progress=lambda *epoch: epochs.append(epoch))

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(epochs) == len(SMALL.nats) * SMALL.epochs


def test_noise_of_a_class_is_taken_off_and_the_picture_stays(tiny):
    """Of plain grey pictures the level, on which no class depends."""
    data = tiny(16)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 2, (4, 3, 12, 12), generator=generator) * 24.0 - 12
    level = torch.randint(60, 190, (64, 1, 1, 1), generator=generator).float()
    x = (level + noise[data.labels]).byte()
    config = DvaeConfig(epochs=20, width=16, code=8, batch=16, lr=5e-3)
    images = dvae(replace(data, images=x), config, seed=0).float()
    left = ((images - images.mean((2, 3), keepdim=True)) * noise[data.labels]).mean() / 12**2
    kept = torch.corrcoef(torch.stack([images.mean((1, 2, 3)), level.flatten()]))[0, 1]
    assert left < 0.3 and kept > 0.9
