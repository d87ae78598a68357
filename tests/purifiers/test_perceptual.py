"""How different pictures look: each pair on its own, trained once, no download."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fastue.core.errors import UsageError
from fastue.purifiers.perceptual import ALEXNET, lpips, trained_features, uphill


@pytest.fixture(scope="module")
def features(tiny):
    return trained_features(tiny(8))


def pairs(tiny, count=5):
    x = tiny(seed=1).images[:: 96 // count][:count].float().contiguous() / 127.5 - 1
    return x, x.roll(1, 0)


def test_a_picture_is_like_itself_and_unlike_another(features, tiny):
    x, y = pairs(tiny)
    assert torch.equal(features(x, x), torch.zeros(len(x)))
    assert (features(x, y) > 0).all() and torch.allclose(features(x, y), features(y, x))


def test_going_uphill_makes_each_pair_look_alike_on_its_own(features, tiny):
    x, y = pairs(tiny)
    up = uphill(features, x, y)
    way = (y - x).flatten(1).norm(dim=1) / up.flatten(1).norm(dim=1)
    assert (features(x + 0.02 * way[:, None, None, None] * up, y) < features(x, y)).all()
    alone = torch.cat([uphill(features, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, up, rtol=1e-3, atol=1e-6)


def test_it_is_trained_once_for_each_auxiliary_set(tiny, tmp_path):
    x, y = pairs(tiny)
    first, again = (trained_features(tiny(8), cache=tmp_path)(x, y) for _ in range(2))
    assert torch.equal(first, again) and len(list(tmp_path.iterdir())) == 1
    assert not torch.equal(trained_features(tiny(8, seed=3), cache=tmp_path)(x, y), first)
    assert len(list(tmp_path.iterdir())) == 2


def test_lpips_needs_its_weights_on_disk(tmp_path, monkeypatch):
    """The package itself is played: it stands for what is installed."""

    class Lpips(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, x, y):
            return (x - y).square().mean((1, 2, 3), keepdim=True)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match="pip install lpips"):
        lpips(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Lpips))
    with pytest.raises(UsageError, match=ALEXNET):
        lpips(torch.device("cpu"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ALEXNET).touch()
    x = torch.zeros(2, 3, 8, 8)
    assert lpips(torch.device("cpu"))(x, x + 2).tolist() == [4, 4]
