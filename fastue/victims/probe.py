"""The last layer alone: what a victim's features say, whatever its own last layer made of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.data.dataset import ImageDataset, batches
from fastue.models.features import head as head
from fastue.models.features import seen_by
from fastue.models.training import autocast, percent, to_input
from fastue.victims.train import TEST_BATCH, new_curves, score

STEPS = 15


@torch.no_grad()
def features(model: nn.Module, layer: nn.Module, data: ImageDataset, precision: str) -> Tensor:
    """What goes into `layer` of `model` in eval mode, float32 [N, D]."""
    kept: list[Tensor] = []
    model.eval()
    for x, _, _ in batches(data, TEST_BATCH):
        with autocast(x.device, precision):
            kept.append(seen_by(model, layer, to_input(x)).float())
    return torch.cat(kept)


def refit(
    x: Tensor,
    y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    progress: Callable[[int, int, dict], None] = lambda done, total, info: None,
) -> tuple[nn.Linear, dict[str, list[float]]]:
    """A linear layer fitted to features x float32 [N, D] and labels y int64 [N] by STEPS steps of
    LBFGS on all of them (rate 0.5; without the line search it can diverge), and the curves of
    fastue.victims.train.fit over these steps."""
    layer = nn.Linear(x.shape[1], classes, device=x.device)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=0.5, line_search_fn="strong_wolfe")
    curves = new_curves()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y)
        loss.backward()
        return loss

    for done in range(1, STEPS + 1):
        curves["loss"].append(round(float(optimizer.step(closure).detach()), 4))
        with torch.no_grad():
            score(curves, layer(test_x).argmax(1) == test_y)
        progress(done, STEPS, {"loss": curves["loss"][-1], "accuracy": curves["accuracy"][-1]})
    with torch.no_grad():
        curves["train_accuracy"].append(round(percent(layer(x).argmax(1) == y), 3))
    return layer, curves
